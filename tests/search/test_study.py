"""The ledger keeps everything, survives what interrupts it, and mixes nothing."""

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from made_study import BUDGET, DATA, done, step, worse

from recfit.search.budget import Budget
from recfit.search.select import choose
from recfit.search.study import LEDGER, Candidate, Study
from recfit.types import ConfigError

FALLEN = Candidate("s", "s", [step("prune")], "screened out", "latency", "p99_ms <= 2", metrics={"p99_ms": 9.0})
FAILED = Candidate("f", "f", [step("reduce")], "failed", "train", "it crashed")


def rows(study):
    return [json.loads(line) for line in study.path(LEDGER).read_text().splitlines()]


def test_a_study_is_read_back_as_it_was(make, base):
    study = make(done("c", worse(base, 0.9), 1.0, step("quantize")), (FALLEN, None), (FAILED, None))
    again = Study(study.directory)
    assert again.facts == study.facts
    assert json.loads(json.dumps(again.facts)) == again.facts
    assert list(again.candidates) == ["o", "a", "c", "s", "f"]
    for id, found in study.candidates.items():
        pairs = {name: tuple(pair) for name, pair in again.candidates[id].intervals.items()}
        assert replace(again.candidates[id], intervals=pairs) == found
    assert [found.id for found in again.done()] == ["o", "a", "c"]
    assert again.candidates["c"].families == ["quantize"]


def test_values_of_every_user_are_kept(make, base):
    study = make()
    new = worse(base, 0.5)
    study.add(*done("c", new, 1.0))
    again = Study(study.directory)
    users = again.measured(again.candidates["c"]).users["ndcg@10"]
    np.testing.assert_allclose(users, new, rtol=1e-6)
    assert users.dtype == np.float64
    assert again.measured(again.candidates["c"]).metrics["p99_ms"] == 1.0
    assert study.measured(FALLEN).users == {}


@pytest.mark.parametrize("budget", [Budget.of({"qps": 10}), Budget(objective="cost")])
def test_a_rate_of_which_the_batch_is_not_known_is_no_match_for_others(make, base, budget):
    """Rows of studies from before there was more than one batch size keep all else."""
    candidate, users = done("c", base, 1.0)
    metrics = {name: value for name, value in candidate.metrics.items() if name != "qps_batch"}
    study = make((replace(candidate, metrics=metrics), users))
    for known in (study, Study(study.directory)):
        missing = candidate.metrics.keys() - known.candidates["c"].metrics.keys()
        assert missing == {"qps", "qps_batch", "core_hours_per_million"}
        assert "qps" in known.candidates["o"].metrics
        assert choose(known, Budget()).chosen.id == "c"
        with pytest.raises(
            ConfigError, match=r"did not measure (qps|core_hours_per_million); .* with this budget in another"
        ):
            choose(known, budget)
    assert "qps" in rows(study)[-1]["metrics"], "the ledger loses nothing"


def test_a_lost_file_of_user_values_is_named(make, base):
    study = make(done("c", base, 1.0))
    study.path("quality", "c.npz").unlink()
    with pytest.raises(ConfigError, match=r"quality/c.npz is missing, without it 'c' cannot be judged"):
        study.measured(study.candidates["c"])


@pytest.mark.parametrize("torn", [b'{"row": "candidate", "id": "x', b'{"row"', b"\xff"])
def test_a_line_that_a_crash_cut_short_is_dropped_by_the_next_row(make, base, torn):
    study = make()
    whole = study.path(LEDGER).read_bytes()
    study.path(LEDGER).write_bytes(whole + torn)
    again = Study(study.directory)
    assert list(again.candidates) == ["o", "a"]
    # Somebody who only reads, perhaps while another writes, changes nothing.
    assert study.path(LEDGER).read_bytes() == whole + torn
    again.add(*done("c", base, 1.0))
    assert study.path(LEDGER).read_bytes().startswith(whole + b"{")
    assert list(Study(study.directory).candidates) == ["o", "a", "c"]


def test_the_same_study_goes_on_and_another_is_refused(make):
    study = make()
    count = len(rows(study))
    Study(study.directory).begin({"data": DATA}, "identity")
    assert len(rows(study)) == count
    with pytest.raises(
        ConfigError,
        match=r"another original, data set, split, training or processor \(its identity is identity, .* other\)",
    ):
        Study(study.directory).begin({"data": DATA}, "other")


def test_what_is_known_is_not_written_again(make):
    study = make()
    count = len(rows(study))
    study.note(budget=json.loads(json.dumps(BUDGET)), original="o")
    assert len(rows(study)) == count
    study.note(original="b")
    assert len(rows(study)) == count + 1
    assert Study(study.directory).facts["original"] == "b"


def test_what_fell_for_another_budgets_limits_is_no_longer_known(make, base):
    """The same command with a looser budget must look at it again; measured and failed ones stay."""
    study = make(done("c", base, 1.0), (FALLEN, None), (FAILED, None))
    study.note(budget=BUDGET)
    assert "s" in study.candidates
    study.note(budget={**BUDGET, "limits": {"p99_ms": 20}})
    assert list(study.candidates) == list(Study(study.directory).candidates) == ["o", "a", "c", "f"]
    assert sum(row.get("id") == "s" for row in rows(study)) == 1


@pytest.mark.parametrize("limit", ["max_minutes", "memory_gb"])
def test_what_a_limit_of_the_search_ended_is_tried_again_when_it_changes(make, limit):
    study = make()
    study.note(max_minutes=5.0, memory_gb=2.0)
    study.add(replace(FAILED, limit=limit))
    study.add(replace(FAILED, id="g"))
    study.note(max_minutes=5.0, memory_gb=2.0)
    assert "f" in study.candidates
    study.note(**{"max_minutes": 5.0, "memory_gb": 2.0, limit: 9.0})
    assert list(study.candidates) == list(Study(study.directory).candidates) == ["o", "a", "g"]


def test_two_processes_cannot_write_one_study(make):
    study = make()
    script = (
        "import sys; from pathlib import Path; from recfit.search.study import Study;"
        f"Study(Path({str(study.directory)!r})).begin({{}}, 'identity')"
    )
    command = [sys.executable, "-c", script]
    refused = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "ConfigError: another process is working on" in refused.stderr
    del study
    assert subprocess.run(command, check=False).returncode == 0

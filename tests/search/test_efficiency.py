"""The benchmark of the search has every chain on record that a search may ask for, and measures nothing while it replays."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from benchmarks import search as benchmark
from made_study import base_quality, costs, done, started, step, worse

import toys
from recfit.search.recipe import Recipe
from recfit.search.study import Candidate, Study
from recfit.techniques import Context, make

SPACES = Path(benchmark.__file__).parent / "spaces"
STEPS = [
    make("prune", {"axis": "ffn", "epochs": 0}),
    make("reduce", {"axis": "history_length", "size": 5, "epochs": 0}),
    make("quantize", {}),
    make("quantize", {"graph": "float32"}),
    make("runtime", {"name": "fused"}),
]


@pytest.mark.parametrize(("name", "count"), [("small", 144), ("medium", 384), ("full", 1728)])
def test_a_space_is_as_large_as_it_says(name: str, count: int) -> None:
    found = benchmark.chains(benchmark.singles(SPACES / f"{name}.toml"))
    assert len({chain.id for chain in found}) == len(found) == count
    assert f": {count}." in (SPACES / f"{name}.toml").read_text()


@pytest.fixture
def space(tmp_path: Path) -> benchmark.Space:
    """Every step halves the time, saves a tenth of the memory and loses a twentieth of the hits."""
    first, reference = [Recipe((step,)) for step in STEPS], Study(tmp_path / "reference")
    for chain in benchmark.chains(first):
        users = worse(base_quality(), 0.95 ** len(chain.steps))
        metrics = costs(4.0 * 0.5 ** len(chain.steps), 200 * 0.9 ** len(chain.steps)) | {"ndcg@10": float(users.mean())}
        about = chain.id, chain.name, chain.to_json(), "done", "full"
        reference.add(Candidate(*about, metrics=metrics), {"ndcg@10": users})
    reference.note(original=Recipe().id, eager=Recipe().id)
    original = toys.original("sasrec")
    return benchmark.Space(first, reference, Context(toys.split(), original, toys.FIT))


def test_a_search_over_records_ends_with_all_that_there_is(space: benchmark.Space, tmp_path: Path) -> None:
    *rows, control = benchmark.efficiency(space, 30, tmp_path / "searches")
    assert len(space.reference.candidates) == 24
    assert [row["30"] for row in rows] == pytest.approx([100.0] * len(benchmark.BUDGETS))
    assert control["search"] == "random order"
    assert control["8"] < 100
    assert all(np.diff([row["8"], row["16"], row["30"]]).min() >= 0 for row in rows)


@pytest.mark.parametrize(("known", "gap"), [(["fast", "good"], 0.04), (["fast"], 0.0), (["slow"], 0.5)])
def test_a_gap_is_to_the_least_of_all_chains_that_hold(
    space: benchmark.Space, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, known: list[str], gap: float
) -> None:
    """`good` is tied with `fast` and better, so it is the choice among all; a study that knows only `fast` is not behind."""
    whole, study = started(tmp_path / "whole"), started(tmp_path / "study")
    for name, share, p99 in (("fast", 0.95, 1.0), ("good", 1.0, 1.04), ("slow", 1.0, 1.5)):
        candidate = done(name, worse(base_quality(), share), p99, step("prune"))
        for each in (whole, study) if name in known else (whole,):
            each.add(*candidate)
    monkeypatch.setattr(benchmark, "new_budgets", lambda: iter([(["ndcg@10=90%"], "latency")]))
    monkeypatch.setattr(benchmark.subprocess, "run", lambda *_, **__: None)
    [answer] = benchmark.answered(dataclasses.replace(space, reference=whole), study.directory)
    assert answer["best"] == "good"
    assert answer["gap"] == pytest.approx(gap)

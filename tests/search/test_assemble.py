"""Study -> report: what the page is given is what the ledger holds, judged by the budget that was asked."""

import json
from dataclasses import replace

import pytest
from made_study import done, step, worse

from recfit import report
from recfit.report.assemble import assemble
from recfit.report.schema import check
from recfit.search.budget import Budget
from recfit.search.select import choose
from recfit.search.study import Candidate

FALLEN = Candidate(
    "s", "s", [step("prune")], "screened out", "latency", "too slow", metrics={"p99_ms": 9.0}, seconds={"screen": 1.5}
)
LATE = Candidate("l", "l", [step("reduce")], "screened out", "sample", "too bad", seconds={"train": 9.0, "sample": 1.0})
FAILED = Candidate("f", "f", [step("reduce")], "failed", "train", "crash", seconds={"train": 2.0})


@pytest.fixture
def study(make, base):
    return make(
        done("pop", worse(base, 0.3), 1.0, step("simplify", kind="popularity")),
        done("small", worse(base, 0.97), 1.5, step("simplify", kind="sasrec"), memory=60.0),
        done("q", worse(base, 0.98), 3.0, step("quantize"), memory=80.0),
        done("chain", worse(base, 0.97), 0.9, step("simplify", kind="sasrec"), step("quantize"), memory=50.0),
        (FALLEN, None),
        (LATE, None),
        (FAILED, None),
    )


def made(study, limits=None, **settings):
    budget = Budget.of({"ndcg@10": "90%", "p99_ms": "0.5x"} if limits is None else limits, **settings)
    return check(assemble(study, budget, choose(study, budget)))


def rows(found):
    return {row["id"]: row for row in found["candidates"]}


def test_the_page_can_be_written(study, tmp_path):
    budget = Budget.of({"ndcg@10": "90%"})
    report.write(assemble(study, budget, choose(study, budget)), tmp_path / "report.html")
    assert "made up" in (tmp_path / "report.html").read_text()


def test_every_candidate_is_there_with_its_fate(study):
    found = rows(made(study))
    assert list(found) == ["o", "a", "pop", "small", "q", "chain", "s", "l", "f"]
    assert (found["s"]["status"], found["s"]["reason"], found["s"]["metrics"]) == (
        "screened out", "too slow", {"p99_ms": 9.0},
    )  # fmt: skip
    assert found["chain"]["families"] == ["simplify", "quantize"]
    assert found["chain"]["verdicts"] == {"ndcg@10": "held", "p99_ms": "held"}
    assert found["pop"]["verdicts"]["ndcg@10"] == "broken"
    assert {id for id, row in found.items() if row["frontier"]} == {"o", "q", "small", "chain"} - not_front(found)


def test_what_is_to_say_of_a_measured_candidate_is_there(base, make):
    candidate, users = done("q", base, 1.0, step("prune", axis="ffn"))
    study = make((replace(candidate, notes=["the start was kept", "twice"]), users))
    assert rows(made(study))["q"]["reason"] == "the start was kept; twice"


def not_front(found):
    """Of the candidates here, those that another beats in quality, p99, memory and bundle at once."""
    costs = ("p99_ms", "memory_mb", "bundle_mb")
    keys = {
        id: (-row["metrics"]["ndcg@10"], *(row["metrics"][cost] for cost in costs))
        for id, row in found.items()
        if row["status"] == "done"
    }
    return {
        id
        for id, mine in keys.items()
        if any(other != mine and all(a <= b for a, b in zip(other, mine, strict=True)) for other in keys.values())
    }


def test_differences_are_paired_with_the_original(study, base):
    difference = rows(made(study))["q"]["difference"]["ndcg@10"]
    lost = base - worse(base, 0.98)
    assert difference["mean"] == pytest.approx(-lost.mean(), rel=1e-4)
    assert difference["low"] < difference["mean"] < difference["high"]
    assert difference["high"] - difference["low"] < 0.02 < base.std() * 2 / len(base) ** 0.5
    assert rows(made(study))["o"]["difference"]["ndcg@10"] == {"mean": 0, "low": 0, "high": 0}


def test_the_smallest_detectable_drop_is_a_typical_half_interval(study):
    found = made(study)
    halves = sorted(
        (row["difference"]["ndcg@10"]["high"] - row["difference"]["ndcg@10"]["low"]) / 2
        for row in found["candidates"]
        if row["status"] == "done" and row["id"] not in ("o", "a")
    )
    assert halves[1] <= found["smallest_detectable_drop"] <= halves[2]


def test_the_budget_is_resolved_and_says_what_it_means(study):
    budget = made(study, objective="memory", accept_undecided=True)["budget"]
    assert (budget["objective"], budget["accept_undecided"]) == ("memory", True)
    assert [(limit["metric"], limit["op"], limit["relative"]) for limit in budget["limits"]] == [
        ("ndcg@10", ">=", True), ("p99_ms", "<=", True),
    ]  # fmt: skip
    assert budget["limits"][1]["bound"] == 2.0
    assert budget["limits"][1]["text"] == "p99_ms <= 0.5x of the original (2)"


def test_cost_is_at_the_price_of_the_budget(study):
    hours = study.candidates["q"].metrics["core_hours_per_million"]
    found = made(study, price=7.0)
    assert rows(found)["q"]["metrics"]["cost_per_million"] == pytest.approx(7 * hours)
    assert found["originals"]["B"]["metrics"]["cost_per_million"] > 0


def test_originals_baselines_and_strategies_name_candidates(study):
    found = made(study)
    assert {key: part["id"] for key, part in found["originals"].items()} == {"A": "a", "B": "o"}
    assert [part["name"] for part in found["baselines"]] == ["popularity"]
    assert [(part["label"], part["id"]) for part in found["strategies"]] == [
        ("original (A)", "a"), ("original (B)", "o"), ("simplify", "small"), ("quantize", "q"), ("chosen", "chain"),
    ]  # fmt: skip
    assert found["chosen"] == "chain"


def test_the_best_of_a_family_is_chosen_as_the_choice_is(make, base):
    """What is tied with the fastest of its family, and better, stands for it."""
    fast, good = (
        done(name, worse(base, share), p99, step("prune", axis=name))
        for name, share, p99 in (("fast", 0.93, 1.5), ("good", 0.97, 1.53))
    )
    study = make(fast, good, done("best", worse(base, 0.97), 0.5, step("distill")))
    assert {part["label"]: part["id"] for part in made(study)["strategies"]}["prune"] == "good"


def test_an_original_that_has_a_step_is_no_strategy_of_its_own(make, base):
    """With several serving threads the original is `runtime(threads=2)`."""
    study = make(done("two", base, 3.0, step("runtime", threads=2)))
    study.note(original="two")
    assert [part["id"] for part in made(study, {})["strategies"]] == ["a", "two"]


def test_the_search_is_accounted_for(study):
    search = made(study)["search"]
    assert (search["proposed"], search["measured"], search["failed"]) == (9, 6, 1)
    assert search["screened_before_training"] == 1
    assert search["slowest_stage"] == "train"
    stages = {part["stage"]: (part["seconds"], part["count"]) for part in search["stages"]}
    assert stages == {"train": (6 * 2.0 + 11, 8), "measure": (6.0, 6), "screen": (1.5, 1), "sample": (1.0, 1)}
    assert search["seconds"] == pytest.approx(sum(seconds for seconds, _ in stages.values()))


def test_where_nothing_is_feasible_the_nearest_miss_is_shown(study):
    found = made(study, {"p99_ms": 0.1})
    assert found["chosen"] is None
    assert found["nearest"]["binding"] == "p99_ms"
    assert found["nearest"]["id"] in rows(found)
    assert found["final"] is None


def test_the_final_table_is_that_of_the_chosen_or_none(study):
    metrics = {"ndcg@10": 0.2, "p99_ms": 1.0}
    final = {
        "ids": {"A": "a", "B": "o", "chosen": "chain"},
        "rows": {role: {"metrics": metrics, "intervals": {}} for role in ("A", "B", "chosen")},
        "difference": {"ndcg@10": {"mean": 0.0, "low": -0.1, "high": 0.1}},
        "verdicts": {"ndcg@10": "held", "p99_ms": "undecided"},
        "text": "given up for",
    }
    study.note(final=json.loads(json.dumps(final)))
    found = made(study)["final"]
    assert [row["role"] for row in found["rows"]] == ["A", "B", "chosen"]
    assert (found["split"], found["text"], found["rows"][2]["label"]) == ("test", "given up for", "chain")
    assert found["verdicts"] == final["verdicts"]
    assert found["bounds"]["ndcg@10"] == pytest.approx(0.18)  # 90 % of the original of that run
    assert made(study, {"memory_mb": 85, "ndcg@10": "97.9%"}, objective="quality")["final"] is None

"""The frontier is what nothing dominates; the choice is the best of what holds; nothing is taken in silence."""

import itertools
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from made_study import BUDGET, base_quality, done, started, step, worse

from recfit.search.budget import Budget
from recfit.search.select import choose, frontier, hypervolume, on_front, require
from recfit.search.study import Candidate
from recfit.types import Infeasible

losses = st.tuples(st.integers(1, 25), st.integers(1, 4)).flatmap(
    lambda shape: arrays(np.float64, shape, elements=st.integers(0, 4).map(float))
)


@given(losses)
def test_no_point_of_the_front_is_dominated_and_every_other_is_by_one_of_it(loss):
    front = on_front(loss)

    def dominates(a, b):
        return bool(np.all(a <= b) and np.any(a < b))

    for row, on in enumerate(front):
        assert on != any(dominates(loss[other], loss[row]) for other in np.flatnonzero(front))


@given(losses, st.randoms())
def test_the_front_does_not_depend_on_order_or_scale(loss, random):
    order = list(range(len(loss)))
    random.shuffle(order)
    assert on_front(loss[order] * 3 + 1).tolist() == on_front(loss)[order].tolist()


@given(losses)
def test_the_hypervolume_counts_what_is_dominated(loss):
    """In whole numbers: the unit cells below the reference that some candidate is at least as good as."""
    cells = itertools.product(range(4), repeat=loss.shape[1])
    wanted = sum(bool(np.any(np.all(loss <= cell, axis=1))) for cell in cells)
    assert hypervolume(loss, np.full(loss.shape[1], 4.0)) == wanted


def test_nothing_has_no_hypervolume():
    assert hypervolume(np.empty((0, 3)), np.ones(3)) == 0
    assert hypervolume(np.ones((2, 3)), np.ones(3)) == 0


def names(candidates):
    return [found.id for found in candidates]


def test_the_frontier_is_of_quality_p99_and_memory_and_what_the_budget_limits(make, base):
    study = make(
        done("fast", worse(base, 0.9), 1.0, memory=200.0),
        done("small", worse(base, 0.9), 4.0, memory=50.0),
        done("bad", worse(base, 0.8), 4.0, memory=210.0),
        done("busy", worse(base, 0.8), 5.0, memory=210.0, qps=9999.0),
    )
    assert names(frontier(study.done(), Budget())) == ["o", "fast", "small"]
    assert names(frontier(study.done(), Budget.of({"qps": 100}))) == ["o", "fast", "small", "busy"]
    assert frontier([], Budget()) == []


@pytest.fixture
def study(make, base):
    """Four ways of paying, none the best in everything."""
    return make(
        done("fast", worse(base, 0.95), 1.0, step("distill"), memory=150.0),
        done("small", worse(base, 0.95), 3.0, step("quantize"), memory=50.0),
        done("good", base, 2.0, step("cache"), memory=199.0),
        done("cheap", worse(base, 0.95), 3.5, step("prune"), memory=190.0, core_hours_per_million=0.01),
    )


@pytest.mark.parametrize(
    ("objective", "chosen"), [("latency", "fast"), ("memory", "small"), ("quality", "good"), ("cost", "cheap")]
)
def test_each_objective_has_its_choice(study, objective, chosen):
    budget = Budget.of({"ndcg@10": "80%"}, objective=objective)
    assert require(choose(study, budget)).id == chosen


def test_limits_come_before_the_objective(study):
    budget = Budget.of({"ndcg@10": "80%", "memory_mb": 100}, objective="latency")
    choice = choose(study, budget)
    assert require(choice).id == "small"
    assert choice.verdicts["fast"] == {"ndcg@10": "held", "memory_mb": "broken"}
    assert choice.nearest is None


def test_the_original_may_win(study):
    assert require(choose(study, Budget.of({"ndcg@10": "100%", "memory_mb": 250}, objective="memory"))).id == "good"
    heavier = Budget.of({"ndcg@10": "100%", "load_s": 1}, objective="memory")
    only_original = [found for found in study.done() if found.id in ("o", "a")]
    study.candidates = {found.id: found for found in only_original}
    assert require(choose(study, heavier)).id == "o"


def test_what_is_held_already_is_not_called_undecided(make, base):
    """Where an undecided candidate ties with the fastest, that is not what would be better."""
    study = make(
        done("fast", worse(base, 0.95), 1.0, step("prune")),
        done("good", worse(base, 0.97), 1.04, step("quantize")),
        done("maybe", worse(base, 0.905), 0.995, step("reduce")),
    )
    choice = choose(study, Budget.of({"ndcg@10": "90%"}))
    assert choice.verdicts["maybe"]["ndcg@10"] == "undecided"
    assert (choice.chosen.id, choice.undecided) == ("good", None)


def test_undecided_is_not_held(make, base):
    study = make(done("maybe", worse(base, 0.905), 1.0, step("prune")))
    limits = {"ndcg@10": "90%", "p99_ms": 2}
    choice = choose(study, Budget.of(limits))
    assert choice.verdicts["maybe"]["ndcg@10"] == "undecided"
    assert choice.chosen is None
    message = (
        r"no candidate holds every limit. The nearest is 'maybe'; what binds: ndcg@10 >= 90% of the original "
        r"\(0\.\d+\), the nearest has 0\.\d+ \(undecided\). More test users can decide it; accept_undecided = true"
    )
    with pytest.raises(Infeasible, match=message) as error:
        require(choice)
    assert error.value.exit_code == 3
    assert require(choose(study, Budget.of(limits, accept_undecided=True))).id == "maybe"


def test_the_nearest_miss_names_what_binds(study):
    choice = choose(study, Budget.of({"p99_ms": 0.5, "memory_mb": 40}))
    assert choice.chosen is None
    # fast misses memory by 2.75 times, small p99 by 5, good by 4 and 3; the smallest worst miss is nearest.
    assert (choice.nearest.candidate.id, choice.nearest.binding, choice.nearest.state) == (
        "fast",
        "memory_mb",
        "broken",
    )
    with pytest.raises(Infeasible, match=r"'fast'; what binds: memory_mb <= 40, the nearest has 150 \(broken\). Relax"):
        require(choice)


def test_what_was_not_measured_in_full_is_never_chosen(study):
    study.add(Candidate("s", "s", [step("prune")], "screened out", "latency", "too slow", metrics={"p99_ms": 0.1}))
    study.add(Candidate("f", "f", [step("prune")], "failed", "train", "crash"))
    choice = choose(study, Budget.of({"p99_ms": 100}))
    assert require(choice).id == "fast"
    assert set(choice.verdicts) == {"o", "a", "fast", "small", "good", "cheap"}


def test_two_hundred_candidates_of_five_thousand_users_take_less_than_a_second(tmp_path):
    rng = np.random.default_rng(0)
    study, base = started(tmp_path / "large", BUDGET, 5000), base_quality(5000)
    for number in range(198):
        values = base * (rng.random(5000) < rng.uniform(0.7, 1))
        candidate, users = done(f"c{number}", values, float(rng.uniform(0.5, 4)), step("prune", keep=number))
        metrics = ("ndcg@5", "recall@5", "recall@10", "mrr@10")
        study.add(candidate, users | dict.fromkeys(metrics, values))
    budgets = [
        Budget.of({"ndcg@10": quality, "p99_ms": p99}) for quality, p99 in itertools.product(("80%", 0.3), ("0.4x", 3))
    ]
    for budget in budgets:
        begin = time.process_time()
        choice = choose(type(study)(study.directory), budget)
        assert time.process_time() - begin < 1.0
        assert len(choice.verdicts) == 200

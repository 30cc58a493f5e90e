"""Another budget, another choice, from a study that is there."""

import numpy as np
import pytest
from made_study import BUDGET, DATA, done, step, worse

from recfit.search.budget import Budget, Limit
from recfit.search.study import Candidate, Study
from recfit.selecting import budget_of, left_undecided, line, open_study, reselect
from recfit.types import ConfigError


@pytest.fixture
def study(make, base):
    return make(
        done("fast", worse(base, 0.97), 1.0, step("distill"), memory=150.0),
        done("small", worse(base, 0.97), 3.0, step("quantize"), memory=50.0),
    )


def test_without_changes_the_studys_own_budget_counts(study):
    _, budget, choice = reselect(study.directory, [], None, False)
    assert budget.limits == (Limit("ndcg@10", 0.9, relative=True), Limit("p99_ms", 0.5, relative=True))
    assert (budget.objective, choice.chosen.id) == ("latency", "fast")


def test_given_limits_replace_all_of_its_limits_and_keep_the_rest(study):
    budget = budget_of(study, [" memory_mb = 60", "qps=0.1x"], None, False)
    assert budget.limits == (Limit("memory_mb", 60.0), Limit("qps", 0.1, relative=True))
    assert (budget.objective, budget.price) == (BUDGET["objective"], BUDGET["price"])
    assert reselect(study.directory, ["memory_mb=60"], None, False)[2].chosen.id == "small"


def test_objective_and_undecided_can_be_changed_alone(study):
    budget = budget_of(study, [], "memory", True)
    assert (budget.objective, budget.accept_undecided, len(budget.limits)) == ("memory", True, 2)


def test_a_study_that_accepts_undecided_goes_on_accepting_it(make):
    study = make(budget={**BUDGET, "accept_undecided": True})
    assert budget_of(study, [], None, False).accept_undecided


def test_asking_changes_nothing(study):
    before = {path: path.read_bytes() for path in study.directory.rglob("*") if path.is_file()}
    reselect(study.directory, ["p99_ms=2"], "memory", True)
    assert {path: path.read_bytes() for path in study.directory.rglob("*") if path.is_file()} == before


def test_forty_budgets_are_answered_from_the_file_of_a_study(make, base, monkeypatch):
    """Nothing is built and nothing measured, and every candidate is read once; what is chosen is the fastest that holds the
    limits, or tied with it."""
    rng = np.random.default_rng(0)
    some = [
        done(f"c{number}", worse(base, quality, number), p99, step("prune", keep=number), memory=memory)
        for number, (quality, p99, memory) in enumerate(rng.uniform([0.7, 0.5, 40], [1, 4, 200], (240, 3)))
    ]
    study = make(*some)
    for name in ("recfit.measure.process.Worker.__init__", "subprocess.Popen.__init__", "recfit.bundle.open_files"):
        monkeypatch.setattr(name, lambda *_, name=name, **__: pytest.fail(f"{name} was called"))
    load, opened = np.load, []
    monkeypatch.setattr(np, "load", lambda path, **options: opened.append(path) or load(path, **options))
    for quality, memory in rng.uniform([0.7, 60], [0.98, 200], (40, 2)):
        opened.clear()
        _, budget, choice = reselect(
            study.directory, [f"ndcg@10={quality:.0%}", f"memory_mb={memory:.0f}"], None, False
        )
        assert len(opened) == len({*opened}) == len(study.candidates)
        holding = [study.candidates[id] for id, states in choice.verdicts.items() if budget.holds(states)]
        fastest = min((found.metrics["p99_ms"] for found in holding), default=None)
        assert (choice.chosen is None) == (fastest is None)
        assert choice.chosen is None or fastest <= choice.chosen.metrics["p99_ms"] <= 1.05 * fastest


@pytest.mark.parametrize("text", ["p99_ms", "p99_ms:2", ""])
def test_a_limit_without_a_value_is_refused(study, text):
    with pytest.raises(ConfigError, match=r"is not METRIC=VALUE, such as p99_ms=2 or ndcg@10=99%"):
        budget_of(study, [text], None, False)


def test_a_folder_without_a_study_is_refused_and_stays_empty(tmp_path):
    with pytest.raises(ConfigError, match=r"holds no study \(no study.jsonl\); `recfit optimize` makes one"):
        open_study(tmp_path / "nothing")
    assert not (tmp_path / "nothing").exists()


def test_a_study_without_a_measured_original_is_refused(tmp_path):
    Study(tmp_path / "young").begin({"data": DATA}, "identity")
    with pytest.raises(ConfigError, match=r"no measured original yet; run `recfit optimize` again"):
        open_study(tmp_path / "young")


def test_lines_for_the_terminal(study):
    fast = study.candidates["fast"]
    shown = line(fast, budget_of(study, [], None, False))
    quality = fast.metrics["ndcg@10"]
    assert shown == f"fast: ndcg@10 {quality:.4f}, p99 1.000 ms, 150 MB resident, 3.00 MB on disk"
    fallen = Candidate("x", "prune()", [step("prune")], "screened out", "latency", "p99_ms <= 2; it has 3")
    assert line(fallen, budget_of(study, [], None, False)) == "prune(): screened out at latency: p99_ms <= 2; it has 3"


def test_a_line_tells_what_did_not_reach_the_second_stage(base):
    shares = {"recall_of_stage_one": 0.912, "overlap_with_exact": 0.985}
    two, _ = done("two", base, 1.0, step("two_stage"), **shares)
    assert line(two, Budget.of({})).endswith(", 91.2% of the targets reach stage two, 98.5% of the exact list served")


def test_what_users_cannot_tell_is_named_where_it_would_be_better(make, base):
    rng = np.random.default_rng(3)
    unsure = np.clip(base + rng.normal(0.0, 0.3, len(base)), 0, 1)
    unsure += base.mean() - unsure.mean() - 1e-3  # as good in the mean, better for some and worse for others
    study = make(done("sure", base, 3.0), done("unsure", unsure, 1.0, step("distill")))
    limits = ["ndcg@10=99%"]
    _, budget, choice = reselect(study.directory, limits, "latency", False)
    assert (choice.chosen.id, choice.undecided.id) == ("sure", "unsure")
    said = left_undecided(choice, budget)
    assert said.startswith("better, but these users cannot tell whether it holds ndcg@10 >= 99% of the original: ")
    assert line(study.candidates["unsure"], budget) in said
    assert "accept_undecided = true (--accept-undecided) takes it" in said
    for tolerant, objective in ((True, "latency"), (False, "quality")):
        _, budget, choice = reselect(study.directory, limits, objective, tolerant)
        assert choice.undecided is None
        assert not left_undecided(choice, budget)

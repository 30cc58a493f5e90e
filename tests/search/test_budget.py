"""Limits are read as they are meant, refused where they mean nothing, and answered with held, broken or undecided."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recfit.search.budget import COSTS, Budget, Limit, Measured, check, parse_limit, shortfall
from recfit.types import ConfigError


@pytest.mark.parametrize(
    ("metric", "value", "limit"),
    [
        ("p99_ms", 2, Limit("p99_ms", 2.0)),
        ("p99_ms", 0.5, Limit("p99_ms", 0.5)),
        ("p99_ms", " 2.5 ", Limit("p99_ms", 2.5)),
        ("memory_mb", "0.5x", Limit("memory_mb", 0.5, relative=True)),
        ("memory_mb", "50%", Limit("memory_mb", 0.5, relative=True)),
        ("qps", "2x", Limit("qps", 2.0, relative=True)),
        ("ndcg@10", 0.1, Limit("ndcg@10", 0.1)),
        ("ndcg@10", "1", Limit("ndcg@10", 1.0)),
        ("recall@20", "99%", Limit("recall@20", 0.99, relative=True)),
        ("mrr@5", "1.05x", Limit("mrr@5", 1.05, relative=True)),
    ],
)
def test_every_form_of_a_limit(metric, value, limit):
    found = parse_limit(metric, value)
    assert (found.metric, found.relative) == (limit.metric, limit.relative)
    assert found.bound == pytest.approx(limit.bound)


@pytest.mark.parametrize(
    ("metric", "value", "message"),
    [
        ("p99ms", 2, r"unknown limit 'p99ms'; did you mean 'p99_ms'\? allowed: p50_ms, .* and ndcg@K"),
        ("speed", 2, r"unknown limit 'speed'; allowed: p50_ms"),
        ("ndgc@10", "95%", r"unknown quality metric 'ndgc@10'"),
        ("coverage@10", "95%", r"unknown quality metric 'coverage@10'"),
        ("p99_ms", "fast", r"limit p99_ms = 'fast' is not a number, a share .* '0.5x' or a percentage like '99%'"),
        ("p99_ms", "2 ms", r"is not a number"),
        ("p99_ms", True, r"is not a number"),
        ("p99_ms", "x", r"is not a number"),
        ("p99_ms", 0, r"limit p99_ms = 0 must be above 0 and finite"),
        ("p99_ms", "-5%", r"must be above 0 and finite"),
        ("p99_ms", "nan", r"must be above 0 and finite"),
        ("p99_ms", float("inf"), r"must be above 0 and finite"),
        ("ndcg@10", 95, r"limit ndcg@10 = 95 is above 1, the most it can be; a share of the original is '95%'"),
    ],
)
def test_a_limit_that_means_nothing_is_refused(metric, value, message):
    with pytest.raises(ConfigError, match=message):
        parse_limit(metric, value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"objective": "speed"}, r"unknown objective 'speed'; allowed: quality, latency, memory, cost"),
        ({"price": 0}, r"price is 0; pass the price of a core-hour"),
        ({"quality_metric": "hits"}, r"unknown quality metric 'hits'"),
    ],
)
def test_a_budget_that_means_nothing_is_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        Budget.of({"p99_ms": 2}, **settings)


@pytest.mark.parametrize(
    ("limits", "tolerance"),
    [
        ({"p99_ms": 2}, None),
        ({"ndcg@10": "90%"}, 0.1),
        ({"ndcg@10": "90%", "recall@10": "0.97x"}, 0.03),
        ({"ndcg@10": 0.15}, 0.25),
        ({"ndcg@10": "105%"}, 0.0),
    ],
)
def test_the_tightest_limit_says_how_much_quality_may_go(limits, tolerance):
    assert Budget.of(limits).tolerance({"ndcg@10": 0.2, "recall@10": 0.4, "p99_ms": 4.0}) == tolerance


def test_two_limits_on_one_metric_are_refused_rather_than_one_forgotten():
    with pytest.raises(ConfigError, match=r"p99_ms has 2 limits; keep the tighter one"):
        Budget((parse_limit("p99_ms", 1), parse_limit("memory_mb", 5), parse_limit("p99_ms", "0.5x")))


@pytest.mark.parametrize(
    ("limit", "text"),
    [
        (Limit("p99_ms", 0.1, True), "p99_ms <= 0.1x of the original (0.32)"),
        (Limit("ndcg@10", 0.95, True), "ndcg@10 >= 95% of the original (0.114)"),
        (Limit("qps", 500), "qps >= 500"),
        (Limit("memory_mb", 0.5, True), "memory_mb <= 0.5x of the original (60)"),
    ],
)
def test_limits_say_what_they_mean(limit, text):
    assert limit.text({"p99_ms": 3.2, "ndcg@10": 0.12, "memory_mb": 120.0}) == text
    assert text.startswith(limit.text())


def measured(value=1.0, low=None, high=None, metric="p99_ms"):
    intervals = {} if low is None else {metric: (low, high)}
    return Measured({metric: value}, intervals, {})


@pytest.mark.parametrize(
    ("found", "answer"),
    [
        (measured(1.9, 1.8, 2.0), "held"),
        (measured(1.9, 1.8, 2.1), "undecided"),
        (measured(2.2, 1.9, 2.3), "undecided"),
        (measured(2.2, 2.1, 2.3), "broken"),
        (measured(1.9, 1.8, float("inf")), "undecided"),
        (measured(2.0), "held"),
        (measured(2.01), "broken"),
    ],
)
def test_latency_is_judged_on_its_interval(found, answer):
    assert check(Limit("p99_ms", 2.0), found, measured(4.0)) == answer
    assert check(Limit("p99_ms", 0.5, relative=True), found, measured(4.0)) == answer


def test_throughput_is_a_floor():
    fast, slow = measured(120.0, metric="qps"), measured(80.0, metric="qps")
    assert check(Limit("qps", 100), fast, slow) == "held"
    assert check(Limit("qps", 100), slow, fast) == "broken"
    assert check(Limit("qps", 1.5, relative=True), fast, slow) == "held"


def test_the_original_is_exactly_1x_of_itself_whatever_its_noise():
    noisy = measured(4.0, 3.0, 5.0)
    assert check(Limit("p99_ms", 1.0, relative=True), noisy, noisy) == "held"
    assert check(Limit("p99_ms", 0.9, relative=True), noisy, noisy) == "broken"
    assert check(Limit("p99_ms", 4.0), noisy, noisy) == "undecided"


def quality(values):
    return Measured({"ndcg@10": float(values.mean())}, {}, {"ndcg@10": values})


def test_relative_quality_is_judged_on_paired_users(base):
    """Two models that fail on the same users differ by far less than their own intervals tell."""
    rng = np.random.default_rng(3)
    slightly, barely, clearly = (base * (rng.random(len(base)) < share) for share in (0.97, 0.91, 0.6))
    original, limit = quality(base), Limit("ndcg@10", 0.9, relative=True)
    assert check(limit, quality(slightly), original) == "held"
    assert check(limit, quality(clearly), original) == "broken"
    assert check(limit, quality(barely), original) == "undecided"
    # The same values of shuffled users: the mean is kept, the pairing is lost.
    assert check(limit, quality(rng.permutation(slightly)), original) == "undecided"


def test_an_absolute_floor_is_judged_on_the_interval_of_the_mean(base):
    original = quality(base)
    assert base.mean() == pytest.approx(0.3, abs=0.05)
    answers = [check(Limit("ndcg@10", floor), original, original) for floor in (0.2, base.mean(), 0.4)]
    assert answers == ["held", "undecided", "broken"]


@given(st.sampled_from([*COSTS, "qps"]), st.floats(0.1, 10), st.floats(0.1, 10))
def test_shortfall_is_the_share_of_the_bound_that_is_missed(metric, bound, value):
    found = measured(value, metric=metric)
    missed = shortfall(Limit(metric, bound), found, found)
    better = value >= bound if metric == "qps" else value <= bound
    assert missed == (0 if better else pytest.approx(abs(value - bound) / bound))
    assert (check(Limit(metric, bound), found, found) == "held") == (missed == 0)


def test_losses_follow_the_objective():
    metrics = {"ndcg@10": 0.3, "p99_ms": 2.0, "memory_mb": 70.0, "core_hours_per_million": 5.0}
    losses = {name: Budget(objective=name).loss(metrics) for name in ("quality", "latency", "memory", "cost")}
    assert losses == {"quality": -0.3, "latency": 2.0, "memory": 70.0, "cost": 5.0}


def test_the_price_turns_core_hours_into_cost():
    assert Budget(price=0.5).priced({"core_hours_per_million": 4.0})["cost_per_million"] == 2.0
    assert Budget(price=0.5).priced({"p99_ms": 4.0}) == {"p99_ms": 4.0}


@pytest.mark.parametrize(
    "budget",
    [Budget.of({"ndcg@20": "90%"}), Budget(quality_metric="ndcg@20"), Budget(objective="cost")],
)
def test_what_was_not_measured_cannot_be_judged(budget, base):
    found = quality(base)
    known = Measured({**found.metrics, "p99_ms": 1.0}, {}, found.users)
    with pytest.raises(ConfigError, match=r"did not measure (ndcg@20|core_hours_per_million); it has ndcg@10, p99_ms"):
        budget.verdicts(known, known)


def test_undecided_counts_only_where_it_is_accepted():
    limits = (Limit("p99_ms", 2), Limit("ndcg@10", 0.9, relative=True))
    answers = {"p99_ms": "held", "ndcg@10": "undecided"}
    assert not Budget(limits).holds(answers)
    assert Budget(limits, accept_undecided=True).holds(answers)
    assert not Budget(limits, accept_undecided=True).holds({"p99_ms": "broken", "ndcg@10": "held"})

"""The intervals cover what they promise; the verdicts follow from them."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recfit.measure.statistics import Interval, interval, keeps, paired, percentile_interval, verdict

TRIALS = 2000


def test_the_interval_of_a_mean_covers_it_95_times_in_100():
    """Values such as NDCG of one target: zero for most users."""
    rng = np.random.default_rng(0)
    hits = rng.random((TRIALS, 400)) < 0.25
    values = hits * rng.choice([1.0, 0.63, 0.5, 0.43], (TRIALS, 400))
    truth = 0.25 * np.mean([1.0, 0.63, 0.5, 0.43])
    covered = np.mean([(found := interval(line)).low <= truth <= found.high for line in values])
    assert 0.935 <= covered <= 0.965


def test_the_interval_of_a_difference_is_paired():
    rng = np.random.default_rng(1)
    base = rng.normal(0.5, 1.0, 500)
    gap = paired(base - 0.01 + rng.normal(0, 0.01, 500), base)
    assert gap.low < -0.01 < gap.high < 0
    assert gap.half < 0.002 < interval(base).half


@pytest.mark.parametrize(("q", "n"), [(50, 300), (95, 1000), (99, 1000), (99, 1500)])
def test_the_interval_of_a_percentile_covers_it(q, n):
    rng = np.random.default_rng(q + n)
    truth = -math.log(1 - q / 100)
    found = [percentile_interval(line, q) for line in rng.exponential(1.0, (TRIALS, n))]
    covered = np.mean([part.low <= truth <= part.high for part in found])
    assert 0.94 <= covered <= 0.98
    assert found[0].low <= found[0].mean <= found[0].high


def test_too_few_samples_leave_a_percentile_without_an_upper_bound():
    found = percentile_interval(np.arange(100.0), 99)
    assert found.high == math.inf
    assert found.low == 97
    assert percentile_interval(np.array([3.0]), 50) == Interval(3.0, -math.inf, math.inf)


def test_one_user_decides_nothing():
    found = interval(np.array([0.4]))
    assert (found.mean, found.low, found.high) == (0.4, -math.inf, math.inf)
    assert verdict(found, 0.0) == "undecided"


bounds = st.floats(-10, 10)


@given(bounds, bounds, bounds)
def test_a_verdict_has_three_answers(one, other, floor):
    low, high = sorted((one, other))
    answer = verdict(Interval((low + high) / 2, low, high), floor)
    assert answer == ("held" if floor <= low else "broken" if floor > high else "undecided")


@given(st.lists(st.floats(0, 1), min_size=2, max_size=50), st.floats(0.01, 1))
def test_the_original_keeps_any_share_of_itself(values, share):
    base = np.array(values)
    # Half the spread of a share of itself is that share of its spread; only at share 1 is there none.
    assert keeps(base, base, 1.0) == "held"
    assert keeps(base, base, share) != "broken"


def test_the_share_that_is_kept_is_judged_on_pairs():
    rng = np.random.default_rng(2)
    base = (rng.random(2000) < 0.3) * 1.0
    slightly_worse = base * (rng.random(2000) < 0.97)
    assert keeps(slightly_worse, base, 0.90) == "held"
    assert keeps(slightly_worse, base, 0.97) == "undecided"
    assert keeps(slightly_worse, base, 0.999) == "broken"

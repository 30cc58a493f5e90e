"""The metrics against values computed by hand, by another library, and by the definition written out plainly."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import ndcg_score

from recfit.measure import quality
from recfit.types import ConfigError, Ragged

ITEMS = 12


def one(metric, found, targets):
    return quality.per_query(np.array([found]), Ragged.from_lists([targets]), [metric])[metric][0]


@pytest.mark.parametrize(
    ("metric", "found", "targets", "value"),
    [
        ("ndcg@3", [7, 5, 9], [7], 1.0),
        ("ndcg@3", [5, 7, 9], [7], 1 / math.log2(3)),
        ("ndcg@3", [5, 9, 7], [7], 0.5),
        ("ndcg@2", [5, 9, 7], [7], 0.0),
        # Two of three targets found, at ranks 1 and 3; an ideal list of two has gains 1 and 1/log2(3).
        ("ndcg@2", [7, 1, 8], [7, 8, 3], 1 / (1 + 1 / math.log2(3))),
        ("ndcg@3", [7, 1, 8], [7, 8, 3], 1.5 / (1 + 1 / math.log2(3) + 0.5)),
        ("recall@1", [7, 1, 8], [7, 8, 3], 1 / 3),
        ("recall@3", [7, 1, 8], [7, 8, 3], 2 / 3),
        ("mrr@3", [1, 8, 7], [7, 8], 0.5),
        ("mrr@1", [1, 8, 7], [7, 8], 0.0),
        ("recall@3", [7, -1, -1], [7], 1.0),
        ("ndcg@3", [-1, -1, -1], [0], 0.0),
        ("recall@3", [0, 1, 2], [99], 0.0),
    ],
)
def test_values_by_hand(metric, found, targets, value):
    assert one(metric, found, targets) == pytest.approx(value)


lists = st.permutations(range(ITEMS)).flatmap(
    lambda order: st.tuples(st.just(order), st.sets(st.integers(0, ITEMS - 1), min_size=1, max_size=5))
)


@given(lists, st.integers(1, ITEMS))
def test_ndcg_is_that_of_scikit_learn(case, k):
    order, targets = case
    relevant = np.zeros((1, ITEMS))
    relevant[0, list(targets)] = 1
    score = np.zeros((1, ITEMS))
    score[0, list(order)] = np.arange(ITEMS, 0, -1)
    assert one(f"ndcg@{k}", order, sorted(targets)) == pytest.approx(ndcg_score(relevant, score, k=k))


@given(st.lists(lists, min_size=1, max_size=6), st.integers(1, ITEMS), st.integers(0, ITEMS))
def test_a_batch_is_its_queries_one_by_one_and_padding_adds_nothing(cases, k, length):
    """The definition written out, on lists cut to `length` and padded."""
    found = np.array([[*order[:length], *[-1] * (ITEMS - length)] for order, _ in cases])
    targets = [sorted(wanted) for _, wanted in cases]
    values = quality.per_query(found, Ragged.from_lists(targets), [f"ndcg@{k}", f"recall@{k}", f"mrr@{k}"])
    for row, (line, wanted) in enumerate(zip(found.tolist(), targets, strict=True)):
        ranks = [rank for rank, item in enumerate(line[:k], 1) if item in wanted]
        ideal = sum(1 / math.log2(rank + 1) for rank in range(1, min(k, len(wanted)) + 1))
        assert values[f"ndcg@{k}"][row] == pytest.approx(sum(1 / math.log2(rank + 1) for rank in ranks) / ideal)
        assert values[f"recall@{k}"][row] == pytest.approx(len(ranks) / len(wanted))
        assert values[f"mrr@{k}"][row] == pytest.approx(1 / ranks[0] if ranks else 0)


def test_padding_is_not_the_last_item_of_the_query_before():
    targets = Ragged.from_lists([[3], [0]])
    values = quality.per_query(np.array([[0, 1], [-1, -1]]), targets, ["recall@2"])
    assert values["recall@2"].tolist() == [0, 0]


def test_queries_are_averaged_within_users_first():
    values = quality.by_user({"ndcg@10": np.array([1.0, 0.0, 0.5, 1.0])}, np.array([4, 4, 4, 1], np.int32))
    assert values["ndcg@10"].tolist() == [1.0, 0.5]


def test_coverage_and_popularity_leave_padding_out():
    found = np.array([[0, 1], [0, -1]])
    values = quality.beyond_accuracy(found, 4, np.array([6, 2, 1, 1]))
    assert values["coverage@10"] == 0.5
    assert values["popularity@10"] == pytest.approx((60 + 20 + 60) / 3)
    assert quality.beyond_accuracy(np.full((2, 2), -1), 4, np.zeros(4, np.int64)) == {"coverage@10": 0}


@pytest.mark.parametrize("metric", ["ndcg", "ndcg@", "ndcg@0", "auc@10", "ndcg@-1", "ndcg@1.5", "NDCG@10"])
def test_other_metrics_are_refused_by_name(metric):
    with pytest.raises(ConfigError, match=r"unknown quality metric .* allowed: ndcg@K"):
        quality.parse(metric)


def test_a_list_too_short_for_the_metric_is_refused():
    with pytest.raises(ConfigError, match=r"ndcg@5 needs lists of 5 items, these have 2"):
        one("ndcg@5", [1, 2], [1])


def test_the_share_found_leaves_out_requests_without_an_answer():
    found = [np.array([3, 1, 2]), np.array([-1, -1]), np.array([5]), np.array([7, -1])]
    wanted = [np.array([1, 9]), np.array([4]), np.array([-1]), np.array([7, -1])]
    assert quality.share_found(found, wanted) == 0.75
    assert quality.share_found([np.array([-1])], [np.array([-1])]) == 0

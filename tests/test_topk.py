"""Masking and selection, against the plainest way to say it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recfit.topk import best, first, top_k

NUMBERS = st.sampled_from([-np.inf, -2.0, -1.0, 0.0, 0.5, 0.5, 3.0, np.nan])


@given(st.lists(NUMBERS, min_size=1, max_size=40), st.integers(1, 50))
def test_top_k_is_a_stable_sort_of_the_numbers(scores: list[float], k: int) -> None:
    line = np.array(scores, np.float32)
    rows, best = top_k(line, k)
    wanted = sorted((row for row, score in enumerate(scores) if score > -np.inf), key=lambda row: (-scores[row], row))[
        :k
    ]
    assert rows.tolist() == wanted
    assert best.tolist() == line[wanted].tolist()


@given(
    st.lists(NUMBERS, min_size=1, max_size=60),
    st.lists(NUMBERS, min_size=1, max_size=7),
    st.integers(1, 12),
    st.integers(1, 40),
)
def test_groups_of_many_scores_hide_none(head: list[float], fill: list[float], group: int, k: int) -> None:
    """Peaks first, whatever the scores look like: constants, steps, NaN, a tail that fits in no group."""
    line = np.array(head + fill * 20, np.float32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("recfit.topk.MANY", 1)
        patch.setattr("recfit.topk.GROUP", group)
        rows, values = top_k(line, k)
    wanted = sorted((row for row in range(len(line)) if line[row] > -np.inf), key=lambda row: (-line[row], row))[:k]
    assert rows.tolist() == wanted
    assert values.tolist() == line[wanted].tolist()


def test_many_scores() -> None:
    line = np.random.default_rng(0).standard_normal(50_007).astype(np.float32)
    assert top_k(line, 25)[0].tolist() == np.argsort(-line, kind="stable")[:25].tolist()


def test_ties_go_to_the_lower_row() -> None:
    assert top_k(np.zeros(1000, np.float32), 3)[0].tolist() == [0, 1, 2]


def test_the_scores_are_left_as_they_are() -> None:
    scores = np.array([1, np.nan, 3], np.float32)
    top_k(scores, 2)
    np.testing.assert_array_equal(scores, np.array([1, np.nan, 3], np.float32))


def test_the_best_of_every_line_without_what_is_gone() -> None:
    scores = np.arange(10, dtype=np.float32).reshape(2, 5)
    found = best(scores, 5, [np.array([4, 4, 0], np.int32), np.array([], np.int32)])
    assert [rows.tolist() for rows, _ in found] == [[3, 2, 1], [4, 3, 2, 1, 0]]
    assert found[1][1].tolist() == [9, 8, 7, 6, 5]


@pytest.mark.parametrize(("k", "found"), [(1, [0]), (2, [0, 3]), (9, [0, 3, 4])])
def test_first_skips_what_is_gone_and_padding(k: int, found: list[int]) -> None:
    items = np.array([7, 2, 5, 9, 1, -1, -1], np.int32)
    assert first(items, k, np.array([5, 2], np.int32), np.array([], np.int32)) == found

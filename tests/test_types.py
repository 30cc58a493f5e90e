"""The nouns: lists of rows in two arrays, and histories out of events."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recfit import types
from recfit.types import Interactions, Queries, Ragged, Rows

LISTS = st.lists(st.lists(st.integers(0, 2**31 - 2), max_size=6), max_size=8)


def plain(ragged: Ragged) -> list[list[int]]:
    return [part.tolist() for part in ragged]


@given(LISTS)
def test_ragged_gives_the_lists_back(lists: list[list[int]]) -> None:
    ragged = Ragged.from_lists(lists)
    assert plain(ragged) == lists
    assert len(ragged) == len(lists)
    assert ragged.sizes.tolist() == [len(part) for part in lists]
    assert (ragged.indptr.dtype, ragged.values.dtype) == (np.int64, np.int32)


@given(LISTS, st.integers(0, 4))
def test_last_keeps_the_newest(lists: list[list[int]], n: int) -> None:
    assert plain(Ragged.from_lists(lists).last(n)) == [part[max(0, len(part) - n) :] for part in lists]


@given(LISTS, st.integers(1, 5))
def test_padded_is_tokens_with_the_newest_last(lists: list[list[int]], length: int) -> None:
    wanted = [[0] * max(0, length - len(part)) + [row + 1 for row in part[-length:]] for part in lists]
    tokens = Ragged.from_lists(lists).padded(length)
    assert (tokens.tolist(), tokens.shape, tokens.dtype) == (wanted, (len(lists), length), np.int64)


def test_take_follows_the_order_asked_for() -> None:
    ragged = Ragged.from_lists([[1, 2], [], [3]])
    assert plain(ragged.take(np.array([2, 0, 0]))) == [[3], [1, 2], [1, 2]]
    queries = Queries(np.array([7, 8, 9], np.int32), ragged, Ragged.from_lists([[4], [5], [6]]))
    taken = queries.take(np.array([2, 1]))
    assert (taken.user.tolist(), plain(taken.history), plain(taken.targets)) == ([9, 8], [[3], []], [[6], [5]])


def events(user: list[int], item: list[int], n_users: int) -> Interactions:
    rows: list[Rows] = [np.array(part, np.int32) for part in (user, item)]
    count = len(user)
    ids = tuple(f"u{row}" for row in range(n_users)), tuple("abcdef")
    return Interactions("x", *rows, np.ones(count, np.float32), np.zeros(count), *ids)


def test_histories_keep_the_order_of_events_and_users_without_any() -> None:
    found = events([2, 0, 2, 0, 2], [5, 1, 3, 0, 4], n_users=4)
    assert plain(found.histories()) == [[1, 0], [], [5, 3, 4], []]
    assert (len(found), found.n_users, found.n_items) == (5, 4, 6)


@pytest.mark.parametrize("error", [e for e in vars(types).values() if isinstance(e, type) and issubclass(e, Exception)])
def test_errors_are_recfits_own_and_leave_with_a_code(error: type[types.RecfitError]) -> None:
    assert issubclass(error, types.RecfitError)
    assert error.exit_code == (3 if error is types.Infeasible else 2)

"""States are numbers that stand for the newest items, and nothing else stands for the same number."""

from __future__ import annotations

from itertools import product

import numpy as np

from recfit.states import items_of, most_depth, most_frequent, state_of, states
from recfit.types import Ragged


def rows(*values: int) -> np.ndarray[tuple[int], np.dtype[np.int32]]:
    return np.array(values, np.int32)


def test_a_state_is_the_newest_items_in_their_order() -> None:
    assert state_of(rows(4, 1, 2), 2, 5) == state_of(rows(1, 2), 2, 5) != state_of(rows(2, 1), 2, 5)
    assert items_of(state_of(rows(4, 1, 2), 2, 5), 5) == [1, 2]
    assert items_of(state_of(rows(0), 3, 5), 5) == [0]
    assert state_of(rows(), 3, 5) == 0


def test_different_states_have_different_numbers() -> None:
    histories = [rows(*part) for length in range(4) for part in product(range(4), repeat=length)]
    assert len({state_of(history, 3, 4) for history in histories}) == len(histories)


def test_states_of_histories_are_those_of_every_prefix() -> None:
    draws = np.random.default_rng(0)
    histories = Ragged.from_lists([draws.integers(0, 9, size) for size in (0, 1, 5, 2, 0, 7)])
    for depth in (1, 2, 3):
        wanted = [state_of(part[: end + 1], depth, 9) for part in histories for end in range(len(part))]
        assert states(histories, depth, 9).tolist() == wanted


def test_a_deepest_state_still_fits() -> None:
    for n_items in (1, 40, 1682, 10**6):
        depth = most_depth(n_items)
        assert state_of(np.full(depth, n_items - 1, np.int32), depth, n_items) <= np.iinfo(np.int64).max
        last = Ragged.from_lists([np.full(depth, n_items - 1, np.int32)])
        assert items_of(int(states(last, depth, n_items)[-1]), n_items) == [n_items - 1] * depth


def test_the_most_frequent_are_few_and_ordered() -> None:
    assert most_frequent(np.array([1, 5, 5, 7]), 0.5).tolist() == [1, 3]
    assert most_frequent(np.array([1, 5]), 0.01).tolist() == [1]
    assert most_frequent(np.array([], np.int64), 0.5).tolist() == []

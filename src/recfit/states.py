"""Last-seen states: the newest items of a history as one number, and the most frequent of many keys. NumPy only.

A state is written in base n_items + 1 with tokens (row + 1) as digits, the newest item last: a history shorter than
`depth` is a state of its own, and 0 is no history.
"""

from __future__ import annotations

import numpy as np

from recfit.types import IntArray, Ragged, Rows

LARGEST = 2**63


def most_depth(n_items: int) -> int:
    """How many items of a catalogue of `n_items` fit in one number of 63 bits."""
    depth = 1
    while (n_items + 1) ** (depth + 1) <= LARGEST:
        depth += 1
    return depth


def state_of(history: Rows, depth: int, n_items: int) -> int:
    """The state of a history, oldest first: its newest `depth` items."""
    state = 0
    for row in history[-depth:].tolist():
        state = state * (n_items + 1) + row + 1
    return state


def items_of(state: int, n_items: int) -> list[int]:
    """The rows that `state` is made of, oldest first."""
    rows = []
    while state:
        state, token = divmod(state, n_items + 1)
        rows.append(token - 1)
    return rows[::-1]


def states(histories: Ragged, depth: int, n_items: int) -> IntArray:
    """The state after every event of `histories`, in their order."""
    tokens = histories.values.astype(np.int64) + 1
    place = np.arange(len(tokens)) - np.repeat(histories.indptr[:-1], histories.sizes)
    out = tokens.copy()
    for back in range(1, depth):
        there = np.flatnonzero(place >= back)
        out[there] += tokens[there - back] * (n_items + 1) ** back
    return out


def most_frequent(counts: IntArray, share: float) -> IntArray:
    """Positions of the largest `share` of `counts` (one at least, where there is any), ascending; ties go to the first."""
    most = max(1, round(share * len(counts)))
    return np.sort(np.argsort(-counts, kind="stable")[:most])

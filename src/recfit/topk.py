"""Selection: mask what must not be shown, keep the best. Ties go to the lower row, so that every format agrees."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

import numpy as np

from recfit.types import FloatArray, IntArray, Rows

Found = tuple[IntArray, FloatArray]
"""Rows and scores of items, best first."""


def best(scores: FloatArray, k: int, gone: Sequence[Rows]) -> list[Found]:
    """The `k` best of every line of `scores` [B, n] that are not in its `gone`, whose scores are overwritten."""
    found = []
    for line, rows in zip(scores, gone, strict=True):
        line[rows] = -np.inf
        found.append(top_k(line, k))
    return found


def top_k(scores: FloatArray, k: int) -> Found:
    """Rows and scores of the `k` >= 1 highest scores [n], best first; items at -inf or NaN never appear."""
    if k < len(scores):
        kth = np.partition(scores, len(scores) - k)[len(scores) - k]
        rows = (scores >= kth).nonzero()[0]
        if len(rows) < k:  # only NaN, which sorts above every number, leaves fewer
            return top_k(np.where(np.isnan(scores), -np.inf, scores), k)
    else:
        rows = np.arange(len(scores))
    # `rows` ascend, so a stable sort leaves equal scores in row order.
    rows = rows[np.argsort(-scores[rows], kind="stable")[:k]]
    values = scores[rows]
    alive = values > -np.inf
    return rows[alive], values[alive]


def first(items: Rows, k: int, *gone: Rows) -> list[int]:
    """Positions of the first `k` of `items` that are in none of `gone`; -1 is no item."""
    out = {-1}.union(*(part.tolist() for part in gone))
    return list(islice((at for at, row in enumerate(items.tolist()) if row not in out), k))

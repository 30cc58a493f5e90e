"""Selection: mask what must not be shown, keep the best. Ties go to the lower row, so that every format agrees."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

import numpy as np

from recfit.types import FloatArray, IntArray, Rows

# Above so many scores their peaks, of groups of so many, are looked at first.
MANY, GROUP = 20_000, 64

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
        rows = _promising(scores, k)
        if len(rows) < k:  # only NaN, which sorts above every number, leaves fewer
            return top_k(np.where(np.isnan(scores), -np.inf, scores), k)
    else:
        rows = np.arange(len(scores))
    # `rows` ascend, so a stable sort leaves equal scores in row order.
    rows = rows[np.argsort(-scores[rows], kind="stable")[:k]]
    values = scores[rows]
    alive = values > -np.inf
    return rows[alive], values[alive]


def _promising(scores: FloatArray, k: int) -> IntArray:
    """Ascending rows that hold the `k` highest scores.

    Of many scores only the peaks of groups are partitioned: the k-th highest peak is at most the k-th highest score, so
    that only the groups which reach it need a look. 8 times less than a partition of a million scores.
    """
    n = len(scores)
    width = n // GROUP  # group i: scores i, i + width, i + 2 width, ...
    if n < MANY or 2 * k > width:
        kth = np.partition(scores, n - k)[n - k]
        rows: IntArray = (scores >= kth).nonzero()[0]
        return rows
    peaks = np.fmax.reduce(scores[: width * GROUP].reshape(GROUP, width), axis=0)
    least = np.partition(peaks, width - k)[width - k]
    groups = (peaks >= least).nonzero()[0]
    members = (np.arange(0, width * GROUP, width)[:, None] + groups).ravel()
    rows = np.concatenate((members, np.arange(width * GROUP, n)))
    rows = rows[scores[rows] >= least]
    return rows


def first(items: Rows, k: int, *gone: Rows) -> list[int]:
    """Positions of the first `k` of `items` that are in none of `gone`; -1 is no item."""
    out = {-1}.union(*(part.tolist() for part in gone))
    return list(islice((at for at, row in enumerate(items.tolist()) if row not in out), k))

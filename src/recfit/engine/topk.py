"""Selection: mask what must not be shown, keep the best. Ties go to the lower row, so that every format agrees."""

from __future__ import annotations

import numpy as np

from recfit.types import FloatArray, IntArray, Rows


def mask(scores: FloatArray, *rows: Rows) -> None:
    """Give the items at `rows` the score -inf, in place."""
    for part in rows:
        if len(part):
            scores[part] = -np.inf


def top_k(scores: FloatArray, k: int) -> tuple[IntArray, FloatArray]:
    """Rows and scores of the `k` highest scores [n], best first; items at -inf never appear."""
    if k < len(scores):
        kth = np.partition(scores, len(scores) - k)[len(scores) - k]
        rows = np.flatnonzero(scores >= kth)
    else:
        rows = np.arange(len(scores))
    # `rows` ascend, so a stable sort leaves equal scores in row order.
    rows = rows[np.argsort(-scores[rows], kind="stable")][:k]
    best = scores[rows]
    alive = best > -np.inf
    return rows[alive], best[alive]

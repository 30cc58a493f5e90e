"""Weights as codes into a book of their own numbers, found by k-means: `min sum_i (w_i - c[code_i])^2` (deep compression:
Han et al., arXiv 1510.00149, section 3, with its linear start, which keeps the few large numbers).

Saves bytes on disk and nothing else: the graph is float32 again as soon as it is opened.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from recfit.graphs import _codes
from recfit.graphs._feed import Feed
from recfit.options import check_ranges
from recfit.types import FloatArray

ROUNDS = 50

weights = _codes.weights


@dataclass(frozen=True)
class Config:
    """2, 4 or 8 `bits` a number; `groups` of channels have books of their own, as many as divide the channels."""

    bits: int = 4
    groups: int = 1
    skip: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _codes.check_bits("graph.codebook.bits", self.bits, (2, 4, 8))
        check_ranges("graph.codebook", self, groups=(1, 1e6))


def convert(path: Path, config: Config, feed: Feed) -> None:
    _codes.convert(path, config.skip, config.bits, config.groups, partial(_means, count=2**config.bits))


def _means(values: FloatArray, count: int) -> FloatArray:
    """Lloyd's algorithm on a line, where a cluster is a run of the sorted numbers: `count` means, ascending."""
    ordered = np.sort(values)
    sums = np.concatenate(([0.0], np.cumsum(ordered, dtype=np.float64)))
    centres = np.linspace(ordered[0], ordered[-1], count, dtype=np.float64)
    for _ in range(ROUNDS):
        ends = [0, *np.searchsorted(ordered, (centres[1:] + centres[:-1]) / 2), len(ordered)]
        sizes = np.diff(ends)
        moved = np.where(sizes > 0, np.diff(sums[ends]) / np.maximum(sizes, 1), centres)
        if np.array_equal(moved, centres):
            break
        centres = moved
    return centres.astype(np.float32)

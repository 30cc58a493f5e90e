"""Weights as powers of two with a sign, or 0: `w ~ +-2^e`, e one of the highest that the layer has (incremental network
quantization: Zhou et al., arXiv 1702.03044). Hardware that shifts in the place of multiplying gains; a CPU does not.

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

weights = _codes.weights


@dataclass(frozen=True)
class Config:
    """2 or 4 `bits` a number, more would only add smaller powers; `groups` of channels have exponents of their own, as
    many as divide the channels."""

    bits: int = 4
    groups: int = 1
    skip: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _codes.check_bits("graph.power_of_two.bits", self.bits, (2, 4))
        check_ranges("graph.power_of_two", self, groups=(1, 1e6))


def convert(path: Path, config: Config, feed: Feed) -> None:
    _codes.convert(path, config.skip, config.bits, config.groups, partial(_powers, count=2**config.bits))


def _powers(values: FloatArray, count: int) -> FloatArray:
    """The book of `count` numbers that is nearest to `values` in the least squares, by its highest power: with few
    numbers it pays to cut off the largest weights."""
    peak = float(np.abs(values).max()) or 1.0
    first = np.floor(np.log2(peak * 4 / 3))  # the power nearest to the largest
    books = [_book(first - lower, count) for lower in range(4)]
    return min(books, key=lambda book: float(np.square(values - book[_codes.nearest(values, book)]).sum()))


def _book(highest: float, count: int) -> FloatArray:
    """0 and the powers around it, ascending; the positive side has one more."""
    # 2^-126 is the smallest power that float32 holds in full.
    powers = 2.0 ** np.maximum(highest - np.arange(count // 2), -126.0)
    return np.concatenate((-powers[: count // 2 - 1], [0.0], powers[::-1])).astype(np.float32)

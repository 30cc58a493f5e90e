"""Intervals and verdicts. The unit is the user: differences are paired, and there are three answers, not two."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

Values = npt.NDArray[np.float64]
CONFIDENCE = 0.95
_Z = NormalDist().inv_cdf(0.5 + CONFIDENCE / 2)


@dataclass(frozen=True)
class Interval:
    """A mean with its 95 % interval (normal approximation over users)."""

    mean: float
    low: float
    high: float

    @property
    def half(self) -> float:
        return (self.high - self.low) / 2


def interval(values: Values) -> Interval:
    """The mean of `values` [users] and its interval; a single user gives an infinitely wide one."""
    mean = float(np.mean(values))
    half = float(_Z * np.std(values, ddof=1) / np.sqrt(len(values))) if len(values) > 1 else float("inf")
    return Interval(mean, mean - half, mean + half)


def paired(new: Values, base: Values) -> Interval:
    """The mean difference `new - base` over the same users."""
    return interval(new - base)


def keeps(new: Values, base: Values, share: float) -> str:
    """Does `new` keep at least `share` of `base`'s mean? `held`, `broken` or `undecided`.

    Judged on the paired values `new - share * base`, so that the uncertainty of the base is part of the answer.
    """
    return verdict(interval(new - share * base), 0.0)


def verdict(found: Interval, floor: float) -> str:
    """`held` if the whole interval is at or above the floor, `broken` if it is below, else `undecided`."""
    if found.low >= floor:
        return "held"
    return "broken" if found.high < floor else "undecided"


def percentile_interval(samples: Values, q: float) -> Interval:
    """The `q`-th percentile of `samples` with its distribution-free 95 % interval from order statistics
    (David & Nagaraja, Order Statistics, 7.1); without bound on a side where the samples are too few to give one."""
    n, p = len(samples), q / 100
    spread = _Z * np.sqrt(n * p * (1 - p))
    ordered = np.concatenate(([-np.inf], np.sort(samples), [np.inf]))  # ordered[i]: the i-th smallest, from 1
    low, high = max(0, math.floor(n * p - spread) + 1), min(n + 1, math.ceil(n * p + spread) + 1)
    return Interval(float(np.percentile(samples, q)), float(ordered[low]), float(ordered[high]))

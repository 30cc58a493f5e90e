"""What an experiment says: lift with its interval, whether users were spread as planned, and a p-value that may be looked at
every day.

The unit is the user, since requests of one user are alike: a rate is feedback over requests, each summed by user, and its
variance is that of a ratio of means (the delta method: Deng, Knoblich and Lu, KDD 2018, arXiv 1803.06336).
"""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from recfit.types import DataError

Z = 1.959964
SHIFT = 0.05
"""The difference, as a share of the control's rate, that the sequential test is most alert to (the sd of its mixture)."""
SUSPECT = 0.001
"""p-value of the counts of users below which an experiment is not to be trusted (Fabijan et al., KDD 2019)."""

Counts = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Arm:
    """Users, requests, requests with feedback, and their share with its 95 % interval (NaN where nobody was served)."""

    name: str
    users: int
    requests: int
    hits: int
    rate: float
    low: float
    high: float


@dataclass(frozen=True)
class Comparison:
    """An arm against the control: `lift` is the relative difference of the rates with its 95 % interval. `p_always` may be
    looked at as often as one likes (mixture sequential ratio test: Johari et al., KDD 2017, arXiv 1512.04922)."""

    arm: str
    lift: float
    low: float
    high: float
    p_always: float


@dataclass(frozen=True)
class Report:
    """`p_ratio` is how likely the counts of users are if they were spread by the weights: those of a plan, or equal ones for
    the arms in the log, which says nothing of one that was never served (`planned` is false)."""

    experiment: str
    kind: str
    arms: tuple[Arm, ...]
    comparisons: tuple[Comparison, ...]
    p_ratio: float
    planned: bool

    @property
    def trusted(self) -> bool:
        return not self.p_ratio < SUSPECT


def report(path: Path, experiment: str, kind: str = "click", weights: Mapping[str, float] | None = None) -> Report:
    """The report of an experiment out of the exposure log at `path`; a request counts once, however often it was followed by
    feedback of that `kind`. The arms are those of `weights`, served or not, the first is the control; without weights they
    are those of the log, in the order in which they came up, with equal ones. Raises `DataError`."""
    found = _by_user(path, experiment, kind)
    names = [*(weights or found)]
    served = [name for name in names if name in found]
    if len(names) < 2 or not served:
        known = ", ".join(found) or "none"
        raise DataError(
            f"{path} has exposures of {len(served)} arms of experiment {experiment!r} ({known}); two are needed"
        )
    found |= {name: (np.empty(0), np.empty(0)) for name in names if name not in found}
    arms = [_arm(name, *found[name]) for name in names]
    control, *others = arms
    compared = tuple(_compare(control, other, found[control.name], found[other.name]) for other in others)
    planned = [(weights or {}).get(name, 1.0) for name in names]
    p_ratio = _p_ratio([arm.users for arm in arms], planned)
    return Report(experiment, kind, tuple(arms), compared, p_ratio, weights is not None)


def _by_user(path: Path, experiment: str, kind: str) -> dict[str, tuple[Counts, Counts]]:
    """By arm, in the order in which they came up: requests and requests with feedback, of each user."""
    if not path.is_file():
        raise DataError(f"there is no exposure log {path}; `recfit serve --exposures` writes one")
    query = """
        SELECT arm, COUNT(DISTINCT request), COUNT(DISTINCT hit), MIN(first) FROM (
            SELECT e.arm, e.user, e.request, e.at AS first, f.request AS hit FROM exposures e
            LEFT JOIN feedback f ON f.request = e.request AND f.kind = ? WHERE e.experiment = ?
        ) GROUP BY arm, user ORDER BY MIN(first)"""
    try:
        with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as file:
            rows = file.execute(query, (kind, experiment)).fetchall()
    except sqlite3.Error as error:
        raise DataError(f"{path} is no exposure log: {error}") from error
    names = dict.fromkeys(row[0] for row in rows)
    return {
        name: (
            np.array([row[1] for row in rows if row[0] == name], np.float64),
            np.array([row[2] for row in rows if row[0] == name], np.float64),
        )
        for name in names
    }


def _arm(name: str, requests: Counts, hits: Counts) -> Arm:
    rate, spread = _rate(requests, hits), Z * math.sqrt(_variance(requests, hits))
    return Arm(name, len(requests), int(requests.sum()), int(hits.sum()), rate, rate - spread, rate + spread)


def _rate(requests: Counts, hits: Counts) -> float:
    return float(hits.sum() / requests.sum()) if len(requests) else math.nan


def _variance(requests: Counts, hits: Counts) -> float:
    """Of the ratio of two means over users: `var(hits - rate * requests) / (n * mean(requests)^2)`."""
    if len(requests) < 2:
        return math.inf
    left = hits - _rate(requests, hits) * requests
    return float(left.var(ddof=1) / len(requests) / requests.mean() ** 2)


def _compare(control: Arm, arm: Arm, old: tuple[Counts, Counts], new: tuple[Counts, Counts]) -> Comparison:
    if not control.hits or not arm.requests:
        return Comparison(arm.name, math.nan, -math.inf, math.inf, 1.0)
    ratio, var_old, var_new = arm.rate / control.rate, _variance(*old), _variance(*new)
    # The variance of a ratio of two independent rates.
    spread = Z * math.sqrt(var_new + ratio**2 * var_old) / control.rate
    always = _p_always(arm.rate - control.rate, var_old + var_new, SHIFT * control.rate)
    return Comparison(arm.name, ratio - 1, ratio - 1 - spread, ratio - 1 + spread, always)


def _p_always(difference: float, variance: float, shift: float) -> float:
    """1 / the likelihood ratio of a normal mixture of differences with the standard deviation `shift` against none."""
    if not 0 < variance < math.inf:
        return 1.0
    total = variance + shift**2
    log_ratio = 0.5 * math.log(variance / total) + shift**2 * difference**2 / (2 * variance * total)
    return min(1.0, math.exp(-log_ratio))


def _p_ratio(users: Sequence[int], weights: Sequence[float]) -> float:
    """Pearson's chi-square test of the counts against the weights."""
    expected = np.array(weights) / sum(weights) * sum(users)
    statistic = float(((np.array(users) - expected) ** 2 / expected).sum())
    return _chi_square_tail(statistic, len(users) - 1)


def _chi_square_tail(value: float, degrees: int) -> float:
    """P(chi-square > value): the series of the regularized incomplete gamma function."""
    if value <= 0:
        return 1.0
    shape, half = degrees / 2, value / 2
    term = total = 1 / shape
    for step in range(1, 10_000):
        term *= half / (shape + step)
        total += term
        if term < total * 1e-15:
            break
    return max(0.0, 1 - total * math.exp(-half + shape * math.log(half) - math.lgamma(shape)))


def text(found: Report) -> str:
    """The report for people."""
    lines = [f"{found.experiment}: requests followed by {found.kind!r}, the unit is the user"]
    lines.append(f"{'arm':24} {'users':>9} {'requests':>10} {'hits':>9}   rate, 95 % interval")
    for arm in found.arms:
        interval = f"{arm.rate:.4f} [{arm.low:.4f}, {arm.high:.4f}]"
        lines.append(f"{arm.name:24} {arm.users:9,} {arm.requests:10,} {arm.hits:9,}   {interval}")
    control = found.arms[0].name
    for one in found.comparisons:
        verdict = "undecided" if one.low <= 0 <= one.high else "better" if one.lift > 0 else "worse"
        lift = f"{one.lift:+.1%} [{one.low:+.1%}, {one.high:+.1%}]"
        lines.append(
            f"{one.arm} against {control}: {lift}, {verdict}; p {one.p_always:.3g}, however often it was looked at"
        )
    if not found.planned:
        assumed = f"users are spread evenly, no arm is missing, {control} is the control"
        lines.append(f"assumed, since no plan was given: {assumed}; --plan FILE says how it is")
    if not found.trusted:
        why = f"users are not spread as planned (p = {found.p_ratio:.2g}), something loses those of one arm"
        lines.append(f"WARNING: {why}; don't trust this")
    return "\n".join(lines)

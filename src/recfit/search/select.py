"""Frontier and choice: pure functions of a finished study. No training, no measuring."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from recfit.search.budget import Budget, Measured, shortfall
from recfit.search.study import Candidate, Study
from recfit.types import Infeasible

# What two measurements of one bundle may differ by, as a share: more than this is a difference whatever the interval says.
BANDS = {"p99_ms": 0.05, "core_hours_per_million": 0.05, "memory_mb": 0.01, "bundle_mb": 0.01}


def on_front(loss: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    """Which rows of `loss` [candidates, metrics] (smaller is better) no other row dominates."""
    a, b = loss[:, None], loss[None]
    dominated = np.all(b <= a, axis=-1) & np.any(b < a, axis=-1)
    front: npt.NDArray[np.bool_] = ~np.any(dominated, axis=1)
    return front


def hypervolume(loss: npt.NDArray[np.float64], reference: npt.NDArray[np.float64]) -> float:
    """The volume between the rows of `loss` [candidates, metrics] (smaller is better) and the `reference` point that all
    of them should beat, sliced along the last metric (Zitzler & Thiele, PPSN 1998)."""
    inside = loss[np.all(loss < reference, axis=1)] if len(loss) else loss
    if not len(inside):
        return 0.0
    if inside.shape[1] == 1:
        return float(reference[0] - inside.min())
    front = inside[on_front(inside)]
    front = front[np.argsort(front[:, -1])]
    heights = np.diff(front[:, -1], append=reference[-1])
    slices = (hypervolume(front[: count + 1, :-1], reference[:-1]) for count in range(len(front)))
    return float(sum(height * part for height, part in zip(heights, slices, strict=True) if height > 0))


def frontier(candidates: Sequence[Candidate], budget: Budget) -> list[Candidate]:
    """The non-dominated candidates in all that the choice looks at: quality, p99, memory, bundle, and whatever else the
    budget limits or makes as small as it can."""
    if not candidates:
        return []
    limited = [limit.metric for limit in budget.limits if not limit.is_quality]
    costs = ["p99_ms", "memory_mb", "bundle_mb", budget.objective_metric, *limited]
    signs = {metric: -1.0 if metric == "qps" else 1.0 for metric in costs} | {budget.quality_metric: -1.0}
    loss = np.array([[sign * found.metrics[metric] for metric, sign in signs.items()] for found in candidates])
    return [found for found, front in zip(candidates, on_front(loss), strict=True) if front]


@dataclass(frozen=True)
class Miss:
    """The candidate that comes closest to an infeasible budget, and the limit that binds it most (`broken, undecided`)."""

    candidate: Candidate
    binding: str
    state: str
    text: str


@dataclass(frozen=True)
class Choice:
    """The best feasible candidate, or the nearest miss; the verdicts behind it, by candidate id; and what would have been
    chosen if limits that are undecided counted, where that is better. The `leader` is the best in the objective alone, which
    the chosen is tied with."""

    chosen: Candidate | None
    nearest: Miss | None
    verdicts: Mapping[str, Mapping[str, str]]
    undecided: Candidate | None = None
    leader: Candidate | None = None


def choose(study: Study, budget: Budget) -> Choice:
    """The best feasible candidate; the original is one of them."""
    done = study.done()
    measured = {found.id: study.measured(found) for found in done}
    original = measured[study.facts["original"]]
    verdicts = {found.id: budget.verdicts(measured[found.id], original) for found in done}
    feasible = [found for found in done if budget.holds(verdicts[found.id])]
    if feasible:
        chosen = best(feasible, budget)
        leader = min(feasible, key=lambda found: budget.loss(found.metrics))
        open_ = best([found for found in done if "broken" not in verdicts[found.id].values()], budget)
        better = open_ not in feasible and budget.loss(open_.metrics) < budget.loss(chosen.metrics)
        return Choice(chosen, None, verdicts, open_ if better else None, leader)
    return Choice(None, _nearest(done, measured, original, budget, verdicts), verdicts)


def best(some: Sequence[Candidate], budget: Budget) -> Candidate:
    """The best in the objective; of those tied with it the best quality, of equal quality the smallest bundle, and of these
    the lowest p99, then the shortest recipe. `best` in `report/page/choice.js` is the same rule."""
    for metric in (budget.objective_metric, budget.quality_metric, "bundle_mb"):
        some = _tied(some, metric)
    return min(some, key=lambda found: (found.metrics["p99_ms"], len(found.recipe)))


def _tied(some: Sequence[Candidate], metric: str) -> list[Candidate]:
    """Those of `some` that measuring cannot tell from the best in `metric`: within its 95 % interval, where there is one, and
    no further off than `BANDS` says. Quality has no band: all are asked by the same users."""
    if metric not in BANDS:
        most = max(found.metrics[metric] for found in some)
        return [found for found in some if found.metrics[metric] == most]
    best = min(some, key=lambda found: found.metrics[metric])
    value = best.metrics[metric]
    _, high = best.intervals.get(metric, (value, math.inf))
    bound = min(high, value * (1 + BANDS[metric]))
    return [found for found in some if found.metrics[metric] <= max(value, bound)]


def _nearest(
    done: Sequence[Candidate],
    measured: Mapping[str, Measured],
    original: Measured,
    budget: Budget,
    verdicts: Mapping[str, Mapping[str, str]],
) -> Miss:
    """The smallest worst shortfall first, then the fewest limits that don't hold, then the objective."""

    def misses(found: Candidate) -> dict[str, float]:
        return {
            limit.metric: shortfall(limit, measured[found.id], original)
            for limit in budget.limits
            if not budget.accepts(verdicts[found.id][limit.metric])
        }

    def distance(found: Candidate) -> tuple[float, int, float]:
        gaps = misses(found)
        return max(gaps.values()), len(gaps), budget.loss(found.metrics)

    best = min(done, key=distance)
    gaps = misses(best)
    binding = max(gaps, key=lambda metric: gaps[metric])
    limit = next(limit for limit in budget.limits if limit.metric == binding)
    value, state = best.metrics[binding], verdicts[best.id][binding]
    return Miss(best, binding, state, f"{limit.text(original.metrics)}, the nearest has {value:.4g} ({state})")


def require(choice: Choice) -> Candidate:
    """The chosen candidate. Raises `Infeasible` with the nearest miss where there is none."""
    if choice.chosen is not None:
        return choice.chosen
    assert choice.nearest is not None
    miss = choice.nearest
    step = "Relax that limit or allow more candidates"
    if miss.state == "undecided":
        step = "More test users can decide it; accept_undecided = true (--accept-undecided) lets it count"
    raise Infeasible(
        f"no candidate holds every limit. The nearest is {miss.candidate.name!r}; what binds: {miss.text}. {step}"
    )

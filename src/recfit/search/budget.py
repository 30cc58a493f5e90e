"""The budget: limits, absolute or relative to the measured original, and one objective."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from recfit.measure import Samples, quality
from recfit.measure.statistics import Interval, interval, keeps, verdict
from recfit.types import ConfigError

COSTS = ("p50_ms", "p95_ms", "p99_ms", "memory_mb", "bundle_mb", "load_s")
OBJECTIVES = ("quality", "latency", "memory", "cost")


@dataclass(frozen=True)
class Limit:
    """`metric` must stay on the good side of `bound`; with `relative`, of `bound` times the original's value."""

    metric: str
    bound: float
    relative: bool = False

    @property
    def is_quality(self) -> bool:
        return "@" in self.metric

    @property
    def is_floor(self) -> bool:
        return self.is_quality or self.metric == "qps"

    def absolute(self, original: Mapping[str, float]) -> float:
        """The bound in the metric's own unit."""
        return self.bound * original[self.metric] if self.relative else self.bound

    def text(self, original: Mapping[str, float] | None = None) -> str:
        """`p99_ms <= 0.1x of the original (0.32)`."""
        sign = ">=" if self.is_floor else "<="
        if not self.relative:
            return f"{self.metric} {sign} {self.bound:.4g}"
        share = f"{self.bound * 100:.4g}%" if self.is_quality else f"{self.bound:.4g}x"
        value = "" if original is None else f" ({self.absolute(original):.4g})"
        return f"{self.metric} {sign} {share} of the original{value}"


@dataclass(frozen=True)
class Measured:
    """What limits are held against: values, intervals, and per-user quality values."""

    metrics: Mapping[str, float]
    intervals: Mapping[str, tuple[float, float]]
    users: Mapping[str, Samples]


def check(limit: Limit, found: Measured, original: Measured) -> str:
    """`held`, `broken` or `undecided`. Relative quality limits are judged on paired users, latency on its interval."""
    if limit.is_quality:
        new = found.users[limit.metric]
        if limit.relative:
            return keeps(new, original.users[limit.metric], limit.bound)
        return verdict(interval(new), limit.bound)
    value = found.metrics[limit.metric]
    low, high = found.intervals.get(limit.metric, (value, value))
    if limit.relative and found is original:
        low = high = value  # it is exactly 1x of itself, whatever its noise
    bound = limit.absolute(original.metrics)
    if limit.is_floor:
        return verdict(Interval(value, low, high), bound)
    return verdict(Interval(-value, -high, -low), -bound)


def shortfall(limit: Limit, found: Measured, original: Measured) -> float:
    """By which share of the bound the value misses it; 0 where it does not."""
    bound, value = limit.absolute(original.metrics), found.metrics[limit.metric]
    gap = bound - value if limit.is_floor else value - bound
    return max(0.0, gap / abs(bound)) if bound else max(0.0, gap)


@dataclass(frozen=True)
class Budget:
    """Limits and an objective: `quality` (the most of it), `latency` (least p99), `memory` or `cost` (least).

    `price` is the price of a core-hour, for the cost of a million requests in batches of the best size.
    `accept_undecided` lets the choice fall on candidates whose quality this data can't tell from the limit; by default
    only held limits count.
    """

    limits: tuple[Limit, ...] = ()
    objective: str = "latency"
    quality_metric: str = "ndcg@10"
    price: float = 0.04
    accept_undecided: bool = False

    @classmethod
    def of(cls, limits: Mapping[str, Any] | None = None, **settings: Any) -> Budget:
        """`Budget.of({"p99_ms": 2, "memory_mb": "0.5x", "ndcg@10": "99%"}, objective="memory")`."""
        return cls(tuple(parse_limit(metric, value) for metric, value in (limits or {}).items()), **settings)

    def __post_init__(self) -> None:
        if self.objective not in OBJECTIVES:
            raise ConfigError(f"unknown objective {self.objective!r}; allowed: {', '.join(OBJECTIVES)}")
        if self.price <= 0:
            raise ConfigError(f"price is {self.price}; pass the price of a core-hour, above 0")
        quality.parse(self.quality_metric)
        metrics = [limit.metric for limit in self.limits]
        if repeated := [metric for metric in metrics if metrics.count(metric) > 1]:
            raise ConfigError(f"{repeated[0]} has {metrics.count(repeated[0])} limits; keep the tighter one")

    @property
    def objective_metric(self) -> str:
        """The metric that the objective makes as large (quality) or as small as it can."""
        if self.objective == "quality":
            return self.quality_metric
        return {"latency": "p99_ms", "memory": "memory_mb", "cost": "core_hours_per_million"}[self.objective]

    def tolerance(self, original: Mapping[str, float]) -> float | None:
        """The share of the original's quality that the tightest limit on it lets go; None where there is no such limit."""
        kept = [
            limit.absolute(original) / max(original[limit.metric], 1e-9) for limit in self.limits if limit.is_quality
        ]
        return max(0.0, round(1 - max(kept), 6)) if kept else None

    def verdicts(self, found: Measured, original: Measured) -> dict[str, str]:
        """The answer of every limit; a metric that was not measured is refused."""
        wanted = [*(limit.metric for limit in self.limits), self.quality_metric, self.objective_metric]
        for metric in wanted:
            if metric not in found.metrics:
                raise ConfigError(
                    f"this study did not measure {metric}; it has {', '.join(sorted(found.metrics))}. "
                    "Choose among these, or start a study with this budget in another [search] directory"
                )
        return {limit.metric: check(limit, found, original) for limit in self.limits}

    def holds(self, verdicts: Mapping[str, str]) -> bool:
        """Whether a candidate with these verdicts may be chosen."""
        return all(self.accepts(verdicts[limit.metric]) for limit in self.limits)

    def accepts(self, state: str) -> bool:
        """Whether a limit with this verdict lets its candidate be chosen."""
        return state == "held" or (state == "undecided" and self.accept_undecided)

    def loss(self, metrics: Mapping[str, float]) -> float:
        """What the choice makes as small as it can."""
        value = metrics[self.objective_metric]
        return -value if self.objective == "quality" else value

    def priced(self, metrics: Mapping[str, float]) -> dict[str, float]:
        """`metrics`, with `cost_per_million` requests where the core-hours they take were measured."""
        hours = metrics.get("core_hours_per_million")
        return dict(metrics) if hours is None else {**metrics, "cost_per_million": hours * self.price}


def parse_limit(metric: str, value: Any) -> Limit:
    """A number is absolute; `"0.5x"` and `"50%"` are relative to the original."""
    known = (*COSTS, "qps")
    if "@" in metric:
        quality.parse(metric)
    elif metric not in known:
        near = difflib.get_close_matches(metric, known, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ConfigError(
            f"unknown limit {metric!r}{hint or ';'} allowed: {', '.join(known)} and ndcg@K, recall@K, mrr@K"
        )
    text = str(value).strip()
    try:
        if text.endswith("%"):
            limit = Limit(metric, float(text[:-1]) / 100, relative=True)
        elif text.endswith("x"):
            limit = Limit(metric, float(text[:-1]), relative=True)
        else:
            limit = Limit(metric, float(text))
    except ValueError:
        raise ConfigError(
            f"limit {metric} = {value!r} is not a number, a share of the original like '0.5x' or a percentage like '99%'"
        ) from None
    if not 0 < limit.bound < float("inf"):
        raise ConfigError(f"limit {metric} = {value!r} must be above 0 and finite")
    if limit.is_quality and not limit.relative and limit.bound > 1:
        raise ConfigError(
            f"limit {metric} = {value!r} is above 1, the most it can be; a share of the original is '95%'"
        )
    return limit

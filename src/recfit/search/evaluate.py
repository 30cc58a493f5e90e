"""Gates from cheap to costly. A candidate stops at the first broken limit; what it cost is recorded by stage."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from recfit import bundle as bundles
from recfit import measure
from recfit.measure import Measurement, Plan, quality
from recfit.measure.statistics import interval
from recfit.search.budget import Budget, Limit, Measured, check
from recfit.search.build import Job, Workshop, build
from recfit.search.isolate import Failed, isolated
from recfit.search.recipe import Recipe
from recfit.search.study import Candidate, Study
from recfit.types import IntArray, Queries, RecfitError

# The structure screen is short and untrained; it only drops what misses a limit by more than its own noise: the low
# end of the interval, where there is one, and this factor for what differs between two runs.
SCREEN = Plan(requests=300, blocks=6, warm=50, batches=())
SCREEN_SLACK = 1.25
SAMPLE = 1000
# Limits the screen can judge: weights don't change them.
STRUCTURAL = ("bundle_mb", "load_s", "memory_mb", "p50_ms", "p95_ms", "p99_ms")


@dataclass(frozen=True)
class Limits:
    """What the search itself may use."""

    memory_gb: float
    deadline: float  # time.monotonic()

    @property
    def seconds_left(self) -> float:
        return max(0.0, self.deadline - time.monotonic())


@dataclass
class Gates:
    """Measures candidates of one study against one budget, with `queries`."""

    study: Study
    budget: Budget
    workshop: Workshop
    limits: Limits
    plan: Plan
    queries: Queries
    popularity: IntArray
    _clock: dict[str, float] = field(default_factory=dict)

    def run(self, recipe: Recipe, *, gated: bool = True) -> Candidate:
        """Build and measure `recipe`, unless it falls at a gate, and record what became of it."""
        self._clock = {}
        try:
            candidate, users = self._measured(recipe, gated)
        except RecfitError as error:
            stage = next(reversed(self._clock), "build")
            limit = error.limit if isinstance(error, Failed) else ""
            candidate, users = self._row(recipe, "failed", stage, str(error), limit=limit), None
        if candidate.status != "done":  # it may be untrained, and nothing may serve it
            shutil.rmtree(self._bundle(recipe), ignore_errors=True)
        self.study.add(candidate, users)
        return candidate

    def _measured(self, recipe: Recipe, gated: bool) -> tuple[Candidate, Mapping[str, Any] | None]:
        if gated and (fallen := self._screen(recipe)):
            return fallen, None
        bundle = self._built(recipe, "train", structure_only=False)
        if gated and (fallen := self._sampled(recipe, bundle)):
            return fallen, None
        with self._stage("measure"):
            found = measure.measure(bundle, self.queries, self.popularity, self.plan, self.metrics)
        metrics = {**found.metrics, "core_hours_per_million": core_hours(found)}
        notes = bundles.read_manifest(bundle)["recipe"]["notes"]
        about = {"intervals": found.intervals, "protocol": found.protocol, "notes": notes}
        row = self._row(recipe, "done", "full", "", metrics=metrics, **about)
        return row, found.users

    @property
    def metrics(self) -> tuple[str, ...]:
        """The quality metrics to measure: the usual ones and those the budget names."""
        wanted = [limit.metric for limit in self.budget.limits if limit.is_quality]
        return tuple(dict.fromkeys([*quality.METRICS, self.budget.quality_metric, *wanted]))

    def _screen(self, recipe: Recipe) -> Candidate | None:
        """Size, load time, memory and latency of the untrained structure."""
        structural = [limit for limit in self.budget.limits if limit.metric in STRUCTURAL]
        original = self._original()
        if original is None or not structural or not any(step.trains for step in recipe.steps):
            return None
        bundle = self._built(recipe, "screen", structure_only=True)
        with self._stage("screen"):
            found = measure.latency([bundle], self.queries, SCREEN)[0]
        cost, intervals = found["metrics"], found["intervals"]
        for limit in structural:
            value = cost[limit.metric]
            low, _ = intervals.get(limit.metric, (value, value))
            if low > limit.absolute(original.metrics) * SCREEN_SLACK:
                reason = f"{limit.text(original.metrics)}; the untrained structure has {value:.4g}"
                stage = "size" if limit.metric == "bundle_mb" else "latency"
                return self._row(recipe, "screened out", stage, reason, metrics=cost, intervals=intervals)
        return None

    def _sampled(self, recipe: Recipe, bundle: Path) -> Candidate | None:
        """Quality on a sample of the users, where there are many more; out only if a limit is clearly broken."""
        original = self._original()
        floors = [limit for limit in self.budget.limits if limit.is_quality]
        users = np.unique(self.queries.user)
        if original is None or not floors or len(users) < 3 * SAMPLE:
            return None
        chosen = np.random.default_rng(0).choice(users, SAMPLE, replace=False)
        rows = np.flatnonzero(np.isin(self.queries.user, chosen))
        with self._stage("sample"):
            found, _ = measure.users_quality(bundle, self.queries.take(rows), self.popularity, self.metrics)
        base = {name: values[np.isin(users, chosen)] for name, values in original.users.items()}
        for limit in floors:
            if self._broken(limit, found, base):
                metrics = {name: float(values.mean()) for name, values in found.items()}
                reason = f"{limit.text(original.metrics)}; on {SAMPLE} users it has {metrics[limit.metric]:.4g}"
                return self._row(recipe, "screened out", "sample", reason, metrics=metrics)
        return None

    def _broken(self, limit: Limit, found: Mapping[str, Any], base: Mapping[str, Any]) -> bool:
        means = {name: interval(values).mean for name, values in base.items()}
        return check(limit, Measured({}, {}, found), Measured(means, {}, base)) == "broken"

    def _original(self) -> Measured | None:
        id = self.study.facts.get("original")
        return None if id is None else self.study.measured(self.study.candidates[id])

    def _bundle(self, recipe: Recipe) -> Path:
        return self.study.path("bundles", recipe.id)

    def _built(self, recipe: Recipe, stage: str, *, structure_only: bool) -> Path:
        output = self._bundle(recipe)
        with self._stage(stage):
            job = Job(recipe.to_json(), output, structure_only=structure_only)
            limits = {"memory_gb": self.limits.memory_gb, "seconds": max(1.0, self.limits.seconds_left)}
            isolated(build, self.workshop, job, **limits)
        return output

    def _row(self, recipe: Recipe, status: str, stage: str, reason: str, **values: Any) -> Candidate:
        return Candidate(
            recipe.id, recipe.name, recipe.to_json(), status, stage, reason, seconds=dict(self._clock), **values
        )

    @contextmanager
    def _stage(self, name: str) -> Iterator[None]:
        begin = time.monotonic()
        try:
            yield
        finally:
            self._clock[name] = round(self._clock.get(name, 0.0) + time.monotonic() - begin, 2)


def core_hours(found: Measurement) -> float:
    """Core-hours that a million requests take in batches of the best size; times the price of one it is their cost."""
    return float(found.protocol["threads"]) * 1e6 / found.metrics["qps"] / 3600

"""What the server counts, for Prometheus. No label holds a user, an item or anything else a client sends."""

from __future__ import annotations

from collections import Counter as Counts
from collections.abc import Iterable, Iterator
from contextvars import ContextVar
from typing import NamedTuple
from weakref import WeakKeyDictionary

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from recfit.serve import connections
from recfit.serve.events import Events
from recfit.serve.exposures import Exposures
from recfit.serve.fleet import QUALITY, Fleet
from recfit.serve.results import Results
from recfit.serve.shadows import Shadows
from recfit.serve.shared import SharedEvents
from recfit.serve.status import Recent

BUCKETS = (0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.02, 0.05, 0.1, 0.25)
"""Seconds. Dense where the budgets of recommenders lie, 1 to 20 ms."""

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
POSTS = ("/v1/recommend", "/v1/recommend/batch", "/v1/score", "/v1/events", "/v1/feedback")
SIMILAR, INFER, OTHER = "/v1/similar/{item_id}", "/v2/models/{name}/infer", "other"
NOBODY = "none"
answering: ContextVar[str] = ContextVar("answering", default=NOBODY)
"""The model that answers the request, or the arm of an experiment; for what is counted of it. A batch has none."""


class Part(NamedTuple):
    """What became of a request of a batch: the source, the status that it would have alone, and the model that answered."""

    source: str
    status: int
    model: str


def route_of(path: str) -> str:
    """The label for a path; what is no request for an answer is one of `OTHER`."""
    if path.startswith("/v1/similar/"):
        return SIMILAR
    if path.startswith("/v2/") and path.endswith("/infer"):
        return INFER
    return path if path in POSTS else OTHER


class Metrics:
    """The counters of one app, in a registry of their own."""

    def __init__(
        self, fleet: Fleet, results: Results, shadows: Shadows, events: Events, exposures: Exposures | None
    ) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.registry.register(_State(fleet, results, shadows))
        self.registry.register(_Stores(events, exposures))
        self.in_flight = Gauge("recfit_requests_in_flight", "Requests being answered now", registry=self.registry)
        self._requests = Counter(
            "recfit_requests",
            "Answered, by route, source, HTTP status, and the model (or arm) that answered",
            ("route", "source", "status", "model"),
            registry=self.registry,
        )
        self._seconds = Histogram(
            "recfit_request_seconds",
            "From the request's head read to its answer written, by route, source and model",
            ("route", "source", "model"),
            buckets=BUCKETS,
            registry=self.registry,
        )
        self.recent = Recent(results)
        self._children: dict[tuple[str, str, int, str], tuple[Counter, Histogram]] = {}

    def count(self, route: str, source: str, status: int, seconds: float) -> None:
        """One request answered, by the model of this context; `source` is `none` where no recommendation was made."""
        model = answering.get()
        answering.set(NOBODY)  # what comes next in this context is another request
        child = self._children.get((route, source, status, model))
        if child is None:
            child = self._requests.labels(route, source, f"{status}", model), self._seconds.labels(route, source, model)
            self._children[route, source, status, model] = child
        child[0].inc()
        child[1].observe(seconds)
        if source != NOBODY:
            self.recent.add(seconds)

    def count_parts(self, route: str, parts: Iterable[Part]) -> None:
        """The requests of a batch, at a label of their own: the batch is counted too."""
        for part, count in Counts(parts).items():
            self._requests.labels(f"{route}/part", part.source, f"{part.status}", part.model).inc(count)

    def refused(self, path: str, status: int) -> None:
        """A request that no route saw."""
        self._requests.labels(route_of(path), NOBODY, f"{status}", NOBODY).inc()

    def text(self) -> bytes:
        """The text exposition format, version 0.0.4."""
        return generate_latest(self.registry)


class _Growing:
    """Sums by label of what objects count that come and go: a bundle that leaves takes nothing away, and one that comes back
    adds only what is new. What was counted since the last look is lost with an object that is freed."""

    def __init__(self) -> None:
        self._seen: WeakKeyDictionary[object, dict[tuple[str, ...], int]] = WeakKeyDictionary()
        self._sums: Counts[tuple[str, ...]] = Counts()

    def see(self, owner: object, labels: tuple[str, ...], count: int) -> None:
        seen = self._seen.setdefault(owner, {})
        self._sums[labels] += count - seen.get(labels, 0)
        seen[labels] = count

    def __iter__(self) -> Iterator[tuple[tuple[str, ...], int]]:
        return iter(self._sums.items())


class _State(Collector):
    """What is looked at when somebody asks."""

    def __init__(self, fleet: Fleet, results: Results, shadows: Shadows) -> None:
        self._fleet, self._results, self._shadows = fleet, results, shadows
        self._rungs, self._histories = _Growing(), _Growing()

    def collect(self) -> Iterator[Metric]:
        bundles = InfoMetricFamily("recfit_bundle", "The bundles that answer for a model", labels=("model", "rung"))
        answered = CounterMetricFamily(
            "recfit_rung_requests",
            "Recommendations, by the bundle that made them (0 is the best)",
            labels=("model", "rung"),
        )
        level = GaugeMetricFamily(
            "recfit_ladder_level", "Mean rung of the answers of the last seconds (0 is the best)", labels=("model",)
        )
        quality = GaugeMetricFamily(
            "recfit_expected_quality",
            f"{QUALITY} that is expected of the answers of the last seconds",
            labels=("model",),
        )
        promised = GaugeMetricFamily("recfit_promised_quality", f"{QUALITY} of the best bundle", labels=("model",))
        for name, model in self._fleet.loaded.items():
            for rung, served in enumerate(model.rungs):
                manifest = served.engine.manifest
                about = {"name": manifest["name"], "id": served.bundle, "recipe": manifest["recipe"]["id"]}
                bundles.add_metric((name, f"{rung}"), about)
                self._rungs.see(model.ladder, (name, f"{rung}"), model.ladder.served[rung])
            level.add_metric((name,), model.ladder.level())
            if model.best.quality is not None:
                promised.add_metric((name,), model.best.quality)
            if (expected := model.ladder.quality()) is not None:
                quality.add_metric((name,), expected)
        _fill(answered, self._rungs)
        yield from (bundles, answered, level, promised, quality, *self._sessions())
        shadowed = CounterMetricFamily(
            "recfit_shadow_requests", "Requests that a shadow model was asked too", labels=("model", "outcome")
        )
        for (name, outcome), count in self._shadows.outcomes.items():
            shadowed.add_metric((name, outcome), count)
        yield shadowed
        oldest = "How long the request that waits longest has been waiting"
        yield GaugeMetricFamily("recfit_oldest_queued_seconds", oldest, self._fleet.oldest_s())
        running = (
            "How long what has been running longest in a thread has been (on the event loop nothing answers meanwhile)"
        )
        yield GaugeMetricFamily("recfit_oldest_running_seconds", running, self._fleet.running_s())
        found = self._results
        asked = CounterMetricFamily(
            "recfit_results", "Requests, by what the result cache had for them", labels=("outcome",)
        )
        asked.add_metric(("hit",), found.hits)
        asked.add_metric(("miss",), found.misses)
        asked.add_metric(("second level",), found.second_hits)
        asked.add_metric(("shared",), found.shared)  # the same was being answered for somebody else
        yield asked
        yield GaugeMetricFamily("recfit_results_bytes", "Bytes of the result cache", found.bytes)

    def _sessions(self) -> Iterator[Metric]:
        asked = CounterMetricFamily(
            "recfit_sessions",
            "Histories that a model read, by whether it went on from what it knew of one",
            labels=("model", "rung", "outcome"),
        )
        held = GaugeMetricFamily(
            "recfit_session_bytes", "Bytes of the sessions that are kept", labels=("model", "rung")
        )
        for name, model in self._fleet.loaded.items():
            for rung, served in enumerate(model.rungs):
                if kept := served.engine.sessions:
                    for part in kept:
                        self._histories.see(part, (name, f"{rung}", "hit"), part.hits)
                        self._histories.see(part, (name, f"{rung}", "miss"), part.misses)
                    held.add_metric((name, f"{rung}"), sum(part.bytes for part in kept))
        _fill(asked, self._histories)
        yield from (asked, held)


class _Stores(Collector):
    """What is lost while a disk or Redis does not answer, and who was sent away before any route saw them."""

    def __init__(self, events: Events, exposures: Exposures | None) -> None:
        self._events, self._exposures = events, exposures
        self._shared = events.shared if isinstance(events, SharedEvents) else None

    def collect(self) -> Iterator[Metric]:
        without = "Requests that were answered without what the user did since, as its store did not answer"
        yield CounterMetricFamily("recfit_answers_without_events", without, self._events.unread)
        dropped = 0 if self._exposures is None else self._exposures.dropped
        yield CounterMetricFamily("recfit_exposures_dropped", "Rows of the exposure log that were lost", dropped)
        up = GaugeMetricFamily("recfit_redis_up", "Whether answers ask Redis (1), or go on without it for now (0)")
        commands = CounterMetricFamily(
            "recfit_redis_commands_lost",
            "Commands for Redis that were not answered, those not sent since, and those whose answer was an error",
            labels=("reason",),
        )
        if self._shared is not None:
            up.add_metric((), float(not self._shared.broken))
            commands.add_metric(("failed",), self._shared.failures)
            commands.add_metric(("skipped",), self._shared.skipped)
            commands.add_metric(("refused",), self._shared.refused)
        ended = CounterMetricFamily(
            "recfit_connections_ended",
            "Connections that the server ended before a request had come in or its answer was read",
            labels=("reason",),
        )
        for reason, count in connections.ended.items():
            ended.add_metric((reason,), count)
        yield from (up, commands, ended)


def _fill(family: CounterMetricFamily, counts: Iterable[tuple[tuple[str, ...], int]]) -> None:
    for labels, count in counts:
        family.add_metric(labels, count)

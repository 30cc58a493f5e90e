"""What the server counts, for Prometheus. No label holds a user, an item or anything else a client sends."""

from __future__ import annotations

from collections.abc import Iterator

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

from recfit.serve.fleet import QUALITY, Fleet
from recfit.serve.results import Results
from recfit.serve.shadows import Shadows
from recfit.serve.status import Recent

BUCKETS = (0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.02, 0.05, 0.1, 0.25)
"""Seconds. Dense where the budgets of recommenders lie, 1 to 20 ms."""

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """The counters of one app, in a registry of their own."""

    def __init__(self, fleet: Fleet, results: Results, shadows: Shadows) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.registry.register(_State(fleet, results, shadows))
        self.in_flight = Gauge("recfit_requests_in_flight", "Requests being answered now", registry=self.registry)
        self._requests = Counter(
            "recfit_requests",
            "Answered, by route, source and HTTP status",
            ("route", "source", "status"),
            registry=self.registry,
        )
        self._seconds = Histogram(
            "recfit_request_seconds",
            "From the request's head read to its answer written, by route and source",
            ("route", "source"),
            buckets=BUCKETS,
            registry=self.registry,
        )
        self.recent = Recent()
        self._children: dict[tuple[str, str, int], tuple[Counter, Histogram]] = {}

    def count(self, route: str, source: str, status: int, seconds: float) -> None:
        """One request answered; `source` is `none` where no recommendation was made."""
        child = self._children.get((route, source, status))
        if child is None:
            child = self._requests.labels(route, source, str(status)), self._seconds.labels(route, source)
            self._children[route, source, status] = child
        child[0].inc()
        child[1].observe(seconds)
        if source != "none":
            self.recent.add(seconds)

    def text(self) -> bytes:
        """The text exposition format, version 0.0.4."""
        return generate_latest(self.registry)


class _State(Collector):
    """What is looked at when somebody asks."""

    def __init__(self, fleet: Fleet, results: Results, shadows: Shadows) -> None:
        self._fleet, self._results, self._shadows = fleet, results, shadows

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
                answered.add_metric((name, f"{rung}"), model.ladder.served[rung])
            level.add_metric((name,), model.ladder.level())
            if model.best.quality is not None:
                promised.add_metric((name,), model.best.quality)
            if (expected := model.ladder.quality()) is not None:
                quality.add_metric((name,), expected)
        yield from (bundles, answered, level, promised, quality, *self._sessions())
        shadowed = CounterMetricFamily(
            "recfit_shadow_requests", "Requests that a shadow model was asked too", labels=("model", "outcome")
        )
        for (name, outcome), count in self._shadows.outcomes.items():
            shadowed.add_metric((name, outcome), count)
        yield shadowed
        oldest = "How long the request that waits longest has been waiting"
        yield GaugeMetricFamily("recfit_oldest_queued_seconds", oldest, self._fleet.oldest_s())
        found = self._results
        asked = CounterMetricFamily(
            "recfit_results", "Requests, by what the result cache had for them", labels=("outcome",)
        )
        asked.add_metric(("hit",), found.hits)
        asked.add_metric(("miss",), found.misses - found.second_hits)
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
                    asked.add_metric((name, f"{rung}", "hit"), sum(part.hits for part in kept))
                    asked.add_metric((name, f"{rung}", "miss"), sum(part.misses for part in kept))
                    held.add_metric((name, f"{rung}"), sum(part.bytes for part in kept))
        yield from (asked, held)

"""What the console shows, as one JSON: the last seconds, the models and what they promise, what is being tried."""

from __future__ import annotations

import time
from collections import deque
from importlib.resources import files
from typing import NamedTuple

import msgspec
import numpy as np

from recfit.serve.experiments import Experiments
from recfit.serve.fleet import Fleet, Model
from recfit.serve.results import Results

SECONDS = 10.0
MOST = 4096
PAGES = {
    "/": ("index.html", "text/html"),
    "/console.css": ("console.css", "text/css"),
    "/console.js": ("console.js", "text/javascript"),
}
"""Path -> file and type. The page takes nothing from anywhere else."""
POLICY = "default-src 'self'; img-src data:; base-uri 'none'; frame-ancestors 'none'"


class RungState(msgspec.Struct, frozen=True):
    bundle: str
    name: str
    quality: float | None
    p99_ms: float | None
    answered: int


class ModelStatus(msgspec.Struct, frozen=True):
    """`level` is the mean rung of the answers of the last seconds, `expected_quality` what they are worth."""

    name: str
    rungs: list[RungState]
    level: float
    expected_quality: float | None


class StatusResponse(msgspec.Struct, frozen=True):
    """The server at the moment; percentiles, and the share of answers that were known before, are those of the recommendations
    of the last ten seconds, null without any."""

    requests_per_second: float
    p50_ms: float | None
    p99_ms: float | None
    hit_share: float | None
    models: list[ModelStatus]
    experiments: list[str]


class Seen(NamedTuple):
    """A recommendation that was given `at`; how many answers had been asked of `results` by then, and how many it had."""

    at: float
    seconds: float
    asked: int
    hits: int


class Recent:
    """The last recommendations."""

    def __init__(self, results: Results) -> None:
        self._results = results
        self._seen: deque[Seen] = deque(maxlen=MOST)

    def add(self, seconds: float) -> None:
        self._seen.append(Seen(time.monotonic(), seconds, self._results.asked, self._results.hits))

    def hit_share(self) -> float | None:
        since, before = time.monotonic() - SECONDS, Seen(0.0, 0.0, 0, 0)
        for one in self._seen:
            if one.at >= since:
                break
            before = one
        else:
            return None
        if before.at == 0.0 and len(self._seen) == MOST:
            before = self._seen[0]  # what came before is forgotten
        asked = self._results.asked - before.asked
        return (self._results.hits - before.hits) / asked if asked else None

    def summary(self) -> tuple[float, float | None, float | None]:
        """Requests a second, p50 and p99 in ms."""
        since = time.monotonic() - SECONDS
        spans = [(one.at, one.seconds) for one in self._seen if one.at >= since]
        if not spans:
            return 0.0, None, None
        # Where more came than are remembered, these reach less far back.
        reach = SECONDS if len(spans) < MOST else max(1e-3, time.monotonic() - spans[0][0])
        p50, p99 = np.percentile([took * 1e3 for _, took in spans], (50, 99)).tolist()
        return len(spans) / reach, p50, p99


def status(fleet: Fleet, recent: Recent, experiments: Experiments) -> StatusResponse:
    rate, p50, p99 = recent.summary()
    plan = experiments.plan
    running = [
        f"experiment {one.name} of {one.model}: " + ", ".join(f"{arm} {weight:g}" for arm, weight in one.arms.items())
        for one in plan.experiments.values()
    ]
    running += [f"shadow of {one.model}: {one.to}, {100 * one.share:g} % of requests" for one in plan.shadows.values()]
    models = [_model(name, fleet.loaded.get(name)) for name in fleet.names]
    return StatusResponse(rate, p50, p99, recent.hit_share(), models, running)


def _model(name: str, model: Model | None) -> ModelStatus:
    if model is None:
        return ModelStatus(name, [], 0.0, None)
    rungs = []
    for served, answered in zip(model.rungs, model.ladder.served, strict=True):
        promise = (served.engine.manifest.get("promise") or {}).get("metrics", {})
        rungs.append(
            RungState(served.bundle, served.engine.manifest["name"], served.quality, promise.get("p99_ms"), answered)
        )
    return ModelStatus(name, rungs, model.ladder.level(), model.ladder.quality())


def page(path: str) -> tuple[bytes, str]:
    """The body and the type of a file of the console."""
    name, kind = PAGES[path]
    return files("recfit.serve").joinpath("console", name).read_bytes(), kind

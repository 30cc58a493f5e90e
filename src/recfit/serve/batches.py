"""What leaves the line together, and what the engines make of it: one outcome for each, whatever fails."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, Protocol

from recfit.runtimes import SessionCache
from recfit.types import FloatArray, Recommendation, Request, RequestContext

Outcome = Recommendation | Exception


class Recommender(Protocol):
    """What the server needs of an engine (`recfit.engine.Engine` is one)."""

    @property
    def manifest(self) -> Mapping[str, Any]: ...

    @property
    def sessions(self) -> Sequence[SessionCache]: ...

    def keep_sessions(self, most_mb: float) -> None: ...

    def recommend(
        self, requests: Sequence[Request], k: int = 10, *, spent: dict[str, float] | None = None
    ) -> list[Recommendation]: ...

    def score(self, request: Request, items: Sequence[str]) -> FloatArray: ...

    def similar(self, item_id: str, k: int = 10) -> Recommendation: ...

    @property
    def context_names(self) -> Sequence[str]: ...

    def refusal(self, context: RequestContext | None) -> str: ...

    def known_item(self, item_id: str) -> bool: ...

    def title(self, item_id: str) -> str | None: ...


class Waiting(NamedTuple):
    """A request in line, or a `call` that runs alone, since `arrived` on the monotonic clock. After `deadline`, and once the
    client has `left`, nobody wants its answer. One that is a check is for `rung`, whatever answers others."""

    answer: asyncio.Future[Any]
    arrived: float
    deadline: float
    left: Callable[[], bool]
    request: Request
    k: int
    rung: int | None
    call: Callable[[], Any] | None


Ran = tuple[list[Any], dict[int, float]]
"""One outcome for each, an exception where it failed, and the seconds that each rung took."""


class Batch(NamedTuple):
    """Requests that leave the line together, each with its rung, or one call."""

    waiting: Sequence[Waiting]
    rungs: Sequence[int]

    @property
    def call(self) -> Callable[[], Any] | None:
        return self.waiting[0].call


def answers(engines: Sequence[Recommender], batch: Batch) -> Ran:
    """One outcome for each, and the seconds that every rung took; requests to a rung for as many items run together."""
    if batch.call is not None:
        return _called(batch.call)
    found: list[Outcome] = [RuntimeError("not asked")] * len(batch.waiting)
    groups: dict[tuple[int, int], list[int]] = {}
    for at, (waiting, rung) in enumerate(zip(*batch, strict=True)):
        groups.setdefault((rung, waiting.k), []).append(at)
    spent_s: dict[int, float] = {}
    for (rung, k), places in groups.items():
        begin = time.perf_counter()
        engine = engines[rung]
        made = outcomes(engine, [batch.waiting[at].request for at in places], k)
        spent_s[rung] = spent_s.get(rung, 0.0) + time.perf_counter() - begin
        for at, outcome in zip(places, made, strict=True):
            found[at] = outcome
    return found, spent_s


def read_by(engine: Recommender, request: Request) -> Request:
    """`request` without a context that `engine` can't read. What was asked for can: this is a cheaper rung, the arm of an
    experiment, or a shadow."""
    return replace(request, context=None) if request.context and engine.refusal(request.context) else request


def outcomes(engine: Recommender, requests: Sequence[Request], k: int) -> list[Outcome]:
    """One for each. A request that makes the engine fail fails alone."""
    try:
        made = engine.recommend([read_by(engine, request) for request in requests], k)
        if len(made) != len(requests):
            raise RuntimeError(f"the engine gave {len(made)} answers to {len(requests)} requests")
        return [*made]
    except Exception as error:
        if len(requests) == 1:
            return [error]
        return [outcomes(engine, [request], k)[0] for request in requests]


def _called(call: Callable[[], Any]) -> Ran:
    begin = time.perf_counter()
    try:
        outcome = call()
    except Exception as error:
        outcome = error
    return [outcome], {0: time.perf_counter() - begin}

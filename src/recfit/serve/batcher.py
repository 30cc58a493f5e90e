"""Requests that wait together are answered together; nothing waits for company.

What is queued when the engine is free is its next batch, one request or many. On the event loop that is all that arrived
since the last turn; in a pool of threads, all that arrived while every thread was busy.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple, Protocol, TypeVar

from recfit.types import FloatArray, Recommendation, Request

T = TypeVar("T")
MOST = 32
"""Requests of a batch. More gain little per request, and the first of them wait for the last."""

USUAL = 0.05
"""Weight of the last answer in how long answers usually take."""

Outcome = Recommendation | Exception


class Recommender(Protocol):
    """What the server needs of an engine (`recfit.engine.Engine` is one)."""

    @property
    def manifest(self) -> Mapping[str, Any]: ...

    def recommend(
        self, requests: Sequence[Request], k: int = 10, *, spent: dict[str, float] | None = None
    ) -> list[Recommendation]: ...

    def score(self, request: Request, items: Sequence[str]) -> FloatArray: ...

    def similar(self, item_id: str, k: int = 10) -> Recommendation: ...

    def known_item(self, item_id: str) -> bool: ...

    def title(self, item_id: str) -> str | None: ...


class Waiting(NamedTuple):
    """A request in the queue, since `arrived` on the monotonic clock; after `deadline` nobody wants its answer."""

    request: Request
    k: int
    answer: asyncio.Future[Recommendation]
    arrived: float
    deadline: float


class OverloadError(Exception):
    """The queue is longer than anybody would wait for."""


class LateError(Exception):
    """The deadline of a request passed while it was waiting."""


class Batcher:
    """The queue in front of one engine, which runs on the event loop (`threads` = 0) or in a pool. While the first in it has
    waited longer than `shed_s`, nobody joins: who is let in is answered in about that time, and the queue is gone as soon as
    the crowd is."""

    def __init__(self, engine: Recommender, threads: int = 0, shed_s: float = math.inf) -> None:
        self._engine, self._shed_s = engine, shed_s
        self._pool = ThreadPoolExecutor(threads, "recfit-engine") if threads else None
        self._free = max(1, threads)
        self._queue: deque[Waiting] = deque()
        self._woken = False
        self._usual_s = 0.0

    async def ask(self, request: Request, k: int, deadline: float = math.inf) -> Recommendation:
        """The engine's answer, or what it raised for this request; `LateError` where it can't begin before `deadline` on the
        monotonic clock, `OverloadError` where the queue is too long to join."""
        if self.oldest_s() > self._shed_s:
            raise OverloadError
        loop = asyncio.get_running_loop()
        waiting = Waiting(request, k, loop.create_future(), time.monotonic(), deadline)
        self._queue.append(waiting)
        self._wake(loop)
        return await waiting.answer

    async def run(self, call: Callable[..., T], *given: Any) -> T:
        """`call(*given)` where the engine runs."""
        if self._pool is None:
            return call(*given)
        return await asyncio.get_running_loop().run_in_executor(self._pool, partial(call, *given))

    def oldest_s(self) -> float:
        """For how long the first in the queue has been waiting; 0 where nobody is."""
        return time.monotonic() - self._queue[0].arrived if self._queue else 0.0

    def expected_s(self) -> float:
        """How long an answer takes at the moment, its time in the queue included."""
        return max(self._usual_s, self.oldest_s())

    def _wake(self, loop: asyncio.AbstractEventLoop) -> None:
        if not self._woken:
            self._woken = True
            loop.call_soon(self._turn, loop)

    def _turn(self, loop: asyncio.AbstractEventLoop) -> None:
        """Give what is queued to the engine, as far as it is free."""
        self._woken = False
        while self._free and (batch := self._next(-(-len(self._queue) // self._free))):
            if self._pool is None:
                self._tell(batch, answers(self._engine, batch))
                break  # so that what arrived meanwhile joins the next batch
            self._free -= 1
            running = loop.run_in_executor(self._pool, answers, self._engine, batch)
            running.add_done_callback(partial(self._done, loop, batch))
        if self._queue and self._free:
            self._wake(loop)

    def _next(self, share: int) -> list[Waiting]:
        """The `share` that is first in the queue, `MOST` at most, less those whose clients have left or who are late."""
        batch: list[Waiting] = []
        while self._queue and len(batch) < min(share, MOST):
            waiting = self._queue.popleft()
            if waiting.answer.done():
                continue
            if waiting.deadline < time.monotonic():
                waiting.answer.set_exception(LateError())
            else:
                batch.append(waiting)
        return batch

    def _done(
        self, loop: asyncio.AbstractEventLoop, batch: Sequence[Waiting], running: asyncio.Future[list[Outcome]]
    ) -> None:
        self._free += 1
        failed = running.exception()
        self._tell(batch, [RuntimeError(str(failed))] * len(batch) if failed else running.result())
        if self._queue:
            self._wake(loop)

    def _tell(self, batch: Sequence[Waiting], outcomes: Sequence[Outcome]) -> None:
        """Give everybody their outcome, and remember how long that took."""
        now = time.monotonic()
        for waiting, outcome in zip(batch, outcomes, strict=True):
            self._usual_s += USUAL * (now - waiting.arrived - self._usual_s)
            if waiting.answer.done():  # the client left meanwhile
                continue
            if isinstance(outcome, Exception):
                waiting.answer.set_exception(outcome)
            else:
                waiting.answer.set_result(outcome)


def answers(engine: Recommender, batch: Sequence[Waiting]) -> list[Outcome]:
    """One outcome for each; requests for as many items run together."""
    found: list[Outcome] = [RuntimeError("not asked")] * len(batch)
    lengths: dict[int, list[int]] = {}
    for at, waiting in enumerate(batch):
        lengths.setdefault(waiting.k, []).append(at)
    for k, places in lengths.items():
        outcomes = _outcomes(engine, [batch[at].request for at in places], k)
        for at, outcome in zip(places, outcomes, strict=True):
            found[at] = outcome
    return found


def _outcomes(engine: Recommender, requests: Sequence[Request], k: int) -> list[Outcome]:
    """A request that makes the engine fail fails alone."""
    try:
        return [*engine.recommend(requests, k)]
    except Exception as error:
        if len(requests) == 1:
            return [error]
        return [_outcomes(engine, [request], k)[0] for request in requests]

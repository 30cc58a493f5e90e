"""Requests that wait together are answered together; nothing waits for company.

What is queued when an engine is free is its next batch, one request or as many as take a millisecond. On the event loop that
is what arrived since the last turn; in a pool of threads, what arrived while every thread was busy, shared among the free ones.
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

from recfit.runtimes import SessionCache
from recfit.serve.ladder import Ladder
from recfit.types import FloatArray, Recommendation, Request

T = TypeVar("T")
Outcome = Recommendation | Exception
BUDGET_S = 0.01
HOPS = 2
"""Turns of the event loop that others get before the engine runs: one reads what arrived, in the next it joins the line. What
was answered before is written then too."""


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

    def known_item(self, item_id: str) -> bool: ...

    def title(self, item_id: str) -> str | None: ...


class Rung(Protocol):
    """A bundle that a queue leads to."""

    @property
    def engine(self) -> Recommender: ...

    @property
    def quality(self) -> float | None:
        """What was promised; None where it was not measured."""
        ...

    @property
    def cost_s(self) -> float:
        """Seconds that an answer takes, as far as is known."""
        ...


class Answer(NamedTuple):
    """What was found, and by which rung."""

    rung: int
    found: Recommendation


class Waiting(NamedTuple):
    """A request in line since `arrived` on the monotonic clock. After `deadline` nobody wants its answer, and no rung better
    than `least` is to give it."""

    request: Request
    k: int
    answer: asyncio.Future[Answer]
    arrived: float
    deadline: float
    least: int


class OverloadError(Exception):
    """The line is longer than anybody would wait in."""


class LateError(Exception):
    """The deadline of a request passed while it was waiting."""


Ran = tuple[list[Outcome], dict[int, float]]
"""One outcome for each request, and the seconds that each rung took."""


class Batch(NamedTuple):
    """Requests that leave the line together, each with its rung."""

    waiting: Sequence[Waiting]
    rungs: Sequence[int]


class Batcher:
    """The line in front of the `rungs` of a model, the best first, whose engines run on the event loop (`threads` = 0) or in a
    pool. While the first in it has waited longer than `shed_s`, nobody joins: who is let in is answered in about that time,
    and the line is gone as soon as the crowd is."""

    def __init__(
        self, rungs: Sequence[Rung], threads: int = 0, shed_s: float = math.inf, budget_s: float = BUDGET_S
    ) -> None:
        self._engines, self._shed_s = [rung.engine for rung in rungs], shed_s
        self.ladder = Ladder([rung.cost_s for rung in rungs], [rung.quality for rung in rungs], budget_s)
        self._pool = ThreadPoolExecutor(threads, "recfit-engine") if threads else None
        self._threads = self._free = max(1, threads)
        self._line: deque[Waiting] = deque()
        self._urgent: deque[Waiting] = deque()  # those whom the line would make late
        self._woken = False
        self._spent_s, self._told = 0.0, 0  # by the loop's thread when the last turn ended; its requests

    async def ask(self, request: Request, k: int, deadline: float = math.inf, least: int = 0) -> Answer:
        """The answer of the best rung that has the time, or what its engine raised for this request; `LateError` where it
        can't begin before `deadline` on the monotonic clock, `OverloadError` where the line is too long to join."""
        if self.oldest_s() > self._shed_s:
            raise OverloadError
        loop, now = asyncio.get_running_loop(), time.monotonic()
        waiting = Waiting(request, k, loop.create_future(), now, deadline, least)
        urgent = deadline < math.inf and now + self._waiting() * self.ladder.cost(self.ladder.rung) > deadline
        (self._urgent if urgent else self._line).append(waiting)
        self._wake(loop)
        return await waiting.answer

    async def run(self, call: Callable[..., T], *given: Any) -> T:
        """`call(*given)` where the engines run."""
        if self._pool is None:
            return call(*given)
        return await asyncio.get_running_loop().run_in_executor(self._pool, partial(call, *given))

    def oldest_s(self) -> float:
        """For how long the first in line has been waiting; 0 where nobody is."""
        firsts = [line[0].arrived for line in (self._urgent, self._line) if line]
        return time.monotonic() - min(firsts) if firsts else 0.0

    def _waiting(self) -> float:
        """Requests in line, for each thread."""
        return (len(self._line) + len(self._urgent)) / self._threads

    def _wake(self, loop: asyncio.AbstractEventLoop) -> None:
        if not self._woken:
            self._woken = True
            loop.call_soon(self._hop, loop, HOPS)

    def _hop(self, loop: asyncio.AbstractEventLoop, left: int) -> None:
        loop.call_soon(*((self._hop, loop, left - 1) if left > 1 else (self._turn, loop)))

    def _turn(self, loop: asyncio.AbstractEventLoop) -> None:
        """Give what is in line to the engines, as far as they are free."""
        self._woken = False
        if self._told:
            self.ladder.around(self._told, time.thread_time() - self._spent_s)
            self._told = 0
        while self._free and (batch := self._next()).waiting:
            if self._pool is None:
                self._tell(batch, *answers(self._engines, batch))
                self._spent_s = time.thread_time()
                break  # so that what arrived meanwhile joins the next batch
            self._free -= 1
            running = loop.run_in_executor(self._pool, answers, self._engines, batch)
            running.add_done_callback(partial(self._done, loop, batch))
        if self._free and (self._line or self._urgent):
            self._wake(loop)

    def _next(self) -> Batch:
        """Those who are first in line and the rung for each, less those whose clients have left or who are late."""
        rung = self.ladder.choose(self._waiting(), time.monotonic())
        share = -(-(len(self._line) + len(self._urgent)) // self._free)
        most, batch = min(share, self.ladder.most(rung)), list[Waiting]()
        while len(batch) < most and (line := self._urgent or self._line):
            waiting = line.popleft()
            if waiting.answer.done():
                continue
            if waiting.deadline < time.monotonic():
                waiting.answer.set_exception(LateError())
            else:
                batch.append(waiting)
        return Batch(batch, [self._rung(waiting, rung, len(batch)) for waiting in batch])

    def _rung(self, waiting: Waiting, rung: int, count: int) -> int:
        rung = max(rung, waiting.least)
        if waiting.deadline == math.inf:
            return rung
        return self.ladder.fitting(rung, count, waiting.deadline - time.monotonic())

    def _done(self, loop: asyncio.AbstractEventLoop, batch: Batch, running: asyncio.Future[Ran]) -> None:
        self._free += 1
        failed = running.exception()
        self._tell(batch, *(([RuntimeError(str(failed))] * len(batch.waiting), {}) if failed else running.result()))
        if self._line or self._urgent:
            self._wake(loop)

    def _tell(self, batch: Batch, outcomes: Sequence[Outcome], spent_s: Mapping[int, float]) -> None:
        """Give everybody their outcome, and remember how long that took."""
        for rung, seconds in spent_s.items():
            self.ladder.took(rung, batch.rungs.count(rung), seconds)
        if self._pool is None:
            self._told = len(outcomes)
        for waiting, rung, outcome in zip(*batch, outcomes, strict=True):
            if waiting.answer.done():  # the client left meanwhile
                continue
            if isinstance(outcome, Exception):
                waiting.answer.set_exception(outcome)
            else:
                waiting.answer.set_result(Answer(rung, outcome))


def answers(engines: Sequence[Recommender], batch: Batch) -> Ran:
    """One outcome for each, and the seconds that every rung took; requests to a rung for as many items run together."""
    found: list[Outcome] = [RuntimeError("not asked")] * len(batch.waiting)
    groups: dict[tuple[int, int], list[int]] = {}
    for at, (waiting, rung) in enumerate(zip(*batch, strict=True)):
        groups.setdefault((rung, waiting.k), []).append(at)
    spent_s: dict[int, float] = {}
    for (rung, k), places in groups.items():
        begin = time.perf_counter()
        outcomes = _outcomes(engines[rung], [batch.waiting[at].request for at in places], k)
        spent_s[rung] = spent_s.get(rung, 0.0) + time.perf_counter() - begin
        for at, outcome in zip(places, outcomes, strict=True):
            found[at] = outcome
    return found, spent_s


def _outcomes(engine: Recommender, requests: Sequence[Request], k: int) -> list[Outcome]:
    """A request that makes the engine fail fails alone."""
    try:
        return [*engine.recommend(requests, k)]
    except Exception as error:
        if len(requests) == 1:
            return [error]
        return [_outcomes(engine, [request], k)[0] for request in requests]

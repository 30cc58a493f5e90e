"""Requests that wait together are answered together; nothing waits for company.

What is queued when an engine is free is its next batch, one request or as many as take a millisecond. On the event loop that
is what arrived since the last turn; in a pool of threads, what arrived while every thread was busy, shared among the free ones.
Other work for an engine (scores, similar items) runs alone, in the order in which it came.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple, Protocol, TypeVar

from recfit.serve import caller
from recfit.serve.batches import Batch, Ran, Recommender, Waiting, answers
from recfit.serve.ladder import WEIGHT, Ladder
from recfit.serve.lately import Lately
from recfit.types import Recommendation, Request

log = logging.getLogger("recfit.serve")

T = TypeVar("T")
BUDGET_S = 0.01
HOPS = 2
"""Turns of the event loop that others get before the engine runs: one reads what arrived, in the next it joins the line. What
was answered before is written then too."""


NOBODY = Request()


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


class OverloadError(Exception):
    """The line is longer than anybody would wait in."""


class LateError(Exception):
    """The deadline of a request passed while it was waiting."""


class Batcher:
    """The line in front of the `rungs` of a model, the best first, whose engines run on the event loop (`threads` = 0) or in a
    pool. Who would wait longer than `shed_s` is not let in: by how many wait, and what each of them took lately. So who is let
    in is answered in about that time, and the line is gone as soon as the crowd is. What was answered is among what was asked
    `lately`."""

    def __init__(
        self,
        rungs: Sequence[Rung],
        threads: int = 0,
        shed_s: float = math.inf,
        budget_s: float = BUDGET_S,
        lately: Lately | None = None,
    ) -> None:
        self._engines, self._shed_s = [rung.engine for rung in rungs], shed_s
        self.ladder = Ladder([rung.cost_s for rung in rungs], [rung.quality for rung in rungs], budget_s)
        self._pool = ThreadPoolExecutor(threads, "recfit-engine") if threads else None
        self._threads = self._free = max(1, threads)
        self._lately = lately or Lately()
        self._running: dict[asyncio.Future[Ran], float] = {}  # in the pool, since when
        self._line: deque[Waiting] = deque()
        self._urgent: deque[Waiting] = deque()  # those whom the line would make late
        self._calls: deque[Waiting] = deque()
        self._call_s = rungs[0].cost_s  # that one takes
        self._woken = False
        self._spent_s, self._told = 0.0, 0  # by the loop's thread when the last turn ended; its requests

    async def ask(self, request: Request, k: int, deadline: float = math.inf) -> Answer:
        """The answer of the best rung that has the time, or what its engine raised for this request; `LateError` where it
        can't begin before `deadline` on the monotonic clock, `OverloadError` where the line is too long to join. Cancelled
        where the client left before it began."""
        self._admit()
        waiting = _joining(deadline, request, k)
        ahead = self._waiting() * self.ladder.cost(self.ladder.rung) if deadline < math.inf else 0.0
        (self._urgent if waiting.arrived + ahead > deadline else self._line).append(waiting)
        self._wake()
        found: Answer = await waiting.answer
        return found

    async def check(self, request: Request, k: int, rung: int) -> Answer:
        """As `ask`, for those who want to know whether a rung works: first in line, and let in however long it is."""
        waiting = _joining(math.inf, request, k, rung)
        self._urgent.appendleft(waiting)
        self._wake()
        found: Answer = await waiting.answer
        return found

    async def run(self, call: Callable[[], T], deadline: float = math.inf) -> T:
        """`call()` where the engines run, once it is its turn; raises as `ask`."""
        self._admit()
        waiting = _joining(deadline, call=call)
        self._calls.append(waiting)
        self._wake()
        found: T = await waiting.answer
        return found

    def _admit(self) -> None:
        """Who finds nobody there is always let in."""
        if self._anybody() and max(self.oldest_s(), self._wait_s()) > self._shed_s:
            raise OverloadError

    def _anybody(self) -> bool:
        return bool(self._line or self._urgent or self._calls)

    def oldest_s(self) -> float:
        """For how long the first in line has been waiting; 0 where nobody is."""
        firsts = [line[0].arrived for line in (self._urgent, self._line, self._calls) if line]
        return time.monotonic() - min(firsts) if firsts else 0.0

    def running_s(self) -> float:
        """For how long what runs in the pool has been running; 0 where nothing does. On the event loop nobody could ask."""
        return time.monotonic() - min(self._running.values()) if self._running else 0.0

    def _wait_s(self) -> float:
        """How long who joins now waits, if the cheapest rung answers."""
        return self._waiting() * self.ladder.cost(-1) + len(self._calls) * self._call_s / self._threads

    def _waiting(self) -> float:
        """Requests in line, for each thread."""
        return (len(self._line) + len(self._urgent)) / self._threads

    def _wake(self) -> None:
        if not self._woken:
            self._woken = True
            loop = asyncio.get_running_loop()
            loop.call_soon(self._hop, loop, HOPS)

    def _hop(self, loop: asyncio.AbstractEventLoop, left: int) -> None:
        loop.call_soon(*((self._hop, loop, left - 1) if left > 1 else (self._turn, loop)))

    def _turn(self, loop: asyncio.AbstractEventLoop) -> None:
        """Give what is in line to the engines, as far as they are free."""
        self._woken = False
        try:
            while self._free and self._leave(loop):
                if self._pool is None:
                    break  # so that what arrived meanwhile joins the next batch
        finally:
            if self._free and self._anybody():
                self._wake()

    def _leave(self, loop: asyncio.AbstractEventLoop) -> bool:
        """Give the next batch to an engine, and say whether there was one."""
        leaving = list[Waiting]()
        try:
            if told := self._told:
                self._told = 0
                self.ladder.around(told, time.thread_time() - self._spent_s)
            rungs = self._next(leaving)
            if leaving:
                self._give(Batch(leaving, rungs), loop)
        except BaseException as error:
            _fail(leaving, error)
            if isinstance(error, KeyboardInterrupt | SystemExit):
                raise
        return bool(leaving)

    def _give(self, batch: Batch, loop: asyncio.AbstractEventLoop) -> None:
        if self._pool is None:
            self._tell(batch, *answers(self._engines, batch))
            self._told, self._spent_s = len(batch.waiting), time.thread_time()
            return
        running = loop.run_in_executor(self._pool, answers, self._engines, batch)
        self._free -= 1
        self._running[running] = time.monotonic()
        running.add_done_callback(partial(self._done, batch))

    def _next(self, leaving: list[Waiting]) -> list[int]:
        """Move the call that came first to `leaving`, or those requests who are first in line; the rung for each. Whatever
        fails here does so once somebody is leaving, who can be told."""
        if self._calls and self._call_leaves(leaving):
            return [0]
        waiting, share = self._waiting(), -(-(len(self._line) + len(self._urgent)) // self._free)
        if not self._request_leaves(leaving):
            return []
        rung = self.ladder.choose(waiting, time.monotonic())
        most = min(share, self.ladder.most(rung))
        while len(leaving) < most and self._request_leaves(leaving):
            pass
        return [self._rung(waiting, rung, len(leaving)) for waiting in leaving]

    def _request_leaves(self, leaving: list[Waiting]) -> bool:
        return _leaves(self._urgent, leaving) or _leaves(self._line, leaving)

    def _call_leaves(self, leaving: list[Waiting]) -> bool:
        """The first one, if no request came before."""
        while self._calls and not self._urgent:
            if self._line and self._line[0].arrived < self._calls[0].arrived:
                return False
            if _leaves(self._calls, leaving):
                return True
        return False

    def _rung(self, waiting: Waiting, rung: int, count: int) -> int:
        if waiting.rung is not None:
            return waiting.rung
        if waiting.deadline == math.inf:
            return rung
        return self.ladder.fitting(rung, count, waiting.deadline - time.monotonic())

    def _done(self, batch: Batch, running: asyncio.Future[Ran]) -> None:
        self._free += 1
        del self._running[running]
        try:
            self._tell(batch, *running.result())
        except BaseException as error:
            _fail(batch.waiting, error)
        if self._anybody():
            self._wake()

    def _tell(self, batch: Batch, outcomes: Sequence[Any], spent_s: Mapping[int, float]) -> None:
        """Give everybody their outcome, then remember how long that took: where that fails nobody is waiting any more."""
        for waiting, rung, outcome in zip(*batch, outcomes, strict=True):
            if waiting.answer.done():  # the client left meanwhile
                continue
            if isinstance(outcome, Exception):
                waiting.answer.set_exception(_failure(outcome))
            else:
                waiting.answer.set_result(outcome if batch.call is not None else Answer(rung, outcome))
        for rung, seconds in spent_s.items():
            if batch.call is not None:
                self._call_s += WEIGHT * (seconds - self._call_s)
            else:
                self.ladder.took(rung, batch.rungs.count(rung), seconds)
        first = batch.waiting[0]
        if first.call is None and first.rung is None and not isinstance(outcomes[0], Exception):
            self._lately.add(first.request, first.k)


def _joining(
    deadline: float,
    request: Request = NOBODY,
    k: int = 0,
    rung: int | None = None,
    call: Callable[[], Any] | None = None,
) -> Waiting:
    future = asyncio.get_running_loop().create_future()
    return Waiting(future, time.monotonic(), deadline, caller.left.get(), request, k, rung, call)


def _leaves(line: deque[Waiting], leaving: list[Waiting]) -> bool:
    """Move the first in line to `leaving`, less those whose clients left or who are late; say whether there was one."""
    while line:
        waiting = line.popleft()
        leaving.append(waiting)
        if not waiting.answer.done():
            if waiting.left():
                waiting.answer.cancel()
            elif waiting.deadline < time.monotonic():
                waiting.answer.set_exception(LateError())
            else:
                return True
        leaving.pop()
    return False


def _fail(waiting: Sequence[Waiting], error: BaseException) -> None:
    """Nobody must wait for ever, whatever it is: who has no outcome yet gets this one."""
    log.error("a batch failed", exc_info=error)
    for one in waiting:
        if not one.answer.done():
            one.answer.set_exception(_failure(error))


def _failure(error: BaseException) -> Exception:
    """What a future takes for `error`: `StopIteration`, or what is no `Exception` (a panic in Rust), would end who waits for it
    as if nothing had happened, or more than them."""
    if isinstance(error, Exception) and not isinstance(error, StopIteration):
        return error
    failure = RuntimeError(f"the engine raised {error!r}")
    failure.__cause__ = error
    return failure

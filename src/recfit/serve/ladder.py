"""Quality for latency, while it is needed: several bundles for one model, from the best to the cheapest.

A controller looks at how busy the server is and how late it answers, and moves traffic down the ladder when it can't keep up
and back up when it can. Between two rungs a share of the requests gets the better one. A request with a deadline gets the best
rung that is expected to meet it.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

TICK_S = 0.02
LOW, HIGH = 0.6, 0.8
"""Between these the traffic stays where it is: what was spent for one more request of the better rung comes back as load."""
DOWN, UP = 0.5, 0.03
"""Rungs that a tick moves at most: down within a few ticks, up within seconds."""
LATE = 0.5
"""Share of the budget by which the event loop may be late, on average, before that counts as fully busy."""
DANGER = 0.75
"""Share of the budget that a tick, or the first in the queue, may be late before traffic goes down a whole rung at once."""
FLOOD = 2.0
"""Budgets that they may be late before all traffic goes to the cheapest rung: what waits already can't be helped otherwise."""
SMOOTH = 0.2
"""Weight of the last tick in the average load: bursts that pass by themselves move nothing."""
PATIENCE = 3
"""Ticks that a whole rung down gets to show what it does before the next one: the queue of the old rung has to empty."""
FORGET = 0.01
"""Share of what was served before that a tick forgets: the expected quality is that of the last seconds."""


class Rung(Protocol):
    """One of the bundles."""

    @property
    def bundle(self) -> str: ...

    @property
    def quality(self) -> float | None:
        """What was promised; None where it was not measured."""
        ...

    def expected_s(self) -> float:
        """How long an answer takes at the moment, its time in the queue included."""
        ...

    def oldest_s(self) -> float:
        """For how long the request that waits longest has been waiting."""
        ...


@dataclass
class Controller:
    """Where on a ladder of `rungs` traffic belongs: `level` 0 is the best, `rungs - 1` the cheapest, 1.25 gives a quarter of
    the requests rung 2 and the others rung 1. `budget_s` is the latency that is to be kept."""

    rungs: int
    budget_s: float
    level: float = field(default=0.0, init=False)
    load: float = field(default=0.0, init=False)
    _rest: int = field(default=0, init=False)

    def update(self, busy: float, late_s: float, oldest_s: float) -> None:
        """One tick later: the share of the time in which the server was `busy`, how `late_s` the tick came, and the age of the
        `oldest_s` request in the queue."""
        cheapest = self.rungs - 1.0
        self._rest = max(0, self._rest - 1)
        self.load += SMOOTH * (max(busy, late_s / (LATE * self.budget_s)) - self.load)
        waited = max(late_s, oldest_s) / self.budget_s
        if waited > FLOOD:
            self.level = cheapest
        elif waited > DANGER:  # what comes now would be too late with the same rung
            if not self._rest:
                self.level, self._rest = min(cheapest, math.floor(self.level) + 1.0), PATIENCE
        elif self.load > HIGH:
            self.level = min(cheapest, self.level + DOWN * min(1.0, (self.load - HIGH) / (1 - HIGH)))
        elif self.load < LOW:
            self.level = max(0.0, self.level - UP * (LOW - self.load) / LOW)


class Ladder:
    """The rungs of one model, the best first, and which of them answers."""

    def __init__(self, rungs: Sequence[Rung], budget_s: float) -> None:
        self.rungs = tuple(rungs)
        self.control = Controller(len(self.rungs), budget_s)
        self.served = [0] * len(self.rungs)
        self._lately = [0.0] * len(self.rungs)
        self._seen = [0] * len(self.rungs)
        self._watching = False

    def choose(self, left_s: float | None = None) -> int:
        """The rung for a request that has `left_s` seconds until its deadline (None: as many as it takes)."""
        if len(self.rungs) > 1 and not self._watching:
            self._watch()
        level = self.control.level
        rung = int(level) + (random.random() < level % 1)
        while left_s is not None and rung + 1 < len(self.rungs) and self.rungs[rung].expected_s() > left_s:
            rung += 1
        self.served[rung] += 1
        return rung

    def quality(self) -> float | None:
        """What is expected of the answers of the last seconds: the promises of the rungs, by their share; None where one of
        those that answered promises nothing."""
        lately = [old + now - seen for old, now, seen in zip(self._lately, self.served, self._seen, strict=True)]
        total, found = 0.0, 0.0
        for count, rung in zip(lately, self.rungs, strict=True):
            if count < 1e-6:
                continue
            if rung.quality is None:
                return None
            total, found = total + count, found + count * rung.quality
        return found / total if total else self.rungs[0].quality

    def _watch(self) -> None:
        self._watching = True
        loop = asyncio.get_running_loop()
        due = loop.time() + TICK_S
        loop.call_at(due, self._tick, loop, due, time.thread_time())

    def _tick(self, loop: asyncio.AbstractEventLoop, due: float, spent: float) -> None:
        now, cpu = loop.time(), time.thread_time()
        busy = (cpu - spent) / (TICK_S + now - due)
        self.control.update(busy, now - due, max(rung.oldest_s() for rung in self.rungs))
        self._lately = [
            (old + now - seen) * (1 - FORGET)
            for old, now, seen in zip(self._lately, self.served, self._seen, strict=True)
        ]
        self._seen = [*self.served]
        loop.call_at(now + TICK_S, self._tick, loop, now + TICK_S, cpu)

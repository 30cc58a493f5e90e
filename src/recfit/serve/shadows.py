"""Requests that another model sees too, and whose answers nobody gets.

Shadows run in a thread and a queue of their own, so that nobody waits for them; where they can't keep up, their model is not
loaded yet, or those who get answers wait already, they are left out, and counted.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from weakref import WeakKeyDictionary

from recfit.serve.batcher import Batcher
from recfit.serve.fleet import Fleet, Served
from recfit.types import Request

log = logging.getLogger("recfit.serve")

MOST = 64
"""Shadows under way at a time."""
LINE_S = 0.001
"""About what a batch takes: who is in line for longer than that waits for others, and a shadow would add to it."""


class Shadows:
    """`outcomes` counts by model and by `ok`, `failed`, `left out`."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._running: set[asyncio.Task[None]] = set()
        self._queues: WeakKeyDictionary[Served, Batcher] = WeakKeyDictionary()  # none outlives its bundle
        self.outcomes: Counter[tuple[str, str]] = Counter()

    def send(self, name: str, request: Request, k: int) -> None:
        """Ask model `name` as well."""
        busy = len(self._running) >= MOST or self._fleet.oldest_s() > LINE_S
        if busy or (model := self._fleet.at_hand(name)) is None:
            self.outcomes[name, "left out"] += 1
            return
        task = asyncio.ensure_future(self._ask(name, model.best, request, k))
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def _ask(self, name: str, served: Served, request: Request, k: int) -> None:
        try:
            await self._queue(served).ask(request, k)
            self.outcomes[name, "ok"] += 1
        except Exception as error:
            if not self.outcomes[name, "failed"]:  # the first one says it for all
                log.warning("shadow model %s failed: %r", name, error)
            self.outcomes[name, "failed"] += 1

    def _queue(self, served: Served) -> Batcher:
        """The queue in front of a bundle."""
        if served not in self._queues:
            self._queues[served] = Batcher([served], threads=1)
        return self._queues[served]

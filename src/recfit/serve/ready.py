"""Whether a model answers, told to all who ask at about the same time: probes need no key and must not displace requests."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Sequence
from contextvars import Context

from recfit.serve.batcher import Batcher
from recfit.types import Request

log = logging.getLogger("recfit.serve")

TIMEOUT_S = 1.0
KEPT_S = 0.5
"""For so long the answer to one probe is that to others. Load balancers ask once a second, or less."""


class Readiness:
    """The `canaries` are requests that need the models of a batcher's rungs, one for each."""

    def __init__(self, batcher: Batcher, canaries: Sequence[Request]) -> None:
        self._batcher, self._canaries = batcher, canaries
        self._why, self._ends = "", -math.inf
        self._running: asyncio.Task[None] | None = None

    async def refusal(self) -> str:
        """Why the model is not ready; empty where it is."""
        if time.monotonic() >= self._ends:
            if self._running is None:
                # Not in the context of who came first: it goes on for the others when they leave.
                self._running = asyncio.create_task(self._look(), context=Context())
            await asyncio.shield(self._running)
        return self._why

    async def _look(self) -> None:
        try:
            self._why = await self._asked()
            self._ends = time.monotonic() + KEPT_S
        finally:
            self._running = None

    async def _asked(self) -> str:
        """A recommendation by every rung, by the way that every request takes, but never sent away: a server that is busy is
        ready."""
        try:
            async with asyncio.timeout(TIMEOUT_S):
                for rung, canary in enumerate(self._canaries):
                    await self._batcher.check(canary, 10, rung)
        except TimeoutError:
            why = f"the canary recommendation took longer than {TIMEOUT_S:g} s"
            log.warning(why)
            return why
        except Exception:
            log.exception("the canary recommendation failed")
            return "the canary recommendation failed; the server's log says why"
        return ""

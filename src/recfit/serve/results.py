"""Answers that were given before. A key is all that an answer depends on, so that a hit is what the engine would say.

The key of a request has the ids of the bundles that may answer, and what the user did since, in it: a new bundle or ladder, or
an event of the user, asks for another answer, and nothing has to be taken out. What is no longer asked for makes room. The
answer of a cheaper bundle, given while there was no time for a better one, is known for some seconds only.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import NamedTuple, Protocol

import msgspec

from recfit.types import Request

DEGRADED_S = 5.0
"""For how long the answer of a cheaper rung is known: it helps in a rush, and must not outlive it."""
ENTRY_BYTES = 400
"""What an entry takes beside its answer: key, place in the order, times."""
JITTER = 0.1
"""Share of their time by which entries end earlier or later, so that those of one moment don't end in one."""


class Known(NamedTuple):
    """The encoded items of an answer, which bundle it is from and which part of it, and that bundle's rung."""

    items: bytes
    source: str
    bundle: str
    rung: int = 0


class Level(Protocol):
    """Answers elsewhere; where they can't be reached there are none."""

    async def find(self, key: bytes) -> Known | None: ...

    async def put(self, key: bytes, known: Known) -> None: ...


class Results:
    """Answers of the last `ttl_s` seconds, of at most `most_bytes`; the least recently asked for leave first. What is not among
    them may be on the `second` level, which other servers fill too.

    For the event loop's thread alone.
    """

    def __init__(self, most_bytes: int = 32 * 2**20, ttl_s: float = 300.0, second: Level | None = None) -> None:
        self._most_bytes, self._ttl_s, self._second = most_bytes, ttl_s, second
        self._keeping: set[asyncio.Future[None]] = set()  # a task that nobody holds may vanish
        self._entries: OrderedDict[bytes, tuple[Known, float]] = OrderedDict()
        self._running: dict[bytes, asyncio.Future[Known | None]] = {}
        self.bytes = 0
        self.hits = self.misses = self.shared = self.second_hits = 0

    @property
    def asked(self) -> int:
        """Answers that were given."""
        return self.hits + self.misses + self.shared + self.second_hits

    async def get(self, key: bytes, make: Callable[[], Awaitable[Known]]) -> Known:
        """The answer under `key`; where there is none, what `make()` gives, once for all who ask while it runs."""
        while (known := self._hit(key)) is None and (running := self._running.get(key)) is not None:
            if (known := await asyncio.shield(running)) is not None:
                self.shared += 1
                return known
        if known is not None:
            return known
        # Awaited by the caller itself and not as a task: every handing over is a turn of the loop, in which the engine runs.
        running = self._running[key] = asyncio.get_running_loop().create_future()
        try:
            known = await self._below(key, make)
        except asyncio.CancelledError:
            running.set_result(None)  # who made it left; one of those who wait makes it anew
            raise
        except Exception as error:
            running.set_exception(error)
            running.exception()  # nobody may be waiting for it
            raise
        finally:
            del self._running[key]
        self.put(key, known)
        running.set_result(known)
        return known

    async def get_alone(self, key: bytes, make: Callable[[], Awaitable[Known]]) -> Known:
        """The answer under `key`, or what `make()` gives this caller alone; it is kept."""
        if (known := self._hit(key)) is not None:
            return known
        self.misses += 1
        known = await make()
        self.put(key, known)
        return known

    def _hit(self, key: bytes) -> Known | None:
        known = self.find(key)
        self.hits += known is not None
        return known

    async def _below(self, key: bytes, make: Callable[[], Awaitable[Known]]) -> Known:
        """The answer on the second level, or a new one that is kept there too."""
        if self._second is None:
            self.misses += 1
            return await make()
        if (known := await self._second.find(key)) is not None:
            self.second_hits += 1
            return known
        self.misses += 1
        known = await make()
        if known.rung:
            return known  # others may have the time for a better one
        keeping = asyncio.ensure_future(self._second.put(key, known))
        self._keeping.add(keeping)
        keeping.add_done_callback(self._keeping.discard)
        return known

    def find(self, key: bytes) -> Known | None:
        """The answer under `key`, if it is known."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        if entry[1] < time.monotonic():
            self._drop(key)
            return None
        self._entries.move_to_end(key)
        return entry[0]

    def put(self, key: bytes, known: Known) -> None:
        """Keep an answer, in the place of one that was there."""
        if key in self._entries:
            self._drop(key)
        if _size(known) > self._most_bytes:
            return
        most_s = min(self._ttl_s, DEGRADED_S) if known.rung else self._ttl_s
        ends = time.monotonic() + most_s * random.uniform(1 - JITTER, 1 + JITTER)
        self._entries[key] = known, ends
        self.bytes += _size(known)
        while self.bytes > self._most_bytes:
            self._drop(next(iter(self._entries)))

    def _drop(self, key: bytes) -> None:
        known, _ = self._entries.pop(key)
        self.bytes -= _size(known)


def _size(known: Known) -> int:
    return len(known.items) + ENTRY_BYTES


def key_of(bundles: str, request: Request, k: int) -> bytes:
    """Equal for requests that every engine answers alike. `bundles` are all that may answer, for an answer knows its rung
    among them."""
    text = msgspec.msgpack.encode((bundles, k, request), order="deterministic")
    return hashlib.blake2b(text, digest_size=16).digest()

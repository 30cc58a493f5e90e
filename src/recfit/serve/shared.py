"""What several servers share through Redis: live events, and a second level of answers that were given before.

Redis may be slow, frozen or gone; requests are answered anyway. A command has `TIMEOUT_S`, and after one that failed nothing
is asked for `PAUSE_S`, then one thing to see whether it is back (a circuit breaker). A command that was begun is never
cancelled, since its reply would be taken for the next one's (redis-py issue 2624), and a value begins with its key, so that a
reply to something else is noticed.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from typing import Any

from recfit.serve.events import DAY_S, DAYS, KEEP, UnavailableError
from recfit.serve.results import Known
from recfit.types import ConfigError

log = logging.getLogger("recfit.serve")

TIMEOUT_S, PAUSE_S = 0.02, 1.0
PREFIX = b"recfit:"


class Shared:
    """A client with a circuit breaker, which is `broken` while Redis does not answer. `failures` counts commands that were not
    answered, `skipped` those not sent."""

    def __init__(self, url: str) -> None:
        try:
            from redis.asyncio import Redis
        except ImportError as error:
            raise ConfigError("redis is not installed; pip install 'recfit[redis]'") from error
        try:
            self._client: Any = Redis.from_url(
                url, socket_timeout=TIMEOUT_S, socket_connect_timeout=TIMEOUT_S, retry=None
            )
        except ValueError as error:
            message = f"serve.redis = {url!r} is no address: {error}; give one such as redis://127.0.0.1:6379/0"
            raise ConfigError(message) from None
        self._running: set[asyncio.Future[Any]] = set()
        self.broken, self._again_at = False, 0.0
        self.failures = self.skipped = 0

    async def call(self, *command: Any) -> Any:
        """The reply. Raises `UnavailableError` where Redis does not answer, or did not a moment ago."""
        if self.broken:
            if time.monotonic() < self._again_at:
                self.skipped += 1
                raise UnavailableError
            self._again_at = time.monotonic() + PAUSE_S  # one asks whether it is back, the others go on without
        running = asyncio.ensure_future(self._client.execute_command(*command))
        self._running.add(running)
        running.add_done_callback(self._running.discard)
        try:
            reply = await asyncio.shield(running)
        except asyncio.CancelledError:
            running.add_done_callback(lambda done: done.cancelled() or done.exception())  # it ends by itself
            raise
        except Exception as error:
            self.failures += 1
            if not self.broken:
                log.warning("redis does not answer (%s); going on without it", error)
            self.broken, self._again_at = True, time.monotonic() + PAUSE_S
            raise UnavailableError from error
        if self.broken:
            log.warning("redis answers again")
        self.broken = False
        return reply

    async def aclose(self) -> None:
        """Once what was begun is over."""
        await asyncio.sleep(0)  # an answer that was just given has begun to be kept
        await asyncio.gather(*self._running, return_exceptions=True)
        await self._client.aclose()


class SharedEvents:
    """`Events` in Redis: a list for each user, until `days` after the last one (0: for ever)."""

    def __init__(self, shared: Shared, days: float = DAYS) -> None:
        self.shared, self._seconds, self.unread = shared, round(days * DAY_S), 0

    async def add(self, events: Sequence[tuple[str, str]]) -> None:
        by_user: dict[str, list[str]] = {}
        for user, item in events:
            by_user.setdefault(user, []).append(item)
        for user, items in by_user.items():
            key = PREFIX + b"events:" + user.encode()
            await self.shared.call("RPUSH", key, *items)
            await self.shared.call("LTRIM", key, -KEEP, -1)
            await self.shared.call(*(("EXPIRE", key, self._seconds) if self._seconds else ("PERSIST", key)))

    async def recent(self, user_id: str) -> tuple[str, ...]:
        try:
            items = await self.shared.call("LRANGE", PREFIX + b"events:" + user_id.encode(), 0, -1)
        except UnavailableError:
            self.unread += 1
            raise
        return tuple([item.decode() for item in items])

    def close(self) -> None: ...


class SharedResults:
    """Answers under keys of 16 bytes, for `ttl_s`."""

    def __init__(self, shared: Shared, ttl_s: float = 300.0) -> None:
        self._shared, self._ttl_ms = shared, round(ttl_s * 1e3)

    async def find(self, key: bytes) -> Known | None:
        try:
            value = await self._shared.call("GET", PREFIX + key)
        except UnavailableError:
            return None
        known = value[len(key) :] if value is not None and value.startswith(key) else b""
        if known.count(b"\n") < 2:
            return None
        bundle, source, items = known.split(b"\n", 2)
        return Known(items, source.decode(), bundle.decode())

    async def put(self, key: bytes, known: Known) -> None:
        try:
            value = key + b"\n".join((known.bundle.encode(), known.source.encode(), known.items))
            await self._shared.call("SET", PREFIX + key, value, "PX", self._ttl_ms)
        except UnavailableError:
            return

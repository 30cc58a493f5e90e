"""What several servers share through Redis: live events, and a second level of answers that were given before.

Redis may be slow, frozen or gone; requests are answered anyway. A command has a time-out, and after `IN_A_ROW` of its kind that
failed one after the other none is sent for `PAUSE_S`, then one to see whether Redis is back (a circuit breaker). Requests and
events have one each: a Redis that is too late for answers may be in time for events. A reply that is an error (Redis is full,
or a replica) is a reply: that command is refused, and nothing else.

Commands of one turn of the event loop go together, so that a batch of requests takes one connection and not one for each. What
was begun is never cancelled, since its replies would be taken for the next one's (redis-py issue 2624), and ends with a number
that Redis has to say again, so that replies to something else are noticed.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import Awaitable, Sequence
from typing import Any, NamedTuple

from recfit.serve.events import DAY_S, DAYS, KEEP, UnavailableError
from recfit.serve.results import Known
from recfit.types import ConfigError

log = logging.getLogger("recfit.serve")

TIMEOUT_S, PAUSE_S, IN_A_ROW = 0.005, 1.0, 3
EVENTS_S = 0.25
"""The time-out of events: no answer waits for them, and those that are given up although they arrive are sent twice."""
WORD_S = 20e-6
"""What a word of a command may take on top, so that 256 reads or 1,000 events together are not late for their number."""
WAYS = 4
"""Connections that are asked at a time. Who comes while all of them are waited for goes along with the next."""
TURNS = 8
"""Turns of the event loop after a time-out in which a reply still counts: the loop may have been busy, and not Redis."""
SAY_S = 60.0
"""Between two words in the log about commands that are refused."""
PREFIX = b"recfit:"
ADD = """
local at = 3
for _, key in ipairs(KEYS) do
  local last = at + ARGV[at]
  if redis.call('RPUSH', key, unpack(ARGV, at + 1, last)) > tonumber(ARGV[1]) then
    redis.call('LTRIM', key, -ARGV[1], -1)
  end
  if ARGV[2] == '0' then redis.call('PERSIST', key) else redis.call('EXPIRE', key, ARGV[2]) end
  at = last + 1
end
"""
"""Events of several users (`KEYS`): how many are kept of a user, for how many seconds (0: for ever), and for each user how many
items there are, and these. Nobody sees a part of them; but Redis takes nothing back, so a key that is no list leaves the users
before it written. In a script they are one command of one reply; as 3,000 commands between MULTI and EXEC, 1,000 users hold
the event loop five times as long."""

Command = tuple[Any, ...]


class _Asked(NamedTuple):
    """A command in line, and the future of its reply: an exception where that is an error."""

    command: Command
    reply: asyncio.Future[Any]

    def tell(self, reply: Any) -> None:
        if not self.reply.done():  # the client left
            self.reply.set_result(reply)


class _Line:
    """Commands for one `kind` of caller that have `timeout_s`, and go together once there is a way. It is `broken` while Redis
    does not answer them."""

    def __init__(self, kind: str, timeout_s: float) -> None:
        self.kind, self.timeout_s, self.broken = kind, timeout_s, False
        self.asked, self.ways = list[_Asked](), asyncio.Semaphore(WAYS)
        self.again_at = 0.0  # when a broken one is tried
        self._failed, self._failed_at = 0, 0.0

    def take(self) -> list[_Asked]:
        asked, self.asked = self.asked, []
        return asked

    def tries(self) -> bool:
        """Whether this command is the one that asks whether Redis is back; the others go on without."""
        now = time.monotonic()
        if now < self.again_at:
            return False
        self.again_at = now + PAUSE_S
        return True

    def answered(self) -> None:
        if self.broken:
            log.warning("redis answers %s again", self.kind)
        self.broken, self._failed = False, 0

    def failed(self, begin: float, error: Exception) -> None:
        """Commands that were sent at `begin` were not answered. Those under way at the same time are one failure of Redis."""
        if begin >= self._failed_at:
            self._failed, self._failed_at = self._failed + 1, time.monotonic()
        if self._failed >= IN_A_ROW:
            if not self.broken:
                log.warning("redis does not answer %s (%s); going on without it", self.kind, error)
            self.broken, self.again_at = True, time.monotonic() + PAUSE_S


class Shared:
    """A client that waits `timeout_s` for what requests need, and `EVENTS_S` at least for events. `failures` counts commands
    that were not answered in that time, `skipped` those not sent, and `refused` those whose reply was an error."""

    def __init__(self, url: str, timeout_s: float = TIMEOUT_S) -> None:
        try:
            from redis.asyncio import Redis
        except ImportError as error:
            raise ConfigError("redis is not installed; pip install 'recfit[redis]'") from error
        try:  # what nobody waits for any more ends after PAUSE_S
            self._client: Any = Redis.from_url(url, socket_timeout=PAUSE_S, socket_connect_timeout=PAUSE_S, retry=None)
        except ValueError as error:
            message = f"serve.redis = {url!r} is no address: {error}; give one such as redis://127.0.0.1:6379/0"
            raise ConfigError(message) from None
        self._requests, self._events = _Line("requests", timeout_s), _Line("events", max(timeout_s, EVENTS_S))
        self._running, self._numbers = set[asyncio.Future[Any]](), itertools.count(1)
        self._said_at = float("-inf")
        self.failures = self.skipped = self.refused = 0

    @property
    def broken(self) -> bool:
        """Whether requests go on without Redis."""
        return self._requests.broken

    async def call(self, *command: Any) -> Any:
        """The reply. Raises `UnavailableError` where that is an error, where Redis does not answer, or did not a moment ago."""
        return await self._ask(self._requests, command)

    async def add(self, *command: Any) -> None:
        """As `call`, for events."""
        await self._ask(self._events, command)

    async def _ask(self, line: _Line, command: Command) -> Any:
        if line.broken and not line.tries():
            self.skipped += 1
            raise UnavailableError
        asked = _Asked(command, asyncio.get_running_loop().create_future())
        line.asked.append(asked)
        if len(line.asked) == 1:
            self._begin(self._send(line))
        reply = await asked.reply
        if isinstance(reply, Exception):
            raise UnavailableError(str(reply)) from reply
        return reply

    def _begin(self, what: Awaitable[Any]) -> asyncio.Future[Any]:
        """As a task that nobody cancels."""
        running = asyncio.ensure_future(what)
        self._running.add(running)
        running.add_done_callback(self._running.discard)
        return running

    async def _send(self, line: _Line) -> None:
        """Ask what is in line, and give everybody their reply."""
        async with line.ways:
            together = line.take()
            if not together:
                return
            begin, commands = time.monotonic(), [asked.command for asked in together]
            try:
                replies = await self._in_time(self._begin(self._replies(commands)), line.timeout_s, commands)
            except Exception as error:
                self._lost(line, together, begin, error)
                return
        line.answered()
        for asked, reply in zip(together, replies, strict=True):
            if isinstance(reply, Exception):
                self._refuse(reply)
            asked.tell(reply)

    async def _replies(self, commands: Sequence[Command]) -> list[Any]:
        number = b"%d" % next(self._numbers)
        async with self._client.pipeline(transaction=False) as pipeline:
            for command in (*commands, ("ECHO", number)):
                pipeline.execute_command(*command)
            replies: list[Any] = await pipeline.execute(raise_on_error=False)
        if isinstance(last := replies.pop(), Exception):
            raise last
        if last != number:
            await self._client.connection_pool.disconnect()
            raise ConnectionError("the replies of a connection were those to something else")
        return replies

    async def _in_time(
        self, running: asyncio.Future[list[Any]], timeout_s: float, commands: Sequence[Command]
    ) -> list[Any]:
        """What `running` gives. It goes on by itself where it takes too long."""
        await asyncio.wait([running], timeout=timeout_s + WORD_S * sum(map(len, commands)))
        for _ in range(TURNS):
            if running.done():
                return running.result()
            await asyncio.sleep(0)
        running.add_done_callback(lambda done: done.cancelled() or done.exception())
        raise TimeoutError(f"no reply within {timeout_s * 1e3:g} ms")

    def _lost(self, line: _Line, together: Sequence[_Asked], begin: float, error: Exception) -> None:
        """They were not answered, and nobody who waits behind them will be while the line is broken."""
        self.failures += len(together)
        line.failed(begin, error)
        waiting = line.take() if line.broken else []
        self.skipped += len(waiting)
        for asked in (*together, *waiting):
            asked.tell(error)

    def _refuse(self, error: Exception) -> None:
        self.refused += 1
        if (now := time.monotonic()) > self._said_at + SAY_S:
            self._said_at = now
            log.warning("redis refuses a command, others are sent: %s", error)


class SharedEvents:
    """`Events` in Redis: a list for each user, until `days` after the last one (0: for ever)."""

    def __init__(self, shared: Shared, days: float = DAYS) -> None:
        self.shared, self._seconds, self.unread = shared, round(days * DAY_S), 0

    async def add(self, events: Sequence[tuple[str, str]]) -> None:
        by_user: dict[str, list[str]] = {}
        for user, item in events:
            by_user.setdefault(user, []).append(item)
        newest = [items[-KEEP:] for items in by_user.values()]
        words = [word for items in newest for word in (len(items), *items)]
        await self.shared.add("EVAL", ADD, len(by_user), *map(_key, by_user), KEEP, self._seconds, *words)

    async def recent(self, user_id: str) -> tuple[str, ...]:
        try:
            items = await self.shared.call("LRANGE", _key(user_id), 0, -1)
        except UnavailableError:
            self.unread += 1
            raise
        return tuple([item.decode() for item in items])

    def close(self) -> None:
        """What was acknowledged is in Redis, and connections end with the process."""


def _key(user_id: str) -> bytes:
    return PREFIX + b"events:" + user_id.encode()


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

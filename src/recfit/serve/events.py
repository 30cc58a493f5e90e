"""What users did since the bundle was made: the next request sees it.

The embedded store is a file of SQLite in WAL mode. A committed event survives a crash of the process, `kill -9` included;
several servers of one machine may share the file. A thread of its own writes, so that nobody else waits for the disk or for who
holds the file; what waits for the thread is its next transaction.
"""

from __future__ import annotations

import asyncio
import logging
import math
import sqlite3
import time
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import Protocol

from recfit.config import MEMORY
from recfit.serve.sqlite import forget, opened
from recfit.types import ConfigError

log = logging.getLogger("recfit.serve")

KEEP = 200
"""Events of a user that are kept, the newest ones: as many as the longest histories that models read."""
DAYS = 30.0
DAY_S = 86_400.0
USER_BYTES, EVENT_BYTES = 350, 70
"""What a user and an event take in memory beside the characters of their ids."""
HELD_S = 1.0
"""How long events wait for a file that somebody else holds."""
MOST_WAITING, TOGETHER = 10_000, 1000
"""Events that may wait for the file, and about how many of them are a transaction."""
TABLES = """
CREATE TABLE IF NOT EXISTS events (id INTEGER PRIMARY KEY, user TEXT, item TEXT, at REAL);
CREATE INDEX IF NOT EXISTS of_user ON events (user, id);
"""
Event = tuple[str, str]
"""A user and an item."""


class UnavailableError(Exception):
    """The store does not answer at the moment."""


class Events(Protocol):
    """`unread` counts the calls of `recent` that failed."""

    unread: int

    async def add(self, events: Sequence[Event]) -> None:
        """Record them in this order. Raises `UnavailableError`."""
        ...

    async def recent(self, user_id: str) -> tuple[str, ...]:
        """The items of the user's newest events, oldest first. Raises `UnavailableError`."""
        ...

    def close(self) -> None: ...


class MemoryEvents:
    """Events for as long as the process runs: those of the last `days` (0: of all) and of at most `most_bytes`; who did nothing
    for longest leaves first."""

    def __init__(self, days: float = DAYS, most_bytes: int = 64 * 2**20) -> None:
        self._past_s, self._most_bytes = _seconds(days), most_bytes
        self._users: OrderedDict[str, tuple[float, tuple[str, ...]]] = OrderedDict()
        self.bytes = self.unread = 0

    async def add(self, events: Sequence[Event]) -> None:
        now = time.time()
        for user, item in events:
            items = (*self._drop(user), item)[-KEEP:] if user in self._users else (item,)
            self._users[user] = now, items
            self.bytes += _bytes(user, items)
        while self._users:
            user, (at, _) = next(iter(self._users.items()))
            if self.bytes <= self._most_bytes and at >= now - self._past_s:
                return
            self._drop(user)

    async def recent(self, user_id: str) -> tuple[str, ...]:
        return self._users[user_id][1] if user_id in self._users else ()

    def close(self) -> None: ...

    def _drop(self, user: str) -> tuple[str, ...]:
        _, items = self._users.pop(user)
        self.bytes -= _bytes(user, items)
        return items


class SqliteEvents:
    """Events in the file `path`, for `days` (0: for ever)."""

    def __init__(self, path: Path, days: float = DAYS) -> None:
        self._path, self._past_s = path, _seconds(days)
        try:
            self._file, self._reader = opened(path, TABLES), opened(path, TABLES)
            self._file.execute(f"PRAGMA busy_timeout={round(1e3 * HELD_S)}")
            self._reader.execute("PRAGMA busy_timeout=0")  # readers wait for nobody: on the event loop they must not
        except sqlite3.Error as error:
            raise ConfigError(f"the events file {path} cannot be opened: {error}; name another") from error
        self._queue: SimpleQueue[tuple[Sequence[Event], asyncio.Future[None]] | None] = SimpleQueue()
        self._waits, self._fails, self.unread = 0, False, 0
        self._writer = Thread(target=self._write, name="recfit-events", daemon=True)
        self._writer.start()

    async def add(self, events: Sequence[Event]) -> None:
        if self._waits >= MOST_WAITING:
            raise UnavailableError
        written = asyncio.get_running_loop().create_future()
        self._queue.put((events, written))
        self._waits += len(events)
        try:
            await written
        finally:
            self._waits -= len(events)

    async def recent(self, user_id: str) -> tuple[str, ...]:
        try:
            rows = self._reader.execute(
                "SELECT item FROM events WHERE user = ? AND at >= ? ORDER BY id", (user_id, time.time() - self._past_s)
            ).fetchall()
        except sqlite3.Error as error:
            self.unread += 1
            raise UnavailableError from error
        return tuple([item for (item,) in rows])

    def close(self) -> None:
        """Once what waits is written."""
        self._queue.put(None)
        self._writer.join()
        self._reader.close()
        self._file.close()

    def _write(self) -> None:
        with suppress(sqlite3.Error):  # another server may do it
            while forget(self._file, "events", time.time() - self._past_s, 10_000):
                pass
        while (call := self._queue.get()) is not None:
            events, told = [*call[0]], [call[1]]
            while len(events) < TOGETHER and not self._queue.empty():
                if (call := self._queue.get()) is None:
                    self._queue.put(None)  # for the next turn
                    break
                events += call[0]
                told.append(call[1])
            error = self._written(events)
            for future in told:
                with suppress(RuntimeError):  # its loop is over
                    future.get_loop().call_soon_threadsafe(_tell, future, error)

    def _written(self, events: Sequence[Event]) -> UnavailableError | None:
        """All of them, or none and the reason why."""
        try:
            self._transaction(events)
        except Exception as error:
            with suppress(sqlite3.Error):
                if self._file.in_transaction:
                    self._file.execute("ROLLBACK")
            if not self._fails:
                log.error("the events file %s takes none (%s); they are refused until it does", self._path, error)
            self._fails = True
            return UnavailableError(str(error))
        if self._fails:
            log.warning("the events file %s takes events again", self._path)
        self._fails = False
        return None

    def _transaction(self, events: Sequence[Event]) -> None:
        now = time.time()
        self._file.execute("BEGIN IMMEDIATE")
        self._file.executemany(
            "INSERT INTO events (user, item, at) VALUES (?, ?, ?)", [(*event, now) for event in events]
        )
        self._file.executemany(
            "DELETE FROM events WHERE user = ? AND id <= "
            "(SELECT id FROM events WHERE user = ? ORDER BY id DESC LIMIT 1 OFFSET ?)",
            [(user, user, KEEP) for user in dict.fromkeys(user for user, _ in events)],
        )
        forget(self._file, "events", now - self._past_s, 2 * len(events))
        self._file.execute("COMMIT")


def store(name: str | None, days: float) -> Events:
    """Events in the file of this name, or in memory. Raises `ConfigError`."""
    return MemoryEvents(days) if name in (None, MEMORY) else SqliteEvents(Path(str(name)), days)


def beside(bundle: Path) -> str:
    """The file that keeps events where none is named, next to the bundle so that it shares its fate; `MEMORY` where nothing can
    be written there."""
    bundle = bundle.resolve()
    path = bundle.with_name(f"{bundle.name}.events.db")
    try:
        opened(path, TABLES).close()
    except sqlite3.Error as error:
        text = "what users do is forgotten at the end, since %s cannot be written (%s); --events names another file"
        log.warning(text, path, error)
        return MEMORY
    log.info("what users do is kept in %s", path)
    return str(path)


def _tell(future: asyncio.Future[None], error: UnavailableError | None) -> None:
    if future.done():  # the client left
        return
    if error is None:
        future.set_result(None)
    else:
        future.set_exception(error)


def _seconds(days: float) -> float:
    return days * DAY_S or math.inf


def _bytes(user: str, items: Sequence[str]) -> int:
    return USER_BYTES + len(user) + sum(EVENT_BYTES + len(item) for item in items)

"""What users did since the bundle was made: the next request sees it.

The embedded store is a file of SQLite in WAL mode. A committed event survives a crash of the process, `kill -9` included;
several servers of one machine may share the file.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from recfit.serve.sqlite import opened
from recfit.types import ConfigError

KEEP = 200
"""Events of a user that are kept, the newest ones: as many as the longest histories that models read."""
TABLES = """
CREATE TABLE IF NOT EXISTS events (id INTEGER PRIMARY KEY, user TEXT, item TEXT, at REAL);
CREATE INDEX IF NOT EXISTS of_user ON events (user, id);
"""


class UnavailableError(Exception):
    """The store does not take anything at the moment."""


class Events(Protocol):
    async def add(self, events: Sequence[tuple[str, str]]) -> None:
        """Record pairs of user and item, in this order. Raises `UnavailableError`."""
        ...

    async def recent(self, user_id: str) -> tuple[str, ...]:
        """The items of the user's newest events, oldest first."""
        ...

    def close(self) -> None: ...


class SqliteEvents:
    """Events in the file `path`, or in memory for as long as the process runs."""

    def __init__(self, path: Path | None = None) -> None:
        name = ":memory:" if path is None else str(path)
        try:
            self._file = opened(name, TABLES)
        except sqlite3.Error as error:
            raise ConfigError(f"the events file {name} cannot be opened: {error}; name another") from error

    async def add(self, events: Sequence[tuple[str, str]]) -> None:
        now = time.time()
        self._file.execute("BEGIN IMMEDIATE")
        try:
            self._file.executemany(
                "INSERT INTO events (user, item, at) VALUES (?, ?, ?)", [(*event, now) for event in events]
            )
            for user in dict.fromkeys(user for user, _ in events):
                self._file.execute(
                    "DELETE FROM events WHERE user = ? AND id <= "
                    "(SELECT id FROM events WHERE user = ? ORDER BY id DESC LIMIT 1 OFFSET ?)",
                    (user, user, KEEP),
                )
        except BaseException:
            self._file.execute("ROLLBACK")
            raise
        self._file.execute("COMMIT")

    async def recent(self, user_id: str) -> tuple[str, ...]:
        rows = self._file.execute("SELECT item FROM events WHERE user = ? ORDER BY id", (user_id,))
        return tuple([item for (item,) in rows])

    def close(self) -> None:
        self._file.close()

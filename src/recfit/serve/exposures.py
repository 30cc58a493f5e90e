"""What was shown to whom, and what they made of it: the log that an experiment is judged by.

Rows wait in memory and are written together, by a thread of their own, so that no request waits for the disk; those that it
does not take are tried again. User ids are hashed with the log's own salt, so that equal users are equal. That is a pseudonym
and no more: the salt is in the file, for restarts and workers, so who has the log can try ids until one fits. After a crash the
rows of the last moment are missing, on both sides of an experiment alike. The oldest rows leave as new ones come.
"""

from __future__ import annotations

import hashlib
import logging
import math
import os
import sqlite3
import threading
import time
from contextlib import suppress
from pathlib import Path

from recfit.serve.events import DAY_S
from recfit.serve.sqlite import forget, opened
from recfit.types import ConfigError

log = logging.getLogger("recfit.serve")

DAYS = 180.0
EVERY_S = 0.5
MOST_ROWS = 100_000
"""Rows that may wait; what comes on top while the disk does not take any is counted and left out."""
TABLES = """
CREATE TABLE IF NOT EXISTS exposures (request TEXT, user TEXT, experiment TEXT, arm TEXT, bundle TEXT, at REAL);
CREATE TABLE IF NOT EXISTS feedback (request TEXT, item TEXT, kind TEXT, at REAL);
CREATE TABLE IF NOT EXISTS about (key TEXT PRIMARY KEY, value BLOB);
CREATE INDEX IF NOT EXISTS by_experiment ON exposures (experiment, request);
CREATE INDEX IF NOT EXISTS by_request ON feedback (request);
"""


class Exposures:
    """The log in the file `path` (SQLite), of the last `days` (0: of all). `dropped` counts rows that were lost."""

    def __init__(self, path: Path, days: float = DAYS) -> None:
        try:
            self._file = opened(path, TABLES)
            self._file.execute("INSERT OR IGNORE INTO about VALUES ('salt', ?)", (os.urandom(16),))
            (self._salt,) = self._file.execute("SELECT value FROM about WHERE key = 'salt'").fetchone()
        except sqlite3.Error as error:
            raise ConfigError(f"the exposure log {path} cannot be opened: {error}; name another") from error
        self.dropped, self._past_s = 0, days * DAY_S or math.inf
        self._shown: list[tuple[str, str, str, str, str, float]] = []
        self._made: list[tuple[str, str | None, str, float]] = []
        self._fails = False
        self._over = threading.Event()
        self._writer = threading.Thread(target=self._write, name="recfit-exposures", daemon=True)
        self._writer.start()

    def shown(self, request: str, user_id: str, experiment: str, arm: str, bundle: str) -> None:
        """An answer went out."""
        if len(self._shown) >= MOST_ROWS:
            self.dropped += 1
            return
        user = hashlib.blake2b(user_id.encode(), key=self._salt, digest_size=8).hexdigest()
        self._shown.append((request, user, experiment, arm, bundle, time.time()))

    def made(self, request: str, item: str | None, kind: str) -> bool:
        """Somebody did something with the answer to `request`. False where too much waits, and nothing is kept."""
        if len(self._made) >= MOST_ROWS:
            return False
        self._made.append((request, item, kind, time.time()))
        return True

    def close(self) -> None:
        """Write what waits."""
        self._over.set()
        self._writer.join()
        self._file.close()
        if lost := len(self._shown) + len(self._made):
            self.dropped += lost
            log.error("%d rows of the exposure log could not be written", lost)

    def _write(self) -> None:
        with suppress(sqlite3.Error):  # another server may do it
            while self._forget("exposures", 10_000) or self._forget("feedback", 10_000):
                pass
        while not self._over.wait(EVERY_S):
            self._flush()
        self._flush()

    def _forget(self, table: str, most: int) -> int:
        return forget(self._file, table, time.time() - self._past_s, most)

    def _flush(self) -> None:
        """Rows leave the memory once they are written; others are added meanwhile, behind them."""
        shown, made = self._shown[:], self._made[:]
        if not shown and not made:
            return
        try:
            self._file.execute("BEGIN IMMEDIATE")
            self._file.executemany("INSERT INTO exposures VALUES (?, ?, ?, ?, ?, ?)", shown)
            self._file.executemany("INSERT INTO feedback VALUES (?, ?, ?, ?)", made)
            self._forget("exposures", 2 * len(shown))
            self._forget("feedback", 2 * len(made))
            self._file.execute("COMMIT")
        except sqlite3.Error as error:
            if not self._fails:
                log.error("the exposure log takes no rows (%s); they wait until it does, %d at most", error, MOST_ROWS)
            self._fails = True
            with suppress(sqlite3.Error):
                if self._file.in_transaction:
                    self._file.execute("ROLLBACK")
            return
        if self._fails:
            log.warning("the exposure log takes rows again")
        self._fails = False
        del self._shown[: len(shown)]
        del self._made[: len(made)]

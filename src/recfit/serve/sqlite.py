"""A file of SQLite that the workers of a server share."""

from __future__ import annotations

import sqlite3
import time
from pathlib import Path

BUSY_S = 5.0
"""How long one waits for what another holds."""
AGAIN_S = 0.01


def opened(path: Path | str, tables: str) -> sqlite3.Connection:
    """The file at `path` in WAL mode with `tables` made, from any thread; statements commit on their own. Workers start
    together, so several may open a file that is not there yet. Raises `sqlite3.Error`."""
    file = sqlite3.connect(path, timeout=BUSY_S, isolation_level=None, check_same_thread=False)
    try:
        _to_wal(file)
        file.executescript(f"PRAGMA synchronous=NORMAL; BEGIN IMMEDIATE; {tables} COMMIT;")
    except BaseException:
        file.close()
        raise
    return file


def _to_wal(file: sqlite3.Connection) -> None:
    """The first to open a file changes its mode; the others are told at once that it is locked, SQLite does not wait here."""
    end = time.monotonic() + BUSY_S
    while True:
        try:
            file.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > end:
                raise
            time.sleep(AGAIN_S)


def forget(file: sqlite3.Connection, table: str, before: float, most: int) -> int:
    """Delete those of the `most` oldest rows of `table` that are from before `before` (seconds, its column `at`); returns how
    many. Rows are in the order of their time, so that nothing has to be looked for: to delete with every write up to twice as
    many as are written keeps up at a price that does not grow."""
    oldest = f"SELECT id FROM (SELECT rowid AS id, at FROM {table} ORDER BY rowid LIMIT ?) WHERE at < ?"
    return file.execute(f"DELETE FROM {table} WHERE rowid IN ({oldest})", (most, before)).rowcount

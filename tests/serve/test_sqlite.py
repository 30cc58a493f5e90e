"""Files that several workers open at once."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from threading import Barrier, Thread, Timer

import pytest

from recfit.serve import sqlite
from recfit.serve.sqlite import opened

TABLES = "CREATE TABLE IF NOT EXISTS notes (text TEXT);"


def test_workers_that_start_together_all_get_a_new_file(tmp_path: Path) -> None:
    ready, failed = Barrier(4), []

    def start(path: Path) -> None:
        ready.wait()
        try:
            opened(path, TABLES).close()
        except sqlite3.Error as error:
            failed.append(error)

    for n in range(30):
        threads = [Thread(target=start, args=(tmp_path / f"{n}.db",)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert failed == []


def _holder(path: Path) -> sqlite3.Connection:
    file = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    file.execute("CREATE TABLE other (text TEXT)")
    file.execute("BEGIN IMMEDIATE")
    return file


def test_it_waits_for_one_who_holds_the_file(tmp_path: Path) -> None:
    held = _holder(tmp_path / "notes.db")
    free = Timer(0.3, held.execute, args=("COMMIT",))
    free.start()
    file = opened(tmp_path / "notes.db", TABLES)
    assert not held.in_transaction
    assert file.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert file.execute("SELECT count(*) FROM notes").fetchone() == (0,)
    file.close()
    free.join()
    held.close()


def test_it_does_not_wait_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite, "BUSY_S", 0.1)
    held = _holder(tmp_path / "notes.db")
    with pytest.raises(sqlite3.OperationalError, match="locked"):
        opened(tmp_path / "notes.db", TABLES)
    held.close()

"""The exposure log keeps what it said it would, and forgets what is old."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from fake_engine import FakeEngine, app_of

from recfit.serve import exposures as module
from recfit.serve.exposures import Exposures

DAY_S = 86_400


def requests(path: Path) -> tuple[set[str], set[str]]:
    with closing(sqlite3.connect(path)) as file:
        shown, made = (file.execute(f"SELECT request FROM {table}").fetchall() for table in ("exposures", "feedback"))
    return {request for (request,) in shown}, {request for (request,) in made}


def test_old_rows_leave_as_new_ones_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, now = tmp_path / "log.db", [1e9]
    monkeypatch.setattr(module.time, "time", lambda: now[0])

    def log(days: float, *names: str) -> None:
        with closing(Exposures(path, days)) as exposures:
            for name in names:
                exposures.shown(name, "u1", "e", "a", "b")
                exposures.made(name, None, "click")

    log(10, "one", "two", "three")
    now[0] += 9 * DAY_S
    log(10, "four")
    assert requests(path) == ({"one", "two", "three", "four"},) * 2
    now[0] += 2 * DAY_S
    log(0, "five")  # for ever
    assert len(requests(path)[0]) == 5
    log(10)  # what is old goes at the start
    assert requests(path) == ({"four", "five"},) * 2
    with closing(Exposures(path, 10)) as exposures:
        exposures._over.set()  # no writing beside this
        exposures._writer.join()
        now[0] += 9 * DAY_S
        exposures.made("six", None, "click")
        exposures._flush()
    assert requests(path) == ({"four", "five"}, {"five", "six"})


def stopped(path: Path) -> Exposures:
    """A log that is written when the test says so."""
    exposures = Exposures(path)
    exposures._over.set()
    exposures._writer.join()
    exposures._file.execute("PRAGMA busy_timeout=0")
    return exposures


def test_rows_wait_while_somebody_holds_the_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "log.db"
    with closing(stopped(path)) as log, closing(sqlite3.connect(path, isolation_level=None)) as holder:
        holder.execute("BEGIN IMMEDIATE")
        for name in ("one", "two"):
            log.shown(name, "u1", "e", "a", "b")
            assert log.made(name, None, "click")
            log._flush()
        holder.execute("COMMIT")
        assert requests(path) == (set(), set())
        log._flush()
        assert requests(path) == ({"one", "two"},) * 2
        log._flush()
        assert log.dropped == 0
    assert [record.message.split(" (")[0] for record in caplog.records] == [
        "the exposure log takes no rows",
        "the exposure log takes rows again",
    ]
    with closing(sqlite3.connect(path)) as file:
        assert file.execute("SELECT count(*) FROM feedback").fetchone() == (2,)  # once each


def test_rows_that_are_never_written_are_counted(tmp_path: Path) -> None:
    log = stopped(tmp_path / "log.db")
    log.shown("one", "u1", "e", "a", "b")
    log.made("one", None, "click")
    log.close()
    assert log.dropped == 2


def test_feedback_is_refused_where_too_much_waits(call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_ROWS", 2)
    log, told = stopped(tmp_path / "log.db"), {"request_id": "r"}
    app = app_of(FakeEngine(), exposures=log)
    assert [call(app, "POST", "/v1/feedback", json=told).json() for _ in range(2)] == [{"kept": True}] * 2
    refused = call(app, "POST", "/v1/feedback", json=told)
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "store_unavailable")
    assert refused.headers["retry-after"] == "1"
    log._flush()
    assert call(app, "POST", "/v1/feedback", json=told).json() == {"kept": True}
    assert log.dropped == 0
    log._flush()
    log.close()

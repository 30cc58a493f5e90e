"""The exposure log forgets what is old."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

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

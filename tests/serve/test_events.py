"""What users did since: kept, in order, over restarts and crashes."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from fake_engine import FakeEngine, app_of

from recfit.serve import events as module
from recfit.serve.events import SqliteEvents
from recfit.types import ConfigError


def added(store: SqliteEvents, *events: tuple[str, str]) -> None:
    asyncio.run(store.add(events))


def recent(store: SqliteEvents, user: str) -> tuple[str, ...]:
    return asyncio.run(store.recent(user))


def test_events_of_a_user_come_back_oldest_first() -> None:
    store = SqliteEvents()
    added(store, ("a", "1"), ("b", "2"), ("a", "3"))
    added(store, ("a", "1"))
    assert recent(store, "a") == ("1", "3", "1")
    assert recent(store, "b") == ("2",)
    assert recent(store, "nobody") == ()


def test_the_newest_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "KEEP", 3)
    store = SqliteEvents()
    added(store, *(("a", f"{n}") for n in range(5)), ("b", "x"))
    assert recent(store, "a") == ("2", "3", "4")
    added(store, ("a", "5"))
    assert recent(store, "a") == ("3", "4", "5")
    assert recent(store, "b") == ("x",)


def test_events_survive_a_restart_and_are_shared(tmp_path: Path) -> None:
    store, other = SqliteEvents(tmp_path / "events.db"), SqliteEvents(tmp_path / "events.db")
    added(store, ("ü", "1"))
    assert recent(other, "ü") == ("1",)
    added(other, ("ü", "2"))
    store.close()
    other.close()
    assert recent(SqliteEvents(tmp_path / "events.db"), "ü") == ("1", "2")


CRASH = """
import asyncio, sys
from pathlib import Path
from recfit.serve.events import SqliteEvents
store = SqliteEvents(Path(sys.argv[1]))
for n in range(1_000_000):
    asyncio.run(store.add([("a", str(n))]))
    print(n, flush=True)
"""


def test_what_was_acknowledged_survives_kill_9(tmp_path: Path) -> None:
    command = [sys.executable, "-c", CRASH, str(tmp_path / "events.db")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for _ in range(40):
            last = int(process.stdout.readline())
        os.kill(process.pid, signal.SIGKILL)
        last = max([last, *(int(line) for line in process.stdout if line.endswith("\n"))])
    kept = recent(SqliteEvents(tmp_path / "events.db"), "a")
    assert kept[-1] in (str(last), str(last + 1))
    assert list(kept) == [str(n) for n in range(int(kept[-1]) + 1 - len(kept), int(kept[-1]) + 1)]


def test_half_of_a_batch_is_never_kept() -> None:
    store = SqliteEvents()
    with pytest.raises(sqlite3.Error):
        added(store, ("a", "1"), ("a", object()))  # type: ignore[arg-type]
    assert recent(store, "a") == ()
    added(store, ("a", "2"))
    assert recent(store, "a") == ("2",)


def test_a_file_that_is_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "events.db").write_text("user,item\n" * 500)
    with pytest.raises(ConfigError, match=r"the events file .*events.db cannot be opened: .*; name another"):
        SqliteEvents(tmp_path / "events.db")
    with pytest.raises(ConfigError, match="cannot be opened"):
        SqliteEvents(tmp_path / "missing" / "events.db")


def test_the_next_request_sees_what_happened(call) -> None:
    app = app_of(FakeEngine())
    first = call(app, "POST", "/v1/recommend", json={"user_id": 7, "k": 3}).json()["items"]
    events = [{"user_id": "7", "item_id": first[0]["item_id"]}, {"user_id": "new", "item_id": "unheard of"}]
    kept = call(app, "POST", "/v1/events", json={"events": events}).json()
    assert (kept["kept"], kept["unknown_items"]) == (2, 1)
    after = call(app, "POST", "/v1/recommend", json={"user_id": 7, "k": 3}).json()["items"]
    assert [item["item_id"] for item in after[:2]] == [item["item_id"] for item in first[1:]]
    own = call(app, "POST", "/v1/recommend", json={"user_id": 7, "history": ["i5"], "k": 3}).json()["items"]
    assert own[0]["item_id"] == first[0]["item_id"]  # a history of the request's own wins


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"events": []}, "events"),
        ({"events": [{"user_id": "1"}]}, "events[0]"),
        ({"events": [{"user_id": None, "item_id": "i1"}]}, "events[0].user_id"),
        ({"events": [{"user_id": "1", "item_id": 3}]}, "events[0].item_id"),
        ({"events": [{"user_id": "1", "item_id": "i1", "at": 3}]}, "at"),
        ({"events": [{"user_id": "1", "item_id": "i1"}] * 1001}, "events"),
        ({}, None),
    ],
)
def test_what_is_no_event_is_422(call, body: dict[str, object], field: str | None) -> None:
    answer = call(app_of(FakeEngine()), "POST", "/v1/events", json=body)
    assert (answer.status_code, answer.json()["error"]["field"]) == (422, field)

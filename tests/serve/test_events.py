"""What users did since: kept, in order, over restarts and crashes."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import httpx
import pytest
from fake_engine import FakeEngine, app_of

from recfit.config import Serve
from recfit.serve import events as module
from recfit.serve.events import MEMORY, Events, MemoryEvents, SqliteEvents, UnavailableError, beside
from recfit.types import ConfigError


def added(store: Events, *events: tuple[str, str]) -> None:
    asyncio.run(store.add(events))


def recent(store: Events, user: str) -> tuple[str, ...]:
    return asyncio.run(store.recent(user))


@pytest.fixture(params=["memory", "file"])
def store(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Events]:
    made = MemoryEvents() if request.param == "memory" else SqliteEvents(tmp_path / "events.db")
    with closing(made):
        yield made


@pytest.fixture
def file(tmp_path: Path) -> Iterator[SqliteEvents]:
    with closing(SqliteEvents(tmp_path / "events.db")) as made:
        yield made


def test_events_of_a_user_come_back_oldest_first(store: Events) -> None:
    added(store, ("a", "1"), ("b", "2"), ("a", "3"))
    added(store, ("a", "1"))
    assert recent(store, "a") == ("1", "3", "1")
    assert recent(store, "b") == ("2",)
    assert recent(store, "nobody") == ()


def test_the_newest_are_kept(store: Events, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "KEEP", 3)
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


def test_half_of_a_batch_is_never_kept(file: SqliteEvents) -> None:
    with pytest.raises(UnavailableError):
        added(file, ("a", "1"), ("a", object()))  # type: ignore[arg-type]
    assert recent(file, "a") == ()
    added(file, ("a", "2"))
    assert recent(file, "a") == ("2",)


def test_events_that_come_together_are_all_kept_in_their_order(file: SqliteEvents) -> None:
    async def run() -> None:
        calls = [file.add([(f"{n % 3}", f"{n}.{m}") for m in range(n % 5 + 1)]) for n in range(60)]
        await asyncio.gather(*calls)

    asyncio.run(run())
    for user in range(3):
        wanted = [f"{n}.{m}" for n in range(user, 60, 3) for m in range(n % 5 + 1)]
        assert recent(file, f"{user}") == tuple(wanted)


def test_while_somebody_holds_the_file_others_are_answered_and_events_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "HELD_S", 0.5)
    path = tmp_path / "events.db"
    body = {"events": [{"user_id": "7", "item_id": "i0"}]}

    async def run(app: httpx.ASGITransport, holder: sqlite3.Connection) -> None:
        async with httpx.AsyncClient(transport=app, base_url="http://recfit") as client:
            assert (await client.post("/v1/events", json=body)).status_code == 200
            holder.execute("BEGIN IMMEDIATE")
            refused = asyncio.ensure_future(client.post("/v1/events", json=body))
            for n in range(20):  # none of them waits for it
                answer = await client.post("/v1/recommend", json={"user_id": "7", "k": n + 1})
                assert answer.json()["items"][0]["item_id"] == "i1"
                assert (await client.get("/healthz")).status_code == 200
            assert not refused.done()
            answer = await refused
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "store_unavailable")
            assert answer.headers["retry-after"] == "1"
            holder.execute("ROLLBACK")
            assert (await client.post("/v1/events", json=body)).status_code == 200

    with (
        closing(SqliteEvents(path)) as store,
        closing(sqlite3.connect(path, isolation_level=None)) as holder,
    ):
        asyncio.run(run(httpx.ASGITransport(app_of(FakeEngine(), events=store)), holder))
        assert recent(store, "7") == ("i0", "i0")
    said = [record.message for record in caplog.records]
    assert len(said) == 2
    assert "takes none (database is locked)" in said[0]
    assert "takes events again" in said[1]


def test_a_full_disk_is_503_and_events_are_kept_once_there_is_room(call, file: SqliteEvents) -> None:
    app, body = app_of(FakeEngine(), events=file), {"events": [{"user_id": "7", "item_id": "i" * 250}] * 180}
    (pages,) = file._file.execute("PRAGMA page_count").fetchone()
    file._file.execute(f"PRAGMA max_page_count={pages}")
    answer = call(app, "POST", "/v1/events", json=body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "store_unavailable")
    assert recent(file, "7") == ()
    file._file.execute("PRAGMA max_page_count=1000000")
    assert call(app, "POST", "/v1/events", json=body).json()["kept"] == 180


def test_no_more_events_wait_for_a_file_than_may(file: SqliteEvents, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_WAITING", 3)

    async def run() -> list[object]:
        return await asyncio.gather(
            *(file.add([("a", f"{n}"), ("a", f"{n}")]) for n in range(4)), return_exceptions=True
        )

    assert [type(error) for error in asyncio.run(run())] == [type(None)] * 2 + [UnavailableError] * 2
    assert recent(file, "a") == ("0", "0", "1", "1")
    added(file, ("a", "2"))


@pytest.mark.parametrize("path", ["/v1/recommend", "/v2/models/default/infer", "/v1/score"])
def test_answers_without_the_events_say_so(call, file: SqliteEvents, path: str) -> None:
    app = app_of(FakeEngine(), events=file)
    tensor = {"name": "user_id", "shape": [1], "datatype": "BYTES", "data": ["7"]}
    bodies = {
        "/v1/recommend": {"user_id": "7"},
        "/v1/score": {"user_id": "7", "items": ["i1"]},
        "/v2/models/default/infer": {"inputs": [tensor]},
    }

    def degraded() -> bool:
        answer = call(app, "POST", path, json=bodies[path])
        assert answer.status_code == 200
        return bool(answer.json().get("degraded") or answer.json().get("parameters", {}).get("degraded"))

    assert not degraded()
    file._reader.execute("ALTER TABLE events RENAME TO elsewhere")
    assert degraded()
    assert "recfit_answers_without_events_total 1.0" in call(app, "GET", "/metrics").text
    own = call(app, "POST", "/v1/recommend", json={"user_id": "7", "history": ["i1"]}).json()
    assert "degraded" not in own  # it needs none
    file._reader.execute("ALTER TABLE elsewhere RENAME TO events")
    assert not degraded()


def test_events_leave_with_age(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, now = tmp_path / "events.db", [1e9]
    monkeypatch.setattr(module.time, "time", lambda: now[0])

    def rows(store: SqliteEvents) -> int:
        return int(store._reader.execute("SELECT count(*) FROM events").fetchone()[0])

    with closing(SqliteEvents(path, days=2)) as store:
        added(store, *((f"{n}", "old") for n in range(10)))
        now[0] += 1.5 * 86_400
        added(store, ("0", "new"))
        assert recent(store, "0") == ("old", "new")
        now[0] += 86_400
        assert recent(store, "0") == ("new",)
        assert recent(store, "5") == ()
        for n in range(4):
            added(store, ("x", f"{n}"))
        assert rows(store) == 1 + 4 + 2  # every event took two old ones along
    with closing(SqliteEvents(path, days=0)) as store:
        assert recent(store, "9") == ("old",)
    with closing(SqliteEvents(path, days=2)) as store:
        added(store, ("x", "4"))  # behind what is done first
        assert rows(store) == 1 + 5
    memory = MemoryEvents(days=2)
    added(memory, ("a", "1"), ("b", "1"))
    now[0] += 86_400
    added(memory, ("b", "2"))
    now[0] += 1.5 * 86_400
    added(memory, ("c", "1"))
    assert [recent(memory, user) for user in "abc"] == [(), ("1", "2"), ("1",)]


def test_memory_holds_so_much_and_who_did_nothing_for_longest_leaves() -> None:
    store = MemoryEvents(most_bytes=100_000)
    added(store, ("first", "1"))
    for n in range(1000):
        added(store, (f"{n}", "1"), ("busy", f"{n}"))
        assert 0 <= store.bytes <= 100_000
    assert recent(store, "first") == recent(store, "0") == ()
    assert recent(store, "busy")[-1] == "999"
    assert recent(store, "999") == ("1",)
    assert len(store._users) > 150
    for user in [*store._users]:
        store._drop(user)
    assert store.bytes == 0


def test_where_nothing_is_named_events_are_kept_beside_the_bundle(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = tmp_path / "study" / "bundle"
    bundle.mkdir(parents=True)
    monkeypatch.chdir(bundle)
    caplog.set_level(logging.WARNING, "recfit.serve")
    assert beside(Path()) == beside(bundle) == str(tmp_path / "study" / "bundle.events.db")
    assert [*bundle.iterdir()] == []
    assert caplog.text == ""
    nowhere = tmp_path / "missing" / "bundle"
    assert beside(nowhere) == MEMORY
    (said,) = caplog.records
    assert "forgotten at the end" in said.message
    assert str(nowhere) in said.message
    assert "--events" in said.message


def test_workers_do_not_share_memory() -> None:
    with pytest.raises(ConfigError, match="must share what users do"):
        Serve(workers=2, events=MEMORY)
    with pytest.raises(ConfigError, match="events_days = -1"):
        Serve(events_days=-1)


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

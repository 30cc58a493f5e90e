"""Servers that share through Redis, and Redis stopped, frozen and back."""

from __future__ import annotations

import asyncio
import re
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest
from fake_engine import FakeEngine

from recfit.config import Serve
from recfit.serve import shared as module
from recfit.serve.app import make_app
from recfit.serve.events import KEEP, UnavailableError
from recfit.serve.fleet import Fleet
from recfit.serve.results import Known, Results
from recfit.serve.shared import PREFIX, Shared, SharedEvents, SharedResults
from recfit.types import ConfigError, Request

PATH = "/v1/recommend"


class Redis:
    """A server of its own, without a disk."""

    def __init__(self, folder: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.url, self.folder = f"redis://127.0.0.1:{self.port}/0", folder
        self.start()

    def start(self) -> None:
        command = [
            "redis-server",
            "--port",
            f"{self.port}",
            "--save",
            "",
            "--appendonly",
            "no",
            "--dir",
            str(self.folder),
        ]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        for _ in range(200):
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return
            except OSError:
                time.sleep(0.02)

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[Redis]:
    started = Redis(tmp_path)
    yield started
    started.stop()


PATIENT_S = 10.0
"""Redis has the time it takes: on a busy machine 5 ms are no time."""


def app_with(
    url: str, asked: Callable[[Request], None] = lambda request: None, timeout_s: float = PATIENT_S
) -> tuple[Any, Shared]:
    shared = Shared(url, timeout_s)
    return make_app(
        Fleet([FakeEngine(asked)]), events=SharedEvents(shared), results=Results(second=SharedResults(shared))
    ), shared


async def close(shared: Shared) -> None:
    """Once what was begun is over."""
    await asyncio.sleep(0)  # an answer that was just given has begun to be kept
    while shared._running:
        await asyncio.gather(*shared._running, return_exceptions=True)
    await shared._client.aclose()


def client(app: Any) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://recfit")


def test_servers_share_events_and_answers(redis: Redis) -> None:
    asked: list[Request] = []

    async def run() -> None:
        (one, first), (two, second) = app_with(redis.url, asked.append), app_with(redis.url, asked.append)
        asked.clear()
        async with client(one) as here, client(two) as there:
            before = (await here.post(PATH, json={"user_id": "7"})).json()
            await asyncio.sleep(0.05)
            assert (await there.post(PATH, json={"user_id": "7"})).json()["items"] == before["items"]
            assert asked == [Request("7")]
            assert 'recfit_results_total{outcome="second level"} 1.0' in (await there.get("/metrics")).text
            item = before["items"][0]["item_id"]
            kept = await there.post("/v1/events", json={"events": [{"user_id": 7, "item_id": item}]})
            assert kept.json()["kept"] == 1
            after = (await here.post(PATH, json={"user_id": "7"})).json()
            assert after["items"][0]["item_id"] == before["items"][1]["item_id"]
            assert asked[1:] == [Request("7", recent=(item,))]
        await close(first)
        await close(second)

    asyncio.run(run())


def test_the_newest_events_are_kept_and_not_for_ever(redis: Redis) -> None:
    async def run() -> None:
        shared = Shared(redis.url, PATIENT_S)
        events = SharedEvents(shared)
        await events.add([("ü", f"{n}") for n in range(KEEP + 5)])
        await events.add([("ü", "new")])
        found = await events.recent("ü")
        assert (len(found), found[0], found[-1]) == (KEEP, "6", "new")
        assert await events.recent("nobody") == ()
        key = PREFIX + b"events:" + "ü".encode()
        assert 29 * 86_400 < await shared.call("TTL", key) <= 30 * 86_400
        await SharedEvents(shared, days=0.5).add([("ü", "newer")])
        assert 40_000 < await shared.call("TTL", key) <= 43_200
        await SharedEvents(shared, days=0).add([("ü", "newest")])
        assert await shared.call("TTL", key) == -1
        await close(shared)

    asyncio.run(run())


@pytest.mark.parametrize("how", ["stopped", "frozen"])
def test_without_redis_requests_are_answered_and_with_it_again_shared(
    redis: Redis, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PAUSE_S", 0.3)

    async def run() -> None:
        app, shared = app_with(redis.url, timeout_s=0.05)
        async with client(app) as here:
            await here.post("/v1/events", json={"events": [{"user_id": "7", "item_id": "i0"}]})
            redis.process.send_signal(signal.SIGSTOP) if how == "frozen" else redis.stop()
            for n in range(30):
                answer = await here.post(PATH, json={"user_id": "7", "k": 1 + n})
                assert answer.status_code == 200
                assert answer.json()["items"][0]["item_id"] == "i0"  # nobody knows of the event at the moment
                assert answer.json()["degraded"]
            told = (await here.get("/metrics")).text
            assert "recfit_answers_without_events_total 30.0" in told
            assert "recfit_redis_up 0.0" in told
            assert f'recfit_redis_commands_lost_total{{reason="skipped"}} {shared.skipped}.0' in told
            assert f'recfit_redis_commands_lost_total{{reason="failed"}} {shared.failures}.0' in told
            refused = await here.post("/v1/events", json={"events": [{"user_id": "7", "item_id": "i1"}]})
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "store_unavailable")
            assert shared.failures <= 4 + 1  # the breaker spares everybody the wait; the event is the one
            assert shared.skipped >= 25
            redis.process.send_signal(signal.SIGCONT) if how == "frozen" else redis.start()
            await asyncio.sleep(0.4)
            kept = await here.post("/v1/events", json={"events": [{"user_id": "7", "item_id": "i2"}]})
            assert kept.status_code == 200
            back = (await here.post(PATH, json={"user_id": "7", "k": 40})).json()
            assert "degraded" not in back
            assert "i2" not in {item["item_id"] for item in back["items"]}
            assert "recfit_redis_up 1.0" in (await here.get("/metrics")).text
        await close(shared)

    asyncio.run(run())


class Way:
    """Between a client and Redis: every reply takes `delay_s`."""

    def __init__(self, redis: Redis) -> None:
        self.port, self.delay_s, self._ways = redis.port, 0.0, list[Any]()

    async def __aenter__(self) -> Way:
        self._server = await asyncio.start_server(self._client, "127.0.0.1", 0)
        self.url = f"redis://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/0"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for way in self._ways:
            way.cancel()
        await asyncio.gather(*self._ways, return_exceptions=True)

    async def _client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._ways.append(asyncio.current_task())
        back, forth = await asyncio.open_connection("127.0.0.1", self.port)
        await asyncio.gather(self._pass(reader, forth, False), self._pass(back, writer, True), return_exceptions=True)

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, late: bool) -> None:
        with closing(writer):
            while data := await reader.read(65_536):
                await asyncio.sleep(self.delay_s * late)
                writer.write(data)


def test_a_slow_redis_is_waited_for_by_one_request_in_a_second(redis: Redis, caplog: pytest.LogCaptureFixture) -> None:
    """Every reply takes longer than anybody waits, and ten ask at a time."""

    async def run() -> None:
        async with Way(redis) as way:
            app, shared = app_with(way.url, timeout_s=module.TIMEOUT_S)
            way.delay_s = 3 * module.TIMEOUT_S
            async with client(app) as here:

                async def ask(user: int) -> int:
                    return (await here.post(PATH, json={"user_id": f"{user}"})).status_code

                for _ in range(3):
                    assert {*await asyncio.gather(*map(ask, range(10)))} == {200}
                assert shared.broken
                first, shared._requests.again_at = shared.failures, 0.0  # the pause is over
                assert {*await asyncio.gather(*map(ask, range(10, 40)))} == {200}
                assert shared.failures == first + 1
            await close(shared)
        said = [record.message for record in caplog.records if "redis" in record.message]
        assert len(said) == 1
        assert "does not answer requests (no reply within 5 ms)" in said[0]

    asyncio.run(run())


def test_a_redis_that_is_too_late_for_answers_keeps_events(
    redis: Redis, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """50 ms are more than an answer waits, and less than events do."""
    monkeypatch.setattr(module, "EVENTS_S", PATIENT_S)
    monkeypatch.setattr(module, "PAUSE_S", PATIENT_S)

    async def run() -> None:
        async with Way(redis) as way:
            app, shared = app_with(way.url, timeout_s=module.TIMEOUT_S)
            way.delay_s = 0.05
            async with client(app) as here:
                for n in range(12):
                    answer = await here.post(PATH, json={"user_id": f"{n}"})
                    assert (answer.status_code, answer.json()["degraded"]) == (200, True)
                    kept = await here.post("/v1/events", json={"events": [{"user_id": "7", "item_id": f"i{n}"}]})
                    assert kept.status_code == 200
                assert shared.broken  # an event that is kept says nothing of answers
                assert "recfit_redis_up 0.0" in (await here.get("/metrics")).text
            way.delay_s, shared._requests.timeout_s = 0.0, PATIENT_S
            shared._requests.again_at = 0.0
            assert len(await SharedEvents(shared).recent("7")) == 12
            await close(shared)

    asyncio.run(run())
    said = [record.message for record in caplog.records if "redis" in record.message]
    assert said == [
        "redis does not answer requests (no reply within 5 ms); going on without it",
        "redis answers requests again",
    ]


def test_events_that_nobody_keeps_are_refused_at_once_after_some(redis: Redis) -> None:
    async def run() -> None:
        shared = Shared(redis.url, PATIENT_S)
        events = SharedEvents(shared)
        redis.stop()
        for n in range(10):
            with pytest.raises(UnavailableError):
                await events.add([("7", "i0")])
            assert (shared.failures, shared.skipped) == (min(n + 1, 3), max(0, n - 2))
        assert not shared.broken
        await close(shared)

    asyncio.run(run())


def test_a_late_reply_fails_alone_and_only_some_in_a_row_end_the_asking(redis: Redis) -> None:
    async def run() -> None:
        async with Way(redis) as way:
            shared = Shared(way.url, PATIENT_S)
            await shared.call("SET", "k", "v")
            for late in (0.3, 0.3, 0.0, 0.3, 0.3):
                way.delay_s, shared._requests.timeout_s = late, 0.1 if late else PATIENT_S
                if late:  # what is late at the same time is one failure
                    asking = []
                    for _ in range(3):
                        asking.append(asyncio.ensure_future(shared.call("GET", "k")))
                        await asyncio.sleep(0.01)
                    found = await asyncio.gather(*asking, return_exceptions=True)
                    assert {*map(type, found)} == {UnavailableError}
                else:
                    assert await shared.call("GET", "k") == b"v"
                assert not shared.broken
            with pytest.raises(UnavailableError):
                await shared.call("GET", "k")
            assert shared.broken
            way.delay_s = 0.0
            await close(shared)

    asyncio.run(run())


def test_a_busy_event_loop_is_no_late_redis(redis: Redis) -> None:
    async def run() -> None:
        shared = Shared(redis.url, PATIENT_S)
        await shared.call("SET", "k", "v")
        shared._requests.timeout_s = 0.1
        asking = asyncio.create_task(shared.call("GET", "k"))
        for _ in range(5):  # it is sent
            await asyncio.sleep(0)
        time.sleep(0.5)
        assert await asking == b"v"
        assert shared.failures == 0
        await close(shared)

    asyncio.run(run())


@pytest.mark.parametrize("route", ["batch", "infer"])
def test_a_full_batch_is_a_question_or_two_and_not_one_for_each(redis: Redis, route: str) -> None:
    async def run() -> None:
        app, shared = app_with(redis.url)
        users = [f"{n}" for n in range(256)]
        await SharedEvents(shared).add([(user, f"i{n % 50}") for n, user in enumerate(users)])
        before = await shared._client.info("stats")
        async with client(app) as here:
            if route == "batch":
                bodies = [{"user_id": user} for user in users]
                found = (await here.post(f"{PATH}/batch", json={"requests": bodies})).json()["outcomes"]
                assert not any("degraded" in outcome["answer"] for outcome in found)
                items = [[item["item_id"] for item in outcome["answer"]["items"]] for outcome in found]
            else:
                tensor = {"name": "user_id", "shape": [256], "datatype": "BYTES", "data": users}
                found = (await here.post("/v2/models/default/infer", json={"inputs": [tensor]})).json()
                assert "parameters" not in found
                flat = found["outputs"][0]["data"]
                items = [flat[at : at + 10] for at in range(0, len(flat), 10)]
            assert len(items) == 256
            assert all(f"i{n % 50}" not in ids for n, ids in enumerate(items))
        await shared._begin(asyncio.sleep(0.05))  # the answers that are kept
        after = await shared._client.info("stats")
        assert after["total_connections_received"] - before["total_connections_received"] <= module.WAYS
        assert not shared.broken
        assert (shared.failures, shared.skipped) == (0, 0)
        await close(shared)

    asyncio.run(run())


def test_events_of_many_users_are_one_command(redis: Redis) -> None:
    """None is without its end, nobody reads a part of them; but what was written before one that is refused stays."""

    async def run() -> None:
        shared = Shared(redis.url, PATIENT_S)
        events = SharedEvents(shared)
        await events.add([(f"{n % 400}", f"{n}") for n in range(1000)])
        assert (await shared._client.info("commandstats"))["cmdstat_eval"]["calls"] == 1
        assert await events.recent("7") == ("7", "407", "807")
        ends = await asyncio.gather(*(shared.call("TTL", PREFIX + b"events:%d" % n) for n in range(400)))
        assert min(ends) > 29 * 86_400
        await shared.call("SET", PREFIX + b"events:text", "is no list")
        with pytest.raises(UnavailableError, match="WRONGTYPE"):
            await events.add([("before", "1"), ("text", "2"), ("after", "3")])
        assert [await events.recent(user) for user in ("before", "after")] == [("1",), ()]
        await close(shared)

    asyncio.run(run())


@pytest.mark.parametrize("why", ["full", "a replica"])
def test_a_redis_that_takes_nothing_is_still_read(redis: Redis, why: str, caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> None:
        app, shared = app_with(redis.url)
        body = {"events": [{"user_id": "7", "item_id": "i0"}, {"user_id": "8", "item_id": "i0"}]}
        async with client(app) as here:
            assert (await here.post("/v1/events", json=body)).status_code == 200
            if why == "full":
                await shared.call("CONFIG", "SET", "maxmemory", "1")
            else:
                await shared.call("REPLICAOF", "127.0.0.1", "1")
            for _ in range(5):
                refused = await here.post("/v1/events", json=body)
                assert (refused.status_code, refused.json()["error"]["code"]) == (503, "store_unavailable")
            answer = (await here.post(PATH, json={"user_id": "7"})).json()
            assert "degraded" not in answer
            assert "i0" not in {item["item_id"] for item in answer["items"]}
            told = (await here.get("/metrics")).text
            assert "recfit_redis_up 1.0" in told
            assert "recfit_answers_without_events_total 0.0" in told
            assert f'recfit_redis_commands_lost_total{{reason="refused"}} {shared.refused}.0' in told
            assert 5 <= shared.refused <= 6  # and perhaps the answer, for the others
            assert await SharedEvents(shared).recent("8") == ("i0",)
        await close(shared)

    asyncio.run(run())
    said = [record.message for record in caplog.records if "redis" in record.message]
    assert len(said) == 1
    assert "redis refuses a command, others are sent: " in said[0]


def test_a_reply_to_something_else_is_nobodys_history(redis: Redis) -> None:
    """A connection on which a reply is still to come."""

    async def run() -> None:
        shared = Shared(redis.url, PATIENT_S)
        shared._client.connection_pool.connection_kwargs["socket_timeout"] = PATIENT_S
        events = SharedEvents(shared)
        await events.add([("ann", "hers"), ("ben", "his")])
        way = await shared._client.connection_pool.get_connection()
        redis.process.send_signal(signal.SIGSTOP)
        await way.send_command("LRANGE", PREFIX + b"events:ann", 0, -1)
        await shared._client.connection_pool.release(way)
        asking = asyncio.create_task(events.recent("ben"))
        await asyncio.sleep(0.2)
        redis.process.send_signal(signal.SIGCONT)
        with pytest.raises(UnavailableError, match="the replies of a connection were those to something else"):
            await asking
        assert await events.recent("ben") == ("his",)
        await close(shared)

    asyncio.run(run())


def test_an_echo_that_is_refused_is_told_as_that(redis: Redis) -> None:
    async def run() -> None:
        shared = Shared(redis.url, PATIENT_S)
        await shared.call("SET", "k", "v")
        way = await shared._client.connection_pool.get_connection()
        await shared._client.connection_pool.release(way)
        await shared._client.acl_setuser("default", commands=["-echo"])
        with pytest.raises(UnavailableError, match="no permissions to run the 'echo' command"):
            await shared.call("GET", "k")
        assert way.is_connected
        await shared._client.acl_setuser("default", commands=["+echo"])
        assert await shared.call("GET", "k") == b"v"
        await close(shared)

    asyncio.run(run())


def test_the_commands_that_the_documentation_names_are_enough(redis: Redis) -> None:
    text = (Path(__file__).parents[2] / "docs" / "serving.md").read_text()
    (told,) = re.findall(r"needs the keys `(\S+)` and the commands (.*?)\.", text)
    commands = re.findall(r"`([A-Z]+)`", told[1])

    async def refused(url: str) -> bool:
        shared = Shared(url, PATIENT_S)
        for_days, for_ever = SharedEvents(shared), SharedEvents(shared, days=0)
        several = [("7", "i")] * (KEEP + 1)
        asked = (
            for_days.add(several),
            for_ever.add(several),
            for_days.add(several),
            for_days.recent("7"),
            shared.call("SET", PREFIX + b"k", "v"),
            shared.call("GET", PREFIX + b"k"),
        )
        found = await asyncio.gather(*asked, return_exceptions=True)
        await close(shared)
        return any(isinstance(one, UnavailableError) for one in found)

    async def run() -> None:
        operator, url = Shared(redis.url, PATIENT_S), redis.url.replace("//", "//server:word@")
        allowed = [f"+{command}" for command in commands]
        await operator.call("ACL", "SETUSER", "server", "on", ">word", f"~{told[0]}", *allowed)
        assert not await refused(url)
        for command in commands:  # none of them is there for nothing
            await operator.call("ACL", "SETUSER", "server", f"-{command}")
            assert await refused(url), command
            await operator.call("ACL", "SETUSER", "server", f"+{command}")
        await close(operator)

    asyncio.run(run())


def test_who_leaves_does_not_get_others_a_wrong_reply(redis: Redis) -> None:
    """Commands are cancelled while they run, over and over; every reply must be that to its own question."""

    async def run() -> None:
        shared = Shared(redis.url, PATIENT_S)
        for n in range(50):
            await shared.call("SET", f"k{n}", f"v{n}")
        draws = [(n * 7) % 50 for n in range(400)]

        async def get(n: int) -> bytes:
            return bytes(await shared.call("GET", f"k{n}"))

        for at in range(0, 400, 20):
            tasks = [asyncio.create_task(get(n)) for n in draws[at : at + 20]]
            await asyncio.sleep(0)
            for task in tasks[::3]:
                task.cancel()
            found = await asyncio.gather(*tasks, return_exceptions=True)
            for n, value in zip(draws[at : at + 20], found, strict=True):
                assert isinstance(value, asyncio.CancelledError) or value == f"v{n}".encode()
        await close(shared)

    asyncio.run(run())


def test_a_value_of_something_else_is_no_answer(redis: Redis) -> None:
    async def run() -> None:
        shared = Shared(redis.url, PATIENT_S)
        results = SharedResults(shared)
        await results.put(b"a" * 16, Known(b"[1]", "model", "b"))
        assert await results.find(b"a" * 16) == Known(b"[1]", "model", "b")
        await shared.call("SET", PREFIX + b"b" * 16, await shared.call("GET", PREFIX + b"a" * 16))
        assert await results.find(b"b" * 16) is None
        await shared.call("SET", PREFIX + b"c" * 16, b"c" * 16 + b"another version's")
        assert await results.find(b"c" * 16) is None
        await close(shared)

    asyncio.run(run())


def test_settings_that_cannot_be_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"serve.redis = 'there' is no address: .*; give one such as redis://"):
        Shared("there")
    with pytest.raises(ConfigError, match=r"serve.redis and serve.events both keep what users do; give one"):
        Serve(redis="redis://127.0.0.1", events="events.db")
    with pytest.raises(ConfigError, match=r"serve.redis_timeout_ms = 0 is outside 0\.1 to 10000"):
        Serve(redis_timeout_ms=0)

"""Servers that share through Redis, and Redis stopped, frozen and back."""

from __future__ import annotations

import asyncio
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fake_engine import FakeEngine

from recfit.config import Serve
from recfit.serve import shared as module
from recfit.serve.app import make_app
from recfit.serve.events import KEEP
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


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Redis has the time it takes: on a busy machine 20 ms are no time."""
    monkeypatch.setattr(module, "TIMEOUT_S", 10.0)


def app_with(url: str, asked: Callable[[Request], None] = lambda request: None) -> tuple[Any, Shared]:
    shared = Shared(url)
    return make_app(
        Fleet([FakeEngine(asked)]), events=SharedEvents(shared), results=Results(second=SharedResults(shared))
    ), shared


def client(app: Any) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://recfit")


@pytest.mark.usefixtures("patient")
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
        await first.aclose()
        await second.aclose()

    asyncio.run(run())


@pytest.mark.usefixtures("patient")
def test_the_newest_events_are_kept_and_not_for_ever(redis: Redis) -> None:
    async def run() -> None:
        shared = Shared(redis.url)
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
        await shared.aclose()

    asyncio.run(run())


@pytest.mark.parametrize("how", ["stopped", "frozen"])
def test_without_redis_requests_are_answered_and_with_it_again_shared(
    redis: Redis, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PAUSE_S", 0.3)

    async def run() -> None:
        app, shared = app_with(redis.url)
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
            assert shared.failures <= 4  # the breaker spares everybody the wait
            assert shared.skipped >= 25
            redis.process.send_signal(signal.SIGCONT) if how == "frozen" else redis.start()
            await asyncio.sleep(0.4)
            kept = await here.post("/v1/events", json={"events": [{"user_id": "7", "item_id": "i2"}]})
            assert kept.status_code == 200
            back = (await here.post(PATH, json={"user_id": "7", "k": 40})).json()
            assert "degraded" not in back
            assert "i2" not in {item["item_id"] for item in back["items"]}
            assert "recfit_redis_up 1.0" in (await here.get("/metrics")).text
        await shared.aclose()

    asyncio.run(run())


def test_a_slow_redis_is_waited_for_by_one_request_in_a_second(redis: Redis, caplog: pytest.LogCaptureFixture) -> None:
    """Every reply takes longer than anybody waits, and ten ask at a time."""
    delay_s, ways = module.TIMEOUT_S * 3, list[Any]()

    async def passed(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, wait_s: float) -> None:
        while data := await reader.read(65_536):
            await asyncio.sleep(wait_s)
            writer.write(data)
        writer.close()

    async def client_of(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        ways.append(asyncio.current_task())
        back, forth = await asyncio.open_connection("127.0.0.1", redis.port)
        await asyncio.gather(passed(reader, forth, 0.0), passed(back, writer, delay_s), return_exceptions=True)

    async def run() -> None:
        async with await asyncio.start_server(client_of, "127.0.0.1", 0) as way:
            app, shared = app_with(f"redis://127.0.0.1:{way.sockets[0].getsockname()[1]}/0")
            async with client(app) as here:

                async def ask(user: int) -> int:
                    return (await here.post(PATH, json={"user_id": f"{user}"})).status_code

                assert {*await asyncio.gather(*map(ask, range(10)))} == {200}
                first = shared.failures
                shared._again_at = 0.0  # the pause is over
                assert {*await asyncio.gather(*map(ask, range(10, 40)))} == {200}
                assert shared.failures == first + 1
            await shared.aclose()
            await asyncio.gather(*ways)
            said = [record.message for record in caplog.records if "redis" in record.message]
            assert len(said) == 1
            assert "does not answer" in said[0]

    asyncio.run(run())


@pytest.mark.usefixtures("patient")
def test_who_leaves_does_not_get_others_a_wrong_reply(redis: Redis) -> None:
    """Commands are cancelled while they run, over and over; every reply must be that to its own question."""

    async def run() -> None:
        shared = Shared(redis.url)
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
        await shared.aclose()

    asyncio.run(run())


@pytest.mark.usefixtures("patient")
def test_a_value_of_something_else_is_no_answer(redis: Redis) -> None:
    async def run() -> None:
        shared = Shared(redis.url)
        results = SharedResults(shared)
        await results.put(b"a" * 16, Known(b"[1]", "model", "b"))
        assert await results.find(b"a" * 16) == Known(b"[1]", "model", "b")
        await shared.call("SET", PREFIX + b"b" * 16, await shared.call("GET", PREFIX + b"a" * 16))
        assert await results.find(b"b" * 16) is None
        await shared.call("SET", PREFIX + b"c" * 16, b"c" * 16 + b"another version's")
        assert await results.find(b"c" * 16) is None
        await shared.aclose()

    asyncio.run(run())


def test_settings_that_cannot_be_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"serve.redis = 'there' is no address: .*; give one such as redis://"):
        Shared("there")
    with pytest.raises(ConfigError, match=r"serve.redis and serve.events both keep what users do; give one"):
        Serve(redis="redis://127.0.0.1", events="events.db")

"""What is on the list of things that break servers, each tried on one."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import httpx
import psutil
import pytest
from fake_engine import FakeEngine

from recfit.loadtest import Load, run
from recfit.serve.app import make_app
from recfit.serve.fleet import Fleet
from recfit.types import Recommendation, Request

PATH, HERE = "/v1/recommend", Path(__file__).parent
REQUESTS = [Request(f"{number}") for number in range(997)]
SERVE = """
import sys
from fake_engine import FakeEngine
from recfit.config import Serve
from recfit.serve.run import bind, serve
with bind("127.0.0.1", 0) as listener:
    serve([FakeEngine()], [listener], Serve(drain_s=float(sys.argv[1]), results_mb=0.5))
"""


@pytest.fixture
def server(request: pytest.FixtureRequest) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A process that serves, and its URL; the parameter is how long it drains."""
    command = [sys.executable, "-c", SERVE, f"{getattr(request, 'param', 0)}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=HERE, env=environment) as process:
        assert process.stdout is not None
        yield process, process.stdout.readline().strip().rsplit(" ", 1)[1]
        process.kill()


class Working(FakeEngine):
    """Takes `ms` for each request, however many come together."""

    def __init__(self, ms: float) -> None:
        super().__init__()
        self.ms = ms

    def recommend(self, requests: Sequence[Request], k: int = 10, **_: object) -> list[Recommendation]:
        time.sleep(self.ms * len(requests) / 1e3)
        return super().recommend(requests, k)


@pytest.mark.parametrize("threads", [0, 1])
def test_a_crowd_is_answered_in_time_or_sent_away_at_once(threads: int) -> None:
    """600 requests of 2 ms each come at once where nobody is to wait longer than 0.2 s, and 600 more while these wait."""
    app = make_app(Fleet([Working(2.0)], threads=threads, shed_s=0.2))

    async def crowd() -> tuple[list[tuple[int, float]], float]:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://recfit") as client:

            async def ask(number: int) -> tuple[int, float]:
                begin = time.perf_counter()
                answer = await client.post(PATH, json={"user_id": f"{number}"})
                if answer.status_code == 503:
                    assert answer.json()["error"]["code"] == "overloaded"
                    assert answer.headers["retry-after"] == "1"
                return answer.status_code, time.perf_counter() - begin

            waves = []
            for wave in range(6):
                waves += [asyncio.create_task(ask(wave * 200 + n)) for n in range(200)]
                await asyncio.sleep(0.1)
            found = await asyncio.gather(*waves)
            begin = time.perf_counter()
            assert (await ask(10_000))[0] == 200
            return list(found), time.perf_counter() - begin

    found, after = asyncio.run(crowd())
    counts = Counter(status for status, _ in found)
    assert counts.keys() == {200, 503}
    assert counts[200] > 150
    assert counts[503] > 150
    spans = {status: sorted(took for other, took in found if other == status) for status in (200, 503)}
    if threads:  # on the loop, what is refused waits for its turn too
        assert spans[503][len(spans[503]) // 2] < spans[200][len(spans[200]) // 2]
    assert after < spans[200][-1]  # the queue went with the crowd


@pytest.mark.parametrize("server", [1.0], indirect=True)
def test_a_drain_under_load_loses_nobody(server: tuple[subprocess.Popen[str], str]) -> None:
    process, url = server
    threading.Timer(0.7, process.send_signal, [signal.SIGTERM]).start()
    found = run(url, REQUESTS, Load(rate=150, seconds=1.4, connections=8))
    assert found.statuses == {"200": 210}
    assert process.wait(30) == 0


def test_clients_that_leave_do_not_spoil_it_for_others(server: tuple[subprocess.Popen[str], str]) -> None:
    _, url = server

    async def storm() -> list[int]:
        async with httpx.AsyncClient(base_url=url, timeout=30) as client:
            for _ in range(20):
                asked = [asyncio.create_task(client.post(PATH, json={"user_id": f"{n}"})) for n in range(20)]
                await asyncio.sleep(0.002)
                for one in asked:
                    one.cancel()
                await asyncio.gather(*asked, return_exceptions=True)
            return [(await client.post(PATH, json={"user_id": f"after {n}"})).status_code for n in range(20)]

    assert asyncio.run(storm()) == [200] * 20
    assert "recfit_requests_in_flight 0.0" in httpx.get(f"{url}/metrics").text


def test_thousands_of_requests_leave_no_memory_and_no_descriptors_behind(
    server: tuple[subprocess.Popen[str], str],
) -> None:
    process, url = server
    running = psutil.Process(process.pid)

    def load(seed: int) -> tuple[float, int]:
        found = run(url, REQUESTS, Load(rate=600, seconds=2, connections=8, seed=seed))
        assert found.failed == 0
        time.sleep(0.2)
        return running.memory_info().rss / 1e6, running.num_fds()

    load(0)
    before, after = load(1), load(2)
    assert after[0] < before[0] + 3
    assert after[1] <= before[1] + 1

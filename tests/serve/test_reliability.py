"""What is on the list of things that break servers, each tried on one."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
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
    assert counts[200] > 50
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


CROWDED = """
import sys, time
from fake_engine import FakeEngine
from recfit.config import Serve
from recfit.serve.run import bind, serve

ran = []

def during(request):
    if request.user_id == "slow":
        print("working", flush=True)
        time.sleep(0.5)
    if request.user_id == "tell":
        print(*ran, flush=True)
    ran.append(request.user_id or "nobody")

with bind("127.0.0.1", 0) as listener:
    serve([FakeEngine(during)], [listener], Serve(threads=int(sys.argv[1]), drain_s=0))
"""


@pytest.mark.parametrize("threads", [0, 1])
def test_requests_of_clients_that_left_are_not_run(threads: int) -> None:
    """While one request works, ten clients ask and leave; one more stays."""
    command = [sys.executable, "-c", CROWDED, f"{threads}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=HERE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        url = process.stdout.readline().strip().rsplit(" ", 1)[1]
        slow = threading.Thread(
            target=httpx.post, args=(url + PATH,), kwargs={"json": {"user_id": "slow"}, "timeout": 30}
        )
        slow.start()
        assert process.stdout.readline() == "working\n"
        leaving = [asked(url, f"gone{n}", path) for n in range(5) for path in (PATH, "/v1/recommend/batch")]
        staying = asked(url, "stayed")
        time.sleep(0.1)  # in a pool of threads, they are in line now
        for connection in leaving:
            connection.close()
        assert staying.recv(12) == b"HTTP/1.1 200"
        staying.close()
        slow.join()
        assert httpx.post(url + PATH, json={"user_id": "tell"}).status_code == 200
        ran = process.stdout.readline().split()
        counted = httpx.get(f"{url}/metrics").text
        process.send_signal(signal.SIGINT)
        _, complaints = process.communicate(timeout=30)
    assert ("slow" in ran, "stayed" in ran) == (True, True)
    assert not [user for user in ran if user.startswith("gone")]
    assert 'recfit_requests_total{model="default",route="/v1/recommend",source="none",status="499"} 5.0' in counted
    assert 'recfit_requests_total{model="none",route="/v1/recommend/batch",source="none",status="499"} 5.0' in counted
    assert complaints == ""


def asked(url: str, user: str, path: str = PATH) -> socket.socket:
    """A connection on which this user asked."""
    body = b'{"user_id": "%b"}' % user.encode()
    body = b'{"requests": [%b]}' % body if path != PATH else body
    connection = socket.create_connection(("127.0.0.1", int(url.rsplit(":", 1)[1])))
    connection.settimeout(30)
    connection.sendall(
        b"POST %b HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%b" % (path.encode(), len(body), body)
    )
    return connection


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

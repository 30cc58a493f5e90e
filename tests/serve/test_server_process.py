"""The real thing: a process, a port, signals."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from recfit.serve.run import bind, url
from recfit.types import ConfigError

HERE = Path(__file__).parent
SERVE = """
import sys, time
from fake_engine import FakeEngine
from recfit.config import Serve
from recfit.serve.run import bind, serve

def during(request):
    if request.user_id == "slow":
        print("working", flush=True)
        time.sleep(0.4)

with bind("127.0.0.1", 0) as listener:
    serve([FakeEngine(during)], [listener], Serve(threads=int(sys.argv[1]), drain_s=float(sys.argv[2])))
print("returned", flush=True)
"""

Start = Callable[[int, float], tuple[subprocess.Popen[str], str]]


@pytest.fixture
def start() -> Iterator[Start]:
    """`start(threads, drain_s)`: a process that serves the fake engine, and its URL from the line it prints."""
    started: list[subprocess.Popen[str]] = []

    def run(threads: int, drain_s: float) -> tuple[subprocess.Popen[str], str]:
        process = subprocess.Popen(
            [sys.executable, "-W", "error", "-c", SERVE, str(threads), str(drain_s)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=HERE,  # so that it finds fake_engine
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        started.append(process)
        line = process.stdout.readline()
        found = re.fullmatch(r"serving toy at (http://127\.0\.0\.1:\d+)\n", line)
        assert found, line + process.stderr.read()
        return process, found[1]

    yield run
    for process in started:
        process.kill()
        process.communicate()


def finished(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Exit code, and what it printed since."""
    out, err = process.communicate(timeout=30)
    return process.returncode, out, err


def test_sigterm_flips_readyz_first_answers_meanwhile_then_ends_with_0(start) -> None:
    process, base = start(0, 30)
    failures: list[Exception] = []
    with httpx.Client(base_url=base) as client, httpx.Client(base_url=base) as other:
        assert client.get("/readyz").status_code == 200
        process.send_signal(signal.SIGTERM)
        statuses: set[int] = set()
        closing: set[str | None] = set()
        until = time.monotonic() + 0.3
        while time.monotonic() < until:
            try:
                answer = client.post("/v1/recommend", json={"user_id": "u1"})
            except httpx.HTTPError as error:
                failures.append(error)
                continue
            statuses.add(answer.status_code)
            closing.add(answer.headers.get("connection"))
        assert other.get("/readyz").status_code == 503
        assert other.get("/healthz").status_code == 200
    assert (failures, statuses) == ([], {200})
    assert "close" in closing
    process.send_signal(signal.SIGTERM)  # enough of draining
    assert finished(process) == (0, "returned\n", "")
    with pytest.raises(httpx.ConnectError):
        httpx.get(base + "/healthz")


@pytest.mark.parametrize("threads", [0, 1])
def test_a_request_in_flight_is_answered_before_the_end(start, threads: int) -> None:
    process, base = start(threads, 0)
    answers: list[httpx.Response] = []
    client = threading.Thread(
        target=lambda: answers.append(httpx.post(base + "/v1/recommend", json={"user_id": "slow"}))
    )
    client.start()
    assert process.stdout.readline() == "working\n"
    process.send_signal(signal.SIGTERM)
    client.join()
    assert answers[0].status_code == 200
    assert finished(process) == (0, "returned\n", "")


def test_sigint_does_not_wait(start) -> None:
    process, _ = start(0, 30)
    process.send_signal(signal.SIGINT)
    assert finished(process)[0] == 0


def test_the_drain_lasts_as_long_as_was_asked(start) -> None:
    process, _ = start(0, 0.5)
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    assert finished(process)[0] == 0
    assert 0.5 <= time.monotonic() - began < 20


def test_a_body_too_large_is_answered_and_the_connection_stays_usable(start) -> None:
    _, base = start(0, 0)
    with httpx.Client(base_url=base) as client:
        assert client.post("/v1/recommend", content=b" " * 1_000_000).status_code == 413
        assert client.post("/v1/recommend", json={"user_id": "u1"}).status_code == 200


def test_headers_do_not_name_the_server_and_bad_http_does_not_stop_it(start) -> None:
    process, base = start(0, 0)
    answer = httpx.get(base + "/healthz")
    assert "server" not in answer.headers
    with socket.create_connection(("127.0.0.1", httpx.URL(base).port)) as raw:
        raw.sendall(b"\x16\x03\x01 not http\r\n\r\n")
        assert raw.recv(100).startswith(b"HTTP/1.1 400")
    assert httpx.get(base + "/healthz").status_code == 200
    process.send_signal(signal.SIGTERM)
    assert finished(process)[0] == 0


def test_bind_refuses_a_port_in_use_by_its_number() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"127\.0\.0\.1 port {port}.*in use.*--port"):
            bind("127.0.0.1", port)


@pytest.mark.parametrize(("host", "port"), [("127.0.0.1", 70_000), ("no.such.host.invalid", 0)])
def test_bind_refuses_what_is_no_address(host: str, port: int) -> None:
    with pytest.raises(ConfigError, match=f"{host} port {port}"):
        bind(host, port)


def test_url_has_brackets_around_an_ipv6_address() -> None:
    with bind("::1", 0) as listener:
        assert re.fullmatch(r"http://\[::1\]:\d+", url(listener))


def test_serving_never_loads_torch() -> None:
    program = "import sys, recfit.serve.run, recfit.cli; print('torch' in sys.modules, 'pandas' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "False False\n"

"""The real thing: a process, a port, signals."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import httpx
import pytest
import uvicorn
from fake_engine import FakeEngine
from starlette.types import Receive, Scope, Send
from uvicorn.server import ServerState

from recfit.config import Serve
from recfit.serve.connections import Connection
from recfit.serve.run import ADMIN, bind, cautions, listen, serve, url
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


def test_every_answer_of_a_draining_server_ends_the_connection(start) -> None:
    process, base = start(0, 30)
    tensor = {"name": "user_id", "shape": [1], "datatype": "BYTES", "data": ["u1"]}
    asked = [
        ("POST", "/v1/recommend", {"user_id": "u1"}),
        ("POST", "/v1/recommend", {"user_id": 1.5}),
        ("POST", "/v2/models/default/infer", {"inputs": [tensor]}),
        ("GET", "/v1/similar/i0", None),
        ("GET", "/healthz", None),
        ("GET", "/readyz", None),
        ("GET", "/nowhere", None),
    ]

    def endings() -> list[str | None]:
        with httpx.Client(base_url=base) as client:
            return [client.request(method, path, json=body).headers.get("connection") for method, path, body in asked]

    assert endings() == [None] * len(asked)
    process.send_signal(signal.SIGTERM)
    with httpx.Client(base_url=base) as client:
        while client.get("/readyz").status_code == 200:
            time.sleep(0.01)
    assert endings() == ["close"] * len(asked)


ODD = """
import sys
from fake_engine import FakeEngine
from recfit.config import Serve
from recfit.serve import connections, run

read_s, most, run.LAST_S, drain_s, connections.WRITE_S = map(float, sys.argv[1:])
connections.READ_S, run.most_connections = read_s, lambda: most
with run.bind("127.0.0.1", 0) as listener:
    run.serve([FakeEngine()], [listener], Serve(drain_s=drain_s))
"""


@contextmanager
def odd(
    *, read_s: float = 60, most: int = 99, last_s: float = 0, drain_s: float = 0, write_s: float = 60
) -> Iterator[tuple[Any, int]]:
    """A server with other constants, and its port."""
    command = [sys.executable, "-c", ODD, *map(str, (read_s, most, last_s, drain_s, write_s))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=HERE) as process:
        assert process.stdout is not None
        try:
            yield process, int(process.stdout.readline().rsplit(":", 1)[1])
        finally:
            process.kill()


def test_who_is_connected_when_the_drain_ends_may_ask_once_more() -> None:
    ask = b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n"
    with odd(last_s=30, drain_s=3) as (process, port):
        connections = [socket.create_connection(("127.0.0.1", port), 30) for _ in range(2)]
        connections[0].sendall(ask)
        first = b""
        while not first.endswith(b"}"):
            first += connections[0].recv(4096)
        assert b"connection" not in first
        process.send_signal(signal.SIGTERM)
        until = time.monotonic() + 30
        while time.monotonic() < until:
            try:
                socket.create_connection(("127.0.0.1", port)).close()
            except OSError:  # nobody new is let in
                break
            time.sleep(0.02)
        for connection in connections:
            connection.sendall(ask)
            told = b"".join(iter(lambda connection=connection: connection.recv(4096), b""))
            assert told.startswith(b"HTTP/1.1 200")
            assert b"connection: close" in told
            connection.close()
        assert process.wait(30) == 0


@pytest.mark.parametrize(
    "begun",
    [
        b"",
        b"POST /v1/recommend HTT",
        b"POST /v1/recommend HTTP/1.1\r\ncontent-length: 100\r\n\r\n{",
        b"POST /v2/models/default/infer HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n",
    ],
)
def test_a_request_that_does_not_come_in_is_given_up(begun: bytes) -> None:
    with odd(read_s=0.5) as (_, port), httpx.Client(base_url=f"http://127.0.0.1:{port}") as idle:
        assert idle.get("/healthz").status_code == 200
        with socket.create_connection(("127.0.0.1", port), 30) as raw:
            raw.sendall(begun)
            told = b""
            while part := raw.recv(4096):
                told += part
        status, body = told.rsplit(b"HTTP/1.1 ", 1)[1].split(b"\r\n\r\n")
        assert status.startswith(b"408 Request Timeout\r\n")
        assert ended(port)["slow to send"] == 1
        assert json.loads(body)["error"]["code"] == "request_timeout"
        idle.get("/healthz", extensions={"trace": lambda name, _: pytest.fail(name) if "connect_tcp" in name else None})


def ended(port: int) -> dict[str, float]:
    """Connections that the server ended, by reason."""
    text = httpx.get(f"http://127.0.0.1:{port}/metrics").text
    return {why: float(count) for why, count in re.findall(r'connections_ended_total{reason="([^"]+)"} (\S+)', text)}


@pytest.mark.parametrize("first", ["", "GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n"])
@pytest.mark.parametrize("begun", ["GET /", "GET / HTTP/1.1\r\nx: ", "GET / HTTP/1.1\r\n"])
def test_headers_without_an_end_are_not_kept(first: str, begun: str) -> None:
    with odd() as (_, port), socket.create_connection(("127.0.0.1", port), 30) as raw:
        raw.sendall((first + begun).encode())
        sent = 0
        with suppress(OSError):  # the server has closed the connection
            while sent < 4_000_000:
                raw.sendall(b"x: y\r\n" * 1000 if begun.endswith("\n") else b"x" * 6000)
                sent += 6000
                time.sleep(0.001)
        assert sent < 4_000_000
        assert ended(port)["too long"] == 1
        assert sum(ended(port).values()) == 1


@pytest.mark.parametrize("first", ["", "GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n"])
def test_empty_lines_for_ever_are_not_read_for_ever(first: str) -> None:
    with odd() as (_, port), socket.create_connection(("127.0.0.1", port), 30) as raw:
        raw.sendall(first.encode())
        with suppress(OSError):  # the server has closed the connection
            for _ in range(200):
                raw.sendall(b"\r\n" * 50_000)
        assert ended(port)["too long"] == 1
        assert sum(ended(port).values()) == 1


def test_a_head_below_the_limit_is_read() -> None:
    with odd() as (_, port):
        assert httpx.get(f"http://127.0.0.1:{port}/healthz", headers={"x": "y" * 60_000}).status_code == 200
        assert not sum(ended(port).values())


async def nobody(scope: Scope, receive: Receive, send: Send) -> None:
    """An app that is not asked."""


class Wire:
    """A connection without a network: what is written, and a clock that is set."""

    def __init__(self) -> None:
        self.transport, self.now = MagicMock(), 0.0
        self.transport.get_extra_info.return_value = None
        self.transport.is_closing.side_effect = lambda: self.transport.close.called
        self.loop = SimpleNamespace(time=lambda: self.now)
        config = uvicorn.Config(nobody, http=Connection, ws="none", lifespan="off")
        self.connection = Connection(config, ServerState(), {}, self.loop)
        self.connection.connection_made(self.transport)

    def look_every_second(self, seconds: int, unread: Callable[[int], int]) -> None:
        for at in range(seconds):
            self.now += 1
            self.transport.get_write_buffer_size.return_value = unread(at)
            self.connection.look()


def test_a_head_above_the_limit_is_refused_where_one_read_has_all_of_it() -> None:
    wire = Wire()
    wire.connection.data_received(b"GET /healthz HTTP/1.1\r\nx: " + b"y" * 200_000 + b"\r\n\r\n")
    assert wire.connection.cycle is None  # nobody was asked
    assert wire.transport.write.call_args.args[0].startswith(b"HTTP/1.1 431")
    wire.transport.close.assert_called_once_with()


def answered() -> Any:
    return MagicMock(response_complete=True)


@pytest.mark.parametrize("together", [False, True])
def test_who_reads_one_answer_after_the_other_is_not_sent_away(together: bool) -> None:
    """On a slow link a part of some answer is always on the way."""
    wire = Wire()
    wire.connection.timeout_keep_alive_task = MagicMock()
    wire.connection.cycle = answered()
    wire.connection.pipeline.extend([(MagicMock(), MagicMock())] * (5 if together else 0))
    for _ in range(5):
        wire.look_every_second(25, lambda _: 1000)
        if together:
            wire.connection.pipeline.pop()
        else:
            wire.connection.cycle = answered()
    wire.transport.abort.assert_not_called()
    wire.look_every_second(25, lambda at: 1000 * (at != 10))  # all of it, and the next one has begun
    wire.transport.abort.assert_not_called()
    wire.look_every_second(25, lambda _: 1000)
    wire.transport.abort.assert_called_with()


def test_a_body_without_an_end_is_not_read_for_ever() -> None:
    with odd() as (_, port), socket.create_connection(("127.0.0.1", port), 30) as raw:
        raw.sendall(b"POST /v1/recommend HTTP/1.1\r\nhost: x\r\ncontent-length: 999999999\r\n\r\n")
        with suppress(OSError):  # the server has closed the connection
            for _ in range(1000):
                raw.sendall(b" " * 100_000)
        assert ended(port)["too long"] == 1


def test_headers_after_a_long_body_are_only_their_own_bytes() -> None:
    with odd() as (_, port), socket.create_connection(("127.0.0.1", port), 30) as raw:
        raw.sendall(b"POST /v1/recommend HTTP/1.1\r\nhost: x\r\ncontent-length: 300000\r\n\r\n" + b" " * 300_000)
        time.sleep(0.2)
        for part in (b"GET /healthz HTTP/1.1\r\n", b"host: x\r\n", b"connection: close\r\n\r\n"):
            raw.sendall(part)
            time.sleep(0.1)
        told = b"".join(iter(lambda: raw.recv(65_536), b""))
        assert re.findall(rb"HTTP/1.1 (\d+)", told) == [b"413", b"200"]


def test_who_does_not_read_its_answer_is_sent_away() -> None:
    body = json.dumps({"requests": [{"user_id": "u1", "k": 50}] * 256}).encode()
    ask = b"POST /v1/recommend/batch HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body)
    with odd(write_s=1) as (_, port), socket.create_connection(("127.0.0.1", port), 30) as raw:
        raw.sendall(ask * 30)  # some megabytes of answers, more than the system takes
        until = time.monotonic() + 30
        while not ended(port)["slow to read"]:
            assert time.monotonic() < until
            time.sleep(0.1)
        assert sum(ended(port).values()) == 1


def test_one_connection_too_many_is_told_so_and_others_go_on() -> None:
    with odd(most=4) as (_, port), httpx.Client(base_url=f"http://127.0.0.1:{port}") as client:
        assert client.get("/healthz").status_code == 200
        opened = [socket.create_connection(("127.0.0.1", port), 30) for _ in range(6)]
        for raw in opened[2:]:
            assert raw.recv(12) == b"HTTP/1.1 503"
        assert 'recfit_connections_ended_total{reason="full"} 4.0' in client.get("/metrics").text
        assert client.get("/healthz").status_code == 200
        for raw in opened:
            raw.close()
        until = time.monotonic() + 30
        while httpx.get(f"http://127.0.0.1:{port}/healthz").status_code != 200:
            assert time.monotonic() < until


def test_of_two_servers_that_start_together_one_says_that_the_port_is_taken() -> None:
    with bind("127.0.0.1", 0) as first, bind("127.0.0.1", first.getsockname()[1]) as second:
        listen(first)
        port = first.getsockname()[1]
        with pytest.raises(
            ConfigError, match=rf"127\.0\.0\.1 port {port}.*in use.*choose another with --host or --port"
        ):
            listen(second)
        with pytest.raises(ConfigError, match=r"choose another with --admin-port$"):
            listen(second, ADMIN)
        with pytest.raises(ConfigError, match=r"choose another with --admin-port$"):
            bind("127.0.0.1", port, ADMIN)
        listen(first)  # as every worker does that has it


def test_a_server_that_cannot_listen_says_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    with bind("127.0.0.1", 0) as first, bind("127.0.0.1", first.getsockname()[1]) as second:
        listen(first)
        with pytest.raises(ConfigError, match="choose another"):
            serve([FakeEngine()], [second], Serve())
    assert capsys.readouterr().out == ""


def test_ports_that_overlap_are_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"serve\.port = 9000 is one of the 1 for operators from serve\.admin_port = 9000 on"
    ):
        Serve(port=9000, admin_port=9000)
    with pytest.raises(ConfigError, match=r"serve\.port = 9001 is one of the 2 for operators"):
        Serve(port=9001, admin_port=9000, workers=2, events="events.db")
    with pytest.raises(ConfigError, match=r"serve\.admin_port = 65535 is outside 0 to 65534"):
        Serve(admin_port=65535, workers=2, events="events.db")
    assert Serve(port=8999, admin_port=9000, workers=2, events="events.db").admin_port == 9000
    assert Serve(port=0, admin_port=0).admin_port == 0


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


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (Serve(), []),
        (Serve(host="localhost", workers=2, events="e.db", admin_port=0), []),
        (Serve(host="::1"), []),
        (Serve(host="0.0.0.0"), ["who reaches 0.0.0.0 port 8000 may ask"]),
        (Serve(host="shop.example"), ["who reaches shop.example"]),
        (Serve(host="0.0.0.0", keys="keys.toml"), []),
        (Serve(workers=3, events="e.db"), ["one of 3 workers, another one each time: with --admin-port"]),
        (Serve(workers=3, engine="ray", redis="redis://r"), []),
    ],
)
def test_what_may_not_be_meant_is_told_at_the_start(settings: Serve, said: list[str]) -> None:
    found = list(cautions(settings))
    assert len(found) == len(said)
    assert all(words in caution for words, caution in zip(said, found, strict=True))

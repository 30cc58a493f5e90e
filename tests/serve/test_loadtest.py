"""Load on a schedule: everything that is due is sent, and a stall is felt by all who were due in it."""

from __future__ import annotations

import json
import socket
import ssl
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from recfit import loadtest
from recfit.cli import main
from recfit.loadtest import Access, Found, Load
from recfit.types import ConfigError, MeasurementError, Request

Handler = Callable[[int, bytes], bytes]
TLS = Path(__file__).parent / "tls"


def ok(source: str = "model") -> bytes:
    body = json.dumps({"items": [], "source": source}, separators=(",", ":")).encode()
    return b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)


class Answering:
    """A server that answers request number n with `handler(n, its bytes)`; nothing closes the connection."""

    def __init__(self, handler: Handler, tls: ssl.SSLContext | None = None) -> None:
        self.tls = tls
        self.handler, self.bodies = handler, list[bytes]()
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        self.lock = threading.Lock()
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        if self.tls is not None:
            try:
                connection = self.tls.wrap_socket(connection, server_side=True)
            except OSError:  # the client trusts it not
                return
        with connection:
            while data := connection.recv(65536):
                with self.lock:
                    number = len(self.bodies)
                    self.bodies.append(data.split(b"\r\n\r\n", 1)[1])
                answer = self.handler(number, data)
                if not answer:
                    return
                connection.sendall(answer)


@pytest.fixture
def serve() -> Iterator[Callable[[Handler], Answering]]:
    started: list[Answering] = []

    def run(handler: Handler, tls: ssl.SSLContext | None = None) -> Answering:
        started.append(Answering(handler, tls))
        return started[-1]

    yield run
    for server in started:
        server.listener.close()


REQUESTS = [Request("ü 1"), Request(history=("a", "b"), exclude=("c",), context={"hour": "13"})]


def test_everything_that_is_due_is_sent_and_counted(serve) -> None:
    server = serve(lambda number, _: ok("model" if number % 2 else "cache"))
    found = loadtest.run(server.url, REQUESTS, Load(rate=100, seconds=1, connections=4, k=7))
    assert found.answered == 100
    assert found.statuses == {"200": 100}
    assert found.sources == {"cache": 50, "model": 50}
    assert found.failed == 0
    assert not found.refused_ms
    assert "refused" not in loadtest.line(found)
    assert 0 < found.ms["50"] <= found.ms["99"] <= found.ms["100"] < 5000
    bodies = {body.decode() for body in server.bodies}
    assert [json.loads(body) for body in sorted(bodies)] == [
        {"history": ["a", "b"], "exclude": ["c"], "context": {"hour": "13"}, "k": 7},
        {"user_id": "ü 1", "k": 7},
    ]


def test_a_stall_is_felt_by_all_who_were_due_in_it(serve) -> None:
    """A closed loop over one connection would report one slow request of 200."""
    stalled = threading.Event()

    def handler(number: int, _: bytes) -> bytes:
        if number == 50:
            stalled.wait(0.5)
        return ok()

    found = loadtest.run(serve(handler).url, REQUESTS, Load(rate=200, seconds=1, connections=1))
    assert found.answered == 200
    assert found.ms["99"] > 400
    assert found.ms["90"] > 300  # a hundred requests were due while it stalled


def test_failures_are_counted_by_what_they_were(serve) -> None:
    def handler(number: int, _: bytes) -> bytes:
        if number % 10 == 3:
            return b""  # the connection ends
        if number % 10 == 5:
            return b"HTTP/1.1 503 Busy\r\nConnection: close\r\nContent-Length: 4\r\n\r\nbusy"
        return ok()

    found = loadtest.run(serve(handler).url, REQUESTS, Load(rate=200, seconds=0.5, connections=3))
    assert found.statuses == {"200": 80, "503": 10, "connection lost": 10}
    assert found.failed == 20
    assert found.ms["99"] == float("inf")
    assert not found.holds(1e9)
    assert "503: 10, connection lost: 10; refused with p50 " in loadtest.line(found)


def test_refusals_are_timed_apart_from_answers(serve) -> None:
    """A server that refuses at once what it would answer late looks fast where the two are mixed."""

    def handler(number: int, _: bytes) -> bytes:
        if number % 4:
            return b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n"
        time.sleep(0.25)
        return ok()

    found = loadtest.run(serve(handler).url, REQUESTS, Load(rate=100, seconds=0.4, connections=40))
    assert found.statuses == {"200": 10, "503": 30}
    assert found.answered == 40
    assert found.ms["50"] >= 250
    assert found.refused_ms.keys() == found.ms.keys()
    assert found.refused_ms["50"] < 250
    assert f"refused with p50 {found.refused_ms['50']:.2f}, p99 {found.refused_ms['99']:.2f} ms" in loadtest.line(found)


def test_where_all_is_refused_nothing_is_answered_in_time(serve) -> None:
    found = loadtest.run(
        serve(lambda *_: b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n").url, REQUESTS, Load(100, 0.1)
    )
    assert set(found.ms.values()) == {float("inf")}
    assert found.refused_ms["99"] < 5000


def test_what_never_answers_does_not_hang(serve, monkeypatch) -> None:
    monkeypatch.setattr(loadtest, "GRACE_S", 0.2)
    release = threading.Event()
    server = serve(lambda number, _: (release.wait(5) and b"") or b"")
    found = loadtest.run(server.url, REQUESTS, Load(rate=50, seconds=0.2, connections=20))
    release.set()
    assert found.answered == 0
    assert found.statuses == {"no answer": 10}


@pytest.mark.parametrize("encoding", ["chunked", "length"])
def test_bodies_may_come_in_pieces(encoding: str) -> None:
    body = b'{"source": "model"}'
    if encoding == "length":
        head, sent = b"http/1.1 200 ok\r\ncontent-length: %d" % len(body), body
    else:
        head = b"http/1.1 200 ok\r\ntransfer-encoding: chunked"
        sent = b"5;name=value\r\n" + body[:5] + b"\r\nE\r\n" + body[5:] + b"\r\n0\r\n\r\n"
    assert [loadtest._whole(head, sent[:end]) for end in range(len(sent))] == [None] * len(sent)
    assert loadtest._whole(head, sent) == body


def test_a_key_is_sent_where_there_is_one(serve) -> None:
    heads: list[bytes] = []

    def handler(_: int, data: bytes) -> bytes:
        heads.append(data.split(b"\r\n\r\n")[0])
        return ok()

    loadtest.run(serve(handler).url, REQUESTS, Load(50, 0.1), Access("s3cret"))
    assert all(b"\r\nAuthorization: Bearer s3cret" in head for head in heads)
    heads.clear()
    loadtest.run(serve(handler).url, REQUESTS, Load(50, 0.1))
    assert not any(b"Authorization" in head for head in heads)


def test_a_run_that_says_nothing_of_the_server_fails(serve, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    server = serve(lambda *_: b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n")
    requests = tmp_path / "requests.jsonl"
    requests.write_text('{"user_id": "1"}\n')
    given = ["loadtest", server.url, "--requests", str(requests), "--rate", "50", "--seconds", "0.2"]
    for more in ([], ["--find-max"]):
        assert main([*given, *more]) == 2
        assert "0 of 10 requests were answered with 200 (401: 10)" in capsys.readouterr().err
    Found(10, 10, 100, {"503": 99, "200": 1}, {}, {}).check()  # an overload is something to measure
    with pytest.raises(MeasurementError, match=r"0 of 100 .*\(503: 100\)"):
        Found(10, 10, 100, {"503": 100}, {}, {}).check()


def test_over_tls(serve) -> None:
    place = TLS / "certificate.pem"
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(place, TLS / "key.pem")
    url = serve(lambda *_: ok(), context).url.replace("http:", "https:")
    for access in (Access(ca=str(place)), Access(insecure=True)):
        assert loadtest.run(url, REQUESTS, Load(50, 0.2), access).statuses == {"200": 10}
    with pytest.raises(
        MeasurementError, match=r"certificate of 127\.0\.0\.1 port \d+ is not trusted: .*; give --ca FILE, or"
    ):
        loadtest.run(url, REQUESTS, Load(50, 0.2))
    with pytest.raises(ConfigError, match=r"key\.pem holds no certificate: .*; give --ca a PEM file"):
        loadtest.run(url, REQUESTS, Load(50, 0.2), Access(ca=str(TLS / "key.pem")))


def test_tls_to_a_server_without() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            with listener.accept()[0] as connection:
                connection.recv(65536)
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")

        answering = threading.Thread(target=answer)
        answering.start()
        with pytest.raises(MeasurementError, match=r"does not speak TLS: .*; say http://"):
            loadtest.run(
                f"https://127.0.0.1:{listener.getsockname()[1]}", REQUESTS, Load(50, 0.2), Access(insecure=True)
            )
        answering.join()


def test_nobody_there(monkeypatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    with pytest.raises(MeasurementError, match=f"nothing answers at 127.0.0.1 port {port}; start `recfit serve` there"):
        loadtest.run(f"127.0.0.1:{port}", REQUESTS, Load(10, 0.1))


@pytest.mark.parametrize("most", [0.4, 37.0, 950.0])
def test_the_highest_rate_is_found(monkeypatch, most: float) -> None:
    asked: list[float] = []

    def run(url: str, requests: object, load: Load, access: Access) -> Found:
        asked.append(load.rate)
        return Found(load.rate, load.rate, 1, {"200": 1}, {}, {"99": 1.0 if load.rate <= most else 9.0})

    monkeypatch.setattr(loadtest, "run", run)
    runs = list(loadtest.find_most("", [], Load(50), 5.0))
    best = max((found.rate for found in runs if found.holds(5.0)), default=0.0)
    assert best <= most
    assert best >= most / (1 + loadtest.CLOSENESS) or most < 1
    assert len(asked) < 25
    assert all(asked.count(rate) == (1 if rate <= most else loadtest.TRIES) for rate in asked)


def test_a_moment_in_which_the_machine_did_something_else_is_no_limit(monkeypatch) -> None:
    asked: list[float] = []

    def run(url: str, requests: object, load: Load, access: Access) -> Found:
        stalled = load.rate not in asked and load.rate > 50
        asked.append(load.rate)
        return Found(load.rate, load.rate, 1, {"200": 1}, {}, {"99": 9.0 if stalled or load.rate > 950 else 1.0})

    monkeypatch.setattr(loadtest, "run", run)
    runs = loadtest.find_most("", [], Load(50), 5.0)
    assert max(found.rate for found in runs if found.holds(5.0)) > 900


def test_a_rate_that_was_not_reached_does_not_hold() -> None:
    assert Found(100, 98, 1, {"200": 1}, {}, {"99": 1.0}).holds(5)
    assert not Found(100, 90, 1, {"200": 1}, {}, {"99": 1.0}).holds(5)
    assert not Found(100, 100, 1, {"200": 1, "503": 1}, {}, {"99": 1.0}).holds(5)


def test_percentiles_are_values_that_occurred() -> None:
    late = np.arange(1, 1001, dtype=np.float32)
    assert [loadtest._percentile(late, share) for share in (50, 99, 99.9, 100)] == [500, 990, 999, 1000]


@pytest.mark.parametrize(("setting", "value"), [("rate", 0), ("seconds", 0), ("connections", 0), ("k", 1001)])
def test_a_load_that_cannot_be_is_refused(setting: str, value: float) -> None:
    with pytest.raises(ConfigError, match=rf"load\.{setting} = {value} is outside"):
        Load(**{"rate": 10, setting: value})


def test_the_command_prints_a_table_and_json(serve, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    server, requests = serve(lambda *_: ok()), tmp_path / "requests.jsonl"
    requests.write_text('{"user_id": "1"}\n')
    given = ["loadtest", server.url, "--requests", str(requests), "--rate", "50", "--seconds", "0.3"]
    assert main(given) == 0
    told = capsys.readouterr().out.splitlines()
    assert told[0].split()[:2] == ["rate", "sent/s"]
    assert told[1].split()[0] == "50.00"
    assert told[2] == "answered from: {'model': 15}"
    assert main([*given, "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["statuses"], shown["refused_ms"]) == ({"200": 15}, {})
    sys.stdout.flush()

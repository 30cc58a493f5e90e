"""A server that is broken on purpose while it is under load: what failed, how late answers were, when it was well again.

    python -m benchmarks.faults requests.jsonl bundle/ other/ --rate 300

Every row is a server of its own with its fault three seconds into ten of load. Latency counts from when a request was due; that
of refusals is told apart. Resident memory is looked at after swaps, and before and after bodies that are none.
Needs `redis-server`. The overload is three times the rate that the server holds. Results are dated JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.record import save
from benchmarks.started import CLIENT, SERVER, Started, send, started

from recfit.data.requests import read_requests
from recfit.loadtest import Found, Load, find_most, run
from recfit.types import Request

SECONDS, AT_S = 10.0, 3.0
AWAY_S = 3.0
"""How long Redis is stopped, frozen or slow."""
SLOW_S = 0.05
SWAPS, LEAVING, BROKEN = 100, 2000, 500
SHOWN = (1, 5, 25, 50, 75, 100)
"""The swaps after which resident memory is told: the first few load what stays loaded."""
P99_MS, SHED_MS = 10.0, 100


@dataclass(frozen=True)
class Setting:
    """What all rows have in common."""

    requests: Sequence[Request]
    bundle: str
    other: str
    rate: float
    folder: Path


Fault = Callable[[Started], str]
"""Breaks something; returns what came of it beside the load."""


def after(true: Callable[[], bool]) -> float:
    """Seconds until it is true."""
    begin = time.monotonic()
    while not true():
        if time.monotonic() - begin > 60:
            raise SystemExit("not well again after a minute")
        time.sleep(0.02)
    return time.monotonic() - begin


def rss_mb(server: Started) -> float:
    """Of a server in one process. `Started.memory` walks through its pages too, which is no thing to do under load."""
    return float(server.process.memory_info().rss) / 1e6


def row(setting: Setting, flags: Sequence[str], fault: Fault, seconds: float = SECONDS) -> tuple[Found, str]:
    """A server with `flags`, its load, and in the middle of that the fault."""
    with started(setting.bundle, ["--results-mb", "0", *flags]) as server, ThreadPoolExecutor(1) as beside:
        run(server.url, setting.requests, Load(setting.rate, 1.0))

        def broken() -> str:
            time.sleep(AT_S)
            return fault(server)

        breaking = beside.submit(broken)
        found = run(server.url, setting.requests, Load(setting.rate, seconds))
        return found, breaking.result()


# The faults


def nothing(server: Started) -> str:
    return ""


def worker_killed(server: Started) -> str:
    workers = [child for child in server.process.children() if "spawn_main" in " ".join(child.cmdline())]
    workers[0].kill()
    whole = after(lambda: all(send(f"{admin}/readyz", b"", "GET") == 200 for admin in server.admins))
    return f"both answer again after {whole:.1f} s"


def swaps(server: Started, setting: Setting) -> str:
    """Two bundles in turn; every tenth is one whose item table was tampered with."""
    bad = setting.folder / "bad"
    shutil.copytree(setting.other, bad)
    table = max(bad.rglob("*.bin"), key=lambda path: path.stat().st_size, default=bad / "manifest.json")
    table.write_bytes(table.read_bytes()[:-1] + b"\x00\x01")
    statuses: Counter[int] = Counter()
    held = list[float]()
    for number in range(SWAPS):
        path = bad if number % 10 == 9 else Path((setting.other, setting.bundle)[number % 2])
        body = json.dumps({"bundles": [str(path.resolve())]}).encode()
        statuses[send(f"{server.admin}/admin/models/default", body, "PUT")] += 1
        held.append(rss_mb(server))
    some = ", ".join(f"{held[at - 1]:.0f}" for at in SHOWN if at <= len(held))
    return f"{statuses[200]} swapped, {statuses[422]} refused; RSS after swap {', '.join(map(str, SHOWN))}: {some} MB"


def leaving(server: Started) -> str:
    host, port = server.url.removeprefix("http://").split(":")
    body = b'{"user_id": "a1"}'
    for _ in range(LEAVING):
        with socket.create_connection((host, int(port))) as one:
            one.sendall(b"POST /v1/recommend HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
    return f"{LEAVING:,} clients left before their answer"


def broken_bodies(server: Started) -> str:
    """Random bytes, histories of 100,000 items, lists of a billion, ids from all of Unicode, wrong types."""
    draws = np.random.default_rng(0)
    odd = "".join(chr(code) for code in draws.integers(1, 0xD7FF, 200))
    shapes: Sequence[Callable[[], bytes]] = (
        lambda: draws.bytes(int(draws.integers(1, 2000))),
        lambda: json.dumps({"history": ["1"] * 100_000}).encode(),
        lambda: json.dumps({"history": ["1"], "k": 10**9}).encode(),
        lambda: json.dumps({"user_id": odd, "history": [odd]}).encode(),
        lambda: json.dumps({"history": [[]], "k": "ten"}).encode(),
        lambda: b"[" * 60_000,
    )
    before = rss_mb(server)
    found = Counter(
        send(f"{server.url}/v1/recommend", shapes[number % len(shapes)]()) // 100 for number in range(BROKEN)
    )
    held = f"RSS {before:.0f} MB before, {rss_mb(server):.0f} after"
    return f"{BROKEN} of them: {found[4]} refused, {found[2]} answered, {found[5]} failed; {held}"


def terminated(server: Started) -> str:
    server.process.send_signal(signal.SIGTERM)
    whole = after(lambda: not server.process.is_running() or server.process.status() == "zombie")
    return f"ended {whole:.1f} s after SIGTERM"


# Redis


@dataclass
class Redis:
    """A Redis of its own, and how to break it."""

    port: int
    process: subprocess.Popen[bytes]

    def back(self, server: Started, begin: float) -> str:
        """How long after `begin` events are kept again."""
        event = json.dumps({"events": [{"user_id": "1", "item_id": "1"}]}).encode()
        after(lambda: send(f"{server.url}/v1/events", event) == 200)
        return f"events are kept again {time.monotonic() - begin:.1f} s after it was back"

    def stopped(self, server: Started) -> str:
        self.process.kill()
        self.process.wait()
        time.sleep(AWAY_S)
        self.process = _redis(self.port)
        return self.back(server, time.monotonic())

    def frozen(self, server: Started) -> str:
        self.process.send_signal(signal.SIGSTOP)
        time.sleep(AWAY_S)
        self.process.send_signal(signal.SIGCONT)
        return self.back(server, time.monotonic())


def _redis(port: int) -> subprocess.Popen[bytes]:
    """On the server's core."""
    command = ["redis-server", "--port", f"{port}", "--save", "", "--appendonly", "no"]
    process = subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        preexec_fn=lambda: os.sched_setaffinity(0, SERVER),
        cwd=tempfile.gettempdir(),
    )
    after(lambda: _open(port))
    return process


def _open(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


@contextmanager
def redis() -> Iterator[Redis]:
    port = free_port()
    found = Redis(port, _redis(port))
    try:
        yield found
    finally:
        found.process.kill()
        found.process.wait()


def slow_way(port: int, to: int, delay_s: float) -> None:
    """A way to `to` on which every reply takes so much longer; never returns."""

    async def passed(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, wait_s: float) -> None:
        while data := await reader.read(65_536):
            await asyncio.sleep(wait_s)
            writer.write(data)
            await writer.drain()
        writer.close()

    async def client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        back, forth = await asyncio.open_connection("127.0.0.1", to)
        await asyncio.gather(passed(reader, forth, 0.0), passed(back, writer, delay_s), return_exceptions=True)

    async def serve() -> None:
        await (await asyncio.start_server(client, "127.0.0.1", port)).serve_forever()

    asyncio.run(serve())


@contextmanager
def slow_redis() -> Iterator[int]:
    """The port of a Redis that takes `SLOW_S` to answer."""
    with redis() as real:
        port = free_port()
        way = get_context("spawn").Process(target=slow_way, args=(port, real.port, SLOW_S), daemon=True)
        way.start()
        try:
            after(lambda: _open(port))
            yield port
        finally:
            way.kill()


# All of them


def rows(setting: Setting) -> Iterator[tuple[str, float, Found, str]]:
    """Name, rate, what came of the load and what of the fault."""
    rate, url = setting.rate, "redis://127.0.0.1:{}/0".format
    yield "nothing", rate, *row(setting, [], nothing)
    two = ["--workers", "2", "--events", str(setting.folder / "events.db")]
    yield "one of two workers killed (SIGKILL)", rate, *row(setting, two, worker_killed)
    with redis() as one:
        yield "Redis stopped for 3 s", rate, *row(setting, ["--redis", url(one.port), "--results-mb", "8"], one.stopped)
    with redis() as one:
        yield "Redis frozen for 3 s", rate, *row(setting, ["--redis", url(one.port), "--results-mb", "8"], one.frozen)
    with slow_redis() as port:
        yield "Redis takes 50 ms a reply", rate, *row(setting, ["--redis", url(port), "--results-mb", "8"], nothing)
    changing: Fault = lambda server: swaps(server, setting)  # noqa: E731
    yield "100 swaps, ten of a tampered bundle", rate, *row(setting, [], changing, 30.0)
    yield "clients that leave", rate, *row(setting, [], leaving)
    yield "bodies that are none", rate, *row(setting, [], broken_bodies)
    yield "SIGTERM, a drain of 8 s", rate, *row(setting, ["--drain-s", "8"], terminated)
    yield overload(setting)


def overload(setting: Setting) -> tuple[str, float, Found, str]:
    """Three times what it holds, where nobody is to wait longer than `SHED_MS`."""
    flags = ["--results-mb", "0", "--shed-ms", f"{SHED_MS}"]
    with started(setting.bundle, flags) as server:
        runs = [*find_most(server.url, setting.requests, Load(setting.rate, 2.0), P99_MS)]
        most = max((found.rate for found in runs if found.holds(P99_MS)), default=setting.rate)
        found = run(server.url, setting.requests, Load(3 * most, SECONDS, connections=1000))
        begin = time.monotonic()
        send(f"{server.url}/v1/recommend", json.dumps({"history": ["1"]}).encode())
        took = (time.monotonic() - begin) * 1e3
    return f"three times what it holds, --shed-ms {SHED_MS}", 3 * most, found, f"then an answer in {took:.1f} ms"


def line(name: str, rate: float, found: Found, said: str) -> str:
    wrong = ", ".join(f"{count:,} x {status}" for status, count in sorted(found.statuses.items()) if status != "200")
    late = " | ".join(f"{found.ms[share]:.1f}" for share in ("50", "99", "100"))
    late += f" | {found.refused_ms['99']:.1f}" if found.refused_ms else " | "
    return f"| {name} | {rate:,.0f} | {found.statuses.get('200', 0):,} | {wrong or 'none'} | {late} | {said} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("requests", type=Path)
    parser.add_argument("bundle")
    parser.add_argument("other", help="another bundle of the same data, to swap")
    parser.add_argument("--rate", type=float, default=300.0)
    given = parser.parse_args()
    os.sched_setaffinity(0, CLIENT)
    kept: list[Mapping[str, Any]] = []
    print("| fault | requests/s | answered | not | p50 ms | p99 ms | longest ms | p99 of refusals ms | |")
    print("| --- | ---: | ---: | --- | ---: | ---: | ---: | ---: | --- |", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        setting = Setting(read_requests(given.requests), given.bundle, given.other, given.rate, Path(folder))
        for name, rate, found, said in rows(setting):
            print(line(name, rate, found, said), flush=True)
            kept.append({"fault": name, **asdict(found), "said": said})
    protocol = f"open loop (Poisson), {SECONDS:g} s, the fault after {AT_S:g}; server and client a core each, loopback"
    print(save("faults", "", {"protocol": protocol, "rows": kept}))


if __name__ == "__main__":
    main()

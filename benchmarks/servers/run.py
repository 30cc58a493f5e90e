"""One model behind several servers: what a team writes by hand, model servers, and recfit with the same model and with what it
made of it.

    python -m benchmarks.servers.run benchmarks/seeds/small/settings.toml requests.jsonl original=bundle/A chosen=bundle

The peers serve the study's original in PyTorch or ONNX Runtime, one thread; the named bundles are served by recfit without its
result cache, so that every request is worked for. Measured for each: how long it takes to the first answer, the highest rate at
a p99, then p50 and p99 at 0.6 of that beside recfit at the same rate, turn by turn, and the memory of all its processes (PSS).
Server and client have a core each, loopback. Servers that are not installed or fail are rows with their error.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import torch
from benchmarks.peers.given import Scores, export
from benchmarks.record import save
from benchmarks.servers.model import FOLDER, ROUTE, RUNTIME
from benchmarks.started import CLIENT, SERVER, memory

from recfit import config
from recfit import pipeline as pipelines
from recfit.data.requests import read_requests
from recfit.loadtest import Load, body, find_most, run
from recfit.search.bench import prepare
from recfit.types import MeasurementError

TOKEN = "BENCHMARK_TOKEN"
READY_S, STOP_S = 90.0, 10.0
SHARE = 0.6


@dataclass(frozen=True)
class Peer:
    """A server: a module of this folder or a bundle for recfit, and arguments; where it runs."""

    name: str
    module: str = ""
    given: tuple[str, ...] = ()
    runtime: str = "onnx"
    bundle: str = ""
    cores: frozenset[int] = frozenset(SERVER)

    def command(self, port: int) -> list[str]:
        if self.bundle:
            serve = ["recfit.cli", "serve", self.bundle, "--port", str(port), "--results-mb", "0", "--drain-s", "0"]
            return [sys.executable, "-m", *serve, "--events", ":memory:", *self.given]
        return [sys.executable, "-m", f"benchmarks.servers.{self.module}", str(port), *self.given]


PEERS = (
    Peer("FastAPI + PyTorch", "fastapi_app", runtime="torch"),
    Peer("FastAPI + ONNX Runtime", "fastapi_app"),
    Peer("LitServe + ONNX Runtime", "litserve_app"),
    Peer("BentoML + ONNX Runtime", "bentoml_app"),
    Peer("Ray Serve + ONNX Runtime", "ray_app"),
    Peer("Ray Serve, HAProxy and throughput flags", "ray_app", ("haproxy",)),
)


@dataclass(frozen=True)
class Running:
    """A server that answered: where, and after how many seconds."""

    url: str
    cold_s: float
    token: str

    def memory(self) -> dict[str, float]:
        """What all its processes hold, `rss_mb` and `pss_mb`."""
        return memory(_processes(self.token))

    def pss_mb(self) -> float:
        return self.memory()["pss_mb"]


def _processes(token: str) -> Iterator[psutil.Process]:
    for process in psutil.process_iter():
        try:
            if process.environ().get(TOKEN) == token:
                yield process
        except psutil.Error:
            continue


@contextmanager
def serving(peer: Peer, folder: Path, first: bytes) -> Iterator[Running]:
    """`peer` on a core of its own, from its first answer on. Raises `MeasurementError` where there is none."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port, token = free.getsockname()[1], uuid.uuid4().hex
    environment = {**os.environ, FOLDER: str(folder), RUNTIME: peer.runtime, TOKEN: token, "OMP_NUM_THREADS": "1"}
    begin, log = time.perf_counter(), folder / "server.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            peer.command(port),
            env=environment,
            stdout=output,
            stderr=output,
            preexec_fn=lambda: os.sched_setaffinity(0, peer.cores),
        )
    try:
        url = f"http://127.0.0.1:{port}"
        _until_answered(url, first, process, log)
        yield Running(url, time.perf_counter() - begin, token)
    finally:
        _stop(process, token)


def _until_answered(url: str, first: bytes, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.perf_counter() + READY_S
    asked = urllib.request.Request(url + ROUTE, first, {"content-type": "application/json"})
    while time.perf_counter() < end and process.poll() is None:
        try:
            with urllib.request.urlopen(asked, timeout=5) as answer:
                assert len(json.load(answer)["items"]) == 10
                return
        except OSError:
            time.sleep(0.02)
    raise MeasurementError(f"no answer: {log.read_text()[-500:].strip() or 'and nothing in its log'}")


def _stop(process: subprocess.Popen[bytes], token: str) -> None:
    process.send_signal(signal.SIGINT)
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
    for left in [*_processes(token)]:
        left.kill()
    process.wait()


def given(settings: config.Settings, folder: Path) -> None:
    """What the peers load: the original as a module and as a graph, and the ids of its items."""
    workshop = prepare(settings).workshop
    model = pipelines.load(workshop.original).main.model
    module = Scores(model).eval()
    torch.save(module, folder / "model.pt")
    export(module, folder / "model.onnx")
    about = {"items": workshop.split.train.item_ids, "max_history": model.max_history}
    (folder / "about.json").write_text(json.dumps(about))


def most(peer: Peer, folder: Path, requests: Any, load: Load, p99_ms: float) -> dict[str, Any]:
    """The highest rate at `p99_ms`, the time to the first answer and the memory after the load."""
    with serving(peer, folder, body(requests[0], 10)) as server:
        idle_mb = server.pss_mb()
        runs = [*find_most(server.url, requests, load, p99_ms)]
        rate = max((found.rate for found in runs if found.holds(p99_ms)), default=0.0)
        return {"most": rate, "cold_s": server.cold_s, "idle_mb": idle_mb, "pss_mb": server.pss_mb()}


def beside(peer: Peer, other: Peer, folder: Path, requests: Any, load: Load, rounds: int) -> dict[str, Any]:
    """Both at one rate, turn by turn: the medians of p50 and p99 over the rounds."""
    found: dict[str, list[Mapping[str, float]]] = {peer.name: [], other.name: []}
    first = body(requests[0], 10)
    with serving(peer, folder, first) as one, serving(other, folder, first) as two:
        for _ in range(rounds):
            for name, server in ((peer.name, one), (other.name, two)):
                found[name].append(run(server.url, requests, load).ms)
    middle = rounds // 2
    return {
        name: {at: sorted(ms[at] for ms in runs)[middle] for at in ("50", "99")} for name, runs in found.items()
    } | {"rate": load.rate}


def lines(rows: Sequence[Mapping[str, Any]], chosen: str) -> Iterator[str]:
    yield f"| server | most requests/s | first answer s | PSS MB | at | p50 ms | p99 ms | {chosen}: p50 | p99 |"
    yield "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"
    for row in rows:
        if "error" in row:
            yield f"| {row['name']} | {row['error'].splitlines()[-1][:100]} | | | | | | | |"
            continue
        text = f"| {row['name']} | {row['most']:,.0f} | {row['cold_s']:.1f} | {row['pss_mb']:,.0f} |"
        if same := row.get("beside"):
            own, ours = same[row["name"]], same[chosen]
            text += f" {same['rate']:,.0f} | {own['50']:.2f} | {own['99']:.2f} | {ours['50']:.2f} | {ours['99']:.2f} |"
        else:
            text += " | | | | |"
        yield text


def _ours(label: str, served: str) -> Peer:
    path, *given = shlex.split(served)
    return Peer(f"recfit, {label}", bundle=path, given=tuple(given))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", type=Path, help="recfit.toml of a study whose original is trained")
    parser.add_argument("requests", type=Path, help="requests with histories as JSON lines")
    parser.add_argument(
        "bundles",
        nargs="+",
        metavar="LABEL=BUNDLE",
        help="served by recfit, with options of `recfit serve` behind the path; peers are held against the last",
    )
    parser.add_argument("--p99-ms", type=float, default=5.0)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each run")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", help="peers whose name has this in it")
    parser.add_argument("--all-cores", action="store_true", help="servers and client share all cores")
    options = parser.parse_args()
    everywhere = frozenset(range(os.cpu_count() or 1))
    cores, client = (everywhere, everywhere) if options.all_cores else (frozenset(SERVER), frozenset(CLIENT))
    os.sched_setaffinity(0, client)
    requests = read_requests(options.requests)
    ours = [replace(_ours(*pair.split("=", 1)), cores=cores) for pair in options.bundles]
    peers = [replace(peer, cores=cores) for peer in PEERS if (options.only or "") in peer.name]
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        given(config.load(options.settings), folder)
        for peer in (*ours, *peers):
            row: dict[str, Any] = {"name": peer.name}
            try:
                row |= most(peer, folder, requests, Load(100, options.seconds), options.p99_ms)
                if peer in peers and row["most"]:
                    load = Load(SHARE * row["most"], options.seconds)
                    row["beside"] = beside(peer, ours[-1], folder, requests, load, options.rounds)
            except MeasurementError as error:
                row["error"] = str(error)
            rows.append(row)
            print([*lines(rows, ours[-1].name)][-1], flush=True)
    found = {
        "protocol": f"open loop (Poisson), {options.seconds:g} s a run, 64 connections at most, k = 10, "
        f"p99 <= {options.p99_ms:g} ms; one thread; server on cores {sorted(cores)}, client on {sorted(client)}, loopback; "
        "no result cache",
        "bundles": [{**asdict(peer), "bundle": Path(peer.bundle).name, "cores": sorted(peer.cores)} for peer in ours],
        "rows": rows,
    }
    path = save("servers", "", found)
    print(*lines(rows, ours[-1].name), path, sep="\n")


if __name__ == "__main__":
    main()

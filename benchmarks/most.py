"""The highest rate that a bundle behind `recfit serve` holds at a p99, and what serving adds to the engine's time.

    python -m benchmarks.most study/test/requests.jsonl bundle/ --p99-ms 5 --rate 2500

Server and client have a core each, loopback. What serving adds is told twice. In processor time: that of the server, kernel
included, for each request at three fifths of that rate, less that of the engine alone for the same requests. And in what a
user waits for: the median over HTTP of a request now and then, less that of a call of the engine. Memory is that at the end.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.record import save
from benchmarks.started import CLIENT, SERVER, Started, send, started

from recfit.bundle import read_manifest
from recfit.data.requests import read_requests
from recfit.engine import open_bundle
from recfit.loadtest import HEAD, Found, Load, body, find_most, line, run

SHARE = 0.6
ALONE = 50.0
"""Requests a second at which next to none meets another."""
FLAGS = ("--results-mb", "0", "--drain-s", "0")


def engine_us(bundle: Path, requests: Any, k: int) -> tuple[float, float]:
    """Microseconds of a call of the engine with one request, on the server's core: the mean processor time, and the median on
    the clock; the second time through all of them."""
    os.sched_setaffinity(0, SERVER)
    engine = open_bundle(bundle)
    engine.warm_up()
    for _ in range(2):
        took, begin = [], time.process_time()
        for request in requests:
            at = time.perf_counter()
            engine.recommend([request], k)
            took.append(time.perf_counter() - at)
        spent = time.process_time() - begin
    os.sched_setaffinity(0, CLIENT)
    return 1e6 * spent / len(requests), 1e6 * float(np.median(took))


def served_us(server: Started, requests: Any, load: Load) -> tuple[float, Found]:
    """Processor time of the server for each request of a load."""
    before = server.process.cpu_times()
    found = run(server.url, requests, load)
    after = server.process.cpu_times()
    spent = after.user + after.system - before.user - before.system
    return 1e6 * spent / sum(found.statuses.values()), found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("requests", type=Path)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--label", default="", help="in the name of the JSON file")
    parser.add_argument("--p99-ms", type=float, default=5.0)
    parser.add_argument("--rate", type=float, default=200.0, help="to begin with")
    parser.add_argument("--seconds", type=float, default=5.0, help="of a run")
    options = parser.parse_args()
    requests, load = read_requests(options.requests), Load(options.rate, options.seconds)
    engine_cpu, engine_p50 = engine_us(options.bundle, requests, load.k)
    print(HEAD)
    runs = list[Found]()
    with started(str(options.bundle), FLAGS) as server:
        for request in requests:  # once, as the engine was asked them: what is touched first costs more
            send(f"{server.url}/v1/recommend", body(request, load.k))
        http_p50 = 1e3 * run(server.url, requests, Load(ALONE, options.seconds)).ms["50"]
        for found in find_most(server.url, requests, load, options.p99_ms):
            runs.append(found)
            print(line(found), flush=True)
        held = [found for found in runs if found.holds(options.p99_ms)]
        if not held:
            raise SystemExit(f"no rate held p99 <= {options.p99_ms:g} ms; try a lower --rate")
        best = max(held, key=lambda found: found.rate)
        server_cpu, found = served_us(server, requests, Load(SHARE * best.rate, options.seconds))
        memory = server.memory()
    told: dict[str, Any] = {
        "protocol": f"open loop (Poisson), {options.seconds:g} s a run, {load.connections} connections at most, k = {load.k}, "
        "no result cache; server and client a core each, loopback",
        "bundle": read_manifest(options.bundle)["name"],
        "p99_ms": options.p99_ms,
        "most": best.rate,
        "at_most": {"sent_a_second": best.sent_a_second, "ms": best.ms},
        "processor_us": {
            "at": found.rate,
            "server": server_cpu,
            "engine": engine_cpu,
            "serving": server_cpu - engine_cpu,
        },
        "p50_us": {"at": ALONE, "http": http_p50, "engine": engine_p50, "serving": http_p50 - engine_p50},
        "memory": memory,
        "runs": [{"rate": one.rate, "ms": one.ms, "statuses": one.statuses} for one in runs],
    }
    path = save("most", options.label, told)
    print(f"{best.rate:,.0f} requests/s hold p99 <= {options.p99_ms:g} ms")
    print(f"processor us a request: {server_cpu:.0f}, of them the engine {engine_cpu:.0f}")
    print(f"alone, p50 us: {http_p50:.0f} over HTTP, {engine_p50:.0f} the engine")
    print(f"RSS {memory['rss_mb']:.0f} MB, PSS {memory['pss_mb']:.0f} MB", path, sep="\n")


if __name__ == "__main__":
    main()

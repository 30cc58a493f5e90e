"""A server under steady load for minutes or hours: what grows, and does the latency stay where it was. Results are dated JSON.

    python -m benchmarks.soak requests.jsonl bundle/ other/              # ten minutes
    python -m benchmarks.soak requests.jsonl bundle/ other/ --hours 6    # what a release waits for

Recommendations are asked for on a schedule. Meanwhile users do things (`/v1/events`), clients leave in the middle of a request,
bodies are broken, and once a minute the two bundles change places, which every request must survive. Memory (RSS), open files
and threads are sampled between slices of load. Growth is that of the line through the second half, from its start to its end:
the first fills caches. It ends with 1 where something failed or grew by more than `LIMITS`.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from benchmarks.record import save
from benchmarks.started import CLIENT, send, started

from recfit.data.requests import read_requests
from recfit.loadtest import Load, run
from recfit.types import Request

SLICE_S = 10.0
LIMITS: Mapping[str, float] = {"rss_mb": 10.0, "files": 2.0, "threads": 1.0}
"""What may be more at the end of the second half than at its start. Bundles that take turns, of which two are held, differ by
megabytes; a request in flight has a file."""
ANSWERED: Mapping[str, range] = {
    "swaps": range(200, 201),
    "events": range(200, 201),
    "broken bodies": range(400, 500),
}
"""What is sent beside the load, and the statuses that it must be answered with."""
BROKEN = (b"{", b'{"k": -1}', b'{"history": 7}', b"\xff\xfe", b"")


def disturb(
    url: str, requests: Sequence[Request], draws: np.random.Generator, swap: tuple[str, str] | None
) -> Counter[tuple[str, int]]:
    """Another bundle, events of users, clients that leave, bodies that are none; what was sent, by the status it got."""
    found: Counter[tuple[str, int]] = Counter()
    if swap is not None:
        admin, bundle = swap
        body = json.dumps({"bundles": [bundle]}).encode()
        found["swaps", send(f"{admin}/admin/models/default", body, "PUT")] += 1
    for _ in range(20):
        request = requests[draws.integers(len(requests))]
        events = [
            {"user_id": request.user_id or "nobody", "item_id": item} for item in (request.history or ("1",))[-3:]
        ]
        found["events", send(f"{url}/v1/events", json.dumps({"events": events}).encode())] += 1
    for body in BROKEN:
        found["broken bodies", send(f"{url}/v1/recommend", body)] += 1
    host, port = url.removeprefix("http://").split(":")
    for _ in range(20):
        with socket.create_connection((host, int(port))) as leaving:
            leaving.sendall(
                b"POST /v1/recommend HTTP/1.1\r\nhost: x\r\ncontent-length: 17\r\n\r\n" + b'{"user_id": "a1"}'[:17]
            )
    return found


def sample(process: psutil.Process) -> dict[str, float]:
    with process.oneshot():
        return {
            "rss_mb": process.memory_info().rss / 1e6,
            "files": process.num_fds(),
            "threads": process.num_threads(),
        }


def growth(rows: Sequence[Mapping[str, float]], name: str) -> float:
    """By how much the line through the second half rises."""
    half = rows[len(rows) // 2 :]
    if len(half) < 2:
        return 0.0
    hours = [row["hours"] for row in half]
    return float(np.polyfit(hours, [row[name] for row in half], 1)[0]) * (hours[-1] - hours[0])


def faults(grown: Mapping[str, float], statuses: Mapping[str, int], others: Mapping[tuple[str, int], int]) -> list[str]:
    """What was not as it must be: something grew too much, a request failed, one of the `others` got another answer."""
    found = [
        f"{name} grew by {grown[name]:.1f}, more than {most:g}" for name, most in LIMITS.items() if grown[name] > most
    ]
    found += [f"{count} requests: {status}" for status, count in statuses.items() if status != "200"]
    return found + [
        f"{count} {what}: {status or 'no answer'}"
        for (what, status), count in others.items()
        if status not in ANSWERED[what]
    ]


def soak(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    requests, draws = read_requests(options.requests), np.random.default_rng(0)
    rows: list[dict[str, float]] = []
    statuses: Counter[str] = Counter()
    others: Counter[tuple[str, int]] = Counter()
    bundles = [str(Path(path).resolve()) for path in options.bundles]
    flags = ["--events", str(folder / "events.db"), "--drain-s", "0", "--results-mb", "8"]
    with started(bundles[0], flags) as server, ThreadPoolExecutor(1) as beside:
        begin, swaps = time.monotonic(), 0
        while (spent := time.monotonic() - begin) < options.hours * 3600:
            due = spent > 60 * (swaps + 1)
            swaps += due
            swap = (server.admin, bundles[swaps % 2]) if due else None
            disturbing = beside.submit(disturb, server.url, requests, draws, swap)
            load = Load(options.rate, min(SLICE_S, options.hours * 3600), seed=len(rows))
            found = run(server.url, requests, load)
            statuses += Counter(found.statuses)
            others += disturbing.result()
            hours = (time.monotonic() - begin) / 3600
            rows.append({"hours": hours, "p99_ms": found.ms["99"], **sample(server.process)})
            print(" ".join(f"{name} {value:.4g}" for name, value in rows[-1].items()), flush=True)
    grown = {name: growth(rows, name) for name in ("rss_mb", "files", "threads", "p99_ms")}
    return {
        "protocol": f"open loop (Poisson), {options.rate:g} requests/s in slices of {SLICE_S:g} s; server and client a core "
        "each, loopback; passed where requests, swaps and events all got 200, broken bodies 4xx, and no line through the "
        "second half rises by more than its limit",
        "limits": dict(LIMITS),
        "statuses": dict(statuses),
        "other statuses": {f"{what}: {status}": count for (what, status), count in others.items()},
        "swaps": swaps,
        "growth": grown,
        "faults": faults(grown, statuses, others),
        "rows": rows,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("requests", type=Path)
    parser.add_argument("bundles", nargs=2, help="two bundles of the same data that take turns")
    parser.add_argument("--hours", type=float, default=1 / 6)
    parser.add_argument("--rate", type=float, default=300.0)
    options = parser.parse_args()
    os.sched_setaffinity(0, CLIENT)
    with tempfile.TemporaryDirectory() as folder:
        found = soak(options, Path(folder))
    found["path"] = str(save("soak", "", found).name)
    told = ("statuses", "other statuses", "swaps", "growth", "limits", "path")
    print(json.dumps({name: found[name] for name in told}, indent=1))
    if found["faults"]:
        raise SystemExit(f"failed: {'; '.join(found['faults'])}")
    print("passed")


if __name__ == "__main__":
    main()

"""The measured process: opens one bundle, answers commands as JSON lines. Started by `process.Worker`, never imported by it.

It holds nothing but the engine and the requests it replays, so its memory is what a server of the bundle needs.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from recfit.engine import Engine, open_bundle
from recfit.types import Ragged, Request, Rows

UNKNOWN = "\0"  # no id of any data
# Requests before each block, which are not timed: while other bundles had theirs, this one's weights left the cache. The
# first requests of a block pay for that, and of blocks of a hundred they alone are the p99 of a small bundle.
SETTLE = 10


class Bench:
    """The commands. Each returns a JSON-able answer."""

    def __init__(self) -> None:
        self.engine: Engine
        self.requests: list[Request]

    def open(self, bundle: str) -> None:
        """Open the bundle and answer once."""
        self.engine = open_bundle(bundle)
        self.engine.recommend([Request(history=tuple(self.engine.bundle.item_ids[:1]))])

    def load(self, queries: str) -> int:
        """Take the requests of a file of queries; item rows become ids, so that the whole path is measured.

        Rows are those of the data: the bundle may have left some out, whose ids it does not know, and all of the users.
        """
        with np.load(queries) as stored:
            users, history = stored["user"], Ragged(stored["history_indptr"], stored["history_values"])
        bundle = self.engine.bundle
        ids = dict(zip(bundle.item_rows.tolist(), bundle.item_ids, strict=True))
        self.requests = [
            Request(
                bundle.user_ids[user] if bundle.user_ids else None,
                tuple([ids.get(row, UNKNOWN) for row in past.tolist()]),
            )
            for user, past in zip(users.tolist(), history, strict=True)
        ]
        return len(self.requests)

    def warm(self, count: int) -> None:
        """Answer `count` requests, one at a time."""
        for at in range(count):
            self.engine.recommend([self.requests[at % len(self.requests)]])

    def latency(self, start: int, count: int) -> dict[str, Any]:
        """`spans`: milliseconds of `count` requests, one at a time, from the `start`-th on, after `SETTLE` others; `running`:
        the share of that time in which this process had a processor, less than 1 where others took it away."""
        recommend, clock = self.engine.recommend, time.perf_counter_ns
        spans = []
        for at in range(start - SETTLE, start):
            recommend([self.requests[at % len(self.requests)]])
        wall, cpu = time.perf_counter(), time.process_time()
        for at in range(start, start + count):
            request = [self.requests[at % len(self.requests)]]
            begin = clock()
            recommend(request)
            spans.append((clock() - begin) / 1e6)
        return {"spans": spans, "running": (time.process_time() - cpu) / (time.perf_counter() - wall)}

    def under_load(self, rate: float, count: int, seed: int) -> list[float]:
        """Milliseconds from the scheduled arrival to the answer, for Poisson arrivals at `rate` requests a second."""
        gaps = np.random.default_rng(seed).exponential(1 / rate, count)
        due = time.perf_counter() + np.cumsum(gaps)
        spans = []
        for at, scheduled in enumerate(due.tolist()):
            while (wait := scheduled - time.perf_counter()) > 0:
                time.sleep(wait - 1e-3 if wait > 2e-3 else 0)  # a sleep ends late; the last millisecond is spun
            self.engine.recommend([self.requests[at % len(self.requests)]])
            spans.append((time.perf_counter() - scheduled) * 1e3)
        return spans

    def throughput(self, batch: int, seconds: float, part: int, parts: int) -> dict[str, float]:
        """`rate`: requests a second over `seconds`, or one batch where that takes longer; the requests are those of
        `batches_of`, whose first is answered once before: while other bundles had their rounds, this one's weights left
        the cache, and memory for batches of this shape may be new. `running`: as in `latency`."""
        batches = batches_of(self.requests, batch, part, parts)
        self.engine.recommend(batches[0])
        turns, done, spent = cycle(batches), 0, 0.0
        begin, cpu = time.perf_counter(), time.process_time()
        while not done or spent < seconds:
            requests = next(turns)
            self.engine.recommend(requests)
            done += len(requests)
            spent = time.perf_counter() - begin
        return {"rate": done / spent, "running": (time.process_time() - cpu) / spent}

    def memory(self) -> dict[str, float]:
        """Megabytes: the peak resident set so far, and the proportional set now."""
        info = psutil.Process().memory_full_info()
        return {"peak_rss": _peak_rss() / 1e6, "pss": getattr(info, "pss", info.rss) / 1e6}

    def lists(self, start: int, count: int, k: int, output: str) -> dict[str, int]:
        """Recommend for `count` requests; the data's rows [count, k] go to the file `output`, how each was answered is
        counted."""
        bundle = self.engine.bundle
        rows = dict(zip(bundle.item_ids, bundle.item_rows.tolist(), strict=True))
        requests = self.requests[start : start + count]
        found = np.full((len(requests), k), -1, dtype=np.int32)
        sources: Counter[str] = Counter()
        for at, request in enumerate(requests):
            # One at a time, as they are served: the activations of an int8 graph share one scale in a batch.
            [answer] = self.engine.recommend([request], k)
            found[at, : len(answer.items)] = [rows[item] for item in answer.items]
            sources[answer.source] += 1
        np.save(output, found)
        return sources

    def candidates(self, start: int, count: int, k: int, output: str) -> None:
        """What reaches the deciding stage for each of `count` requests: the data's rows [count, widest], -1 pads, go to
        `output`."""
        rows, requests = self.engine.bundle.item_rows, self.requests[start : start + count]
        np.save(output, _padded([rows[self.engine.candidates(request, k)] for request in requests]))

    def exhaustive(self, rows: list[int], k: int, output: str) -> None:
        """The lists of the requests at `rows` if everything reached the deciding stage: the data's rows, -1 pads, go to
        `output`."""
        known = self.engine.bundle.item_rows
        np.save(output, _padded([known[self.engine.exhaustive(self.requests[row], k)] for row in rows]))

    def modules(self) -> list[str]:
        """The top-level modules loaded in this process."""
        return sorted({name.split(".")[0] for name in sys.modules})


def batches_of(requests: Sequence[Request], batch: int, part: int, parts: int) -> list[list[Request]]:
    """Batches of `batch` requests with histories of similar lengths: the `part`-th of `parts` equal shares of the requests
    in the order of their lengths, its middle first, so that the few that a slow bundle has time for speak for the share."""
    ordered = sorted(requests, key=lambda request: len(request.history or ()))
    first, last = (len(ordered) * at // parts for at in (part, part + 1))
    share = ordered[first : max(last, first + 1)]
    batches = [share[at : at + batch] for at in range(0, len(share), batch)]
    middle = (len(batches) - 1) / 2
    return [batches[at] for at in sorted(range(len(batches)), key=lambda at: abs(at - middle))]


def _padded(lists: Sequence[Rows]) -> Rows:
    """int32 [len(lists), the longest], -1 pads."""
    rows = np.full((len(lists), max(map(len, lists), default=0)), -1, dtype=np.int32)
    for line, part in zip(rows, lists, strict=True):
        line[: len(part)] = part
    return rows


def _peak_rss() -> float:
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return float(line.split()[1]) * 1024
    import resource

    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


def main() -> None:
    """Answer commands `{"call": name, "with": {...}}` until the input ends."""
    bench, replies = Bench(), os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints, in Python or in C, must not break the protocol
    for line in sys.stdin:
        command = json.loads(line)
        try:
            method: Callable[..., Any] = getattr(bench, command["call"])
            answer = {"ok": method(**command["with"])}
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=replies, flush=True)


if __name__ == "__main__":
    main()

"""A catalogue of a million items behind the server: requests a second, memory of several workers, what HTTP costs.

    python -m benchmarks.million runs/million      # bundles that are missing there are built first

The items are those of `benchmarks.scan` (d = 64). In front of them is a SASRec of one layer that was never trained: times and
bytes are those of a trained one, quality is not looked at. Histories of 30 events come from the bundle. Server and client have
a core each, loopback, no result cache; memory is that of all processes after the load.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benchmarks.record import save
from benchmarks.scan import DIM, catalogue
from benchmarks.servers.run import Peer, serving
from benchmarks.started import CLIENT

from recfit import models
from recfit.engine import open_bundle
from recfit.export import Surroundings, export
from recfit.loadtest import Load, body, find_most
from recfit.models import Catalogue, as_module
from recfit.pipeline import Pipeline, Stage
from recfit.types import Ragged, Request

USERS, EVENTS = 20_000, 30
EXACT = "int8"
TABLES: Mapping[str, Mapping[str, Any]] = {
    "int8": {},
    "ivf": {"nprobe": 16},
    "pq_scan": {},
}


def build(folder: Path, wanted: Sequence[str]) -> None:
    """The bundles that are missing in `folder`."""
    missing = [name for name in wanted if not (folder / name).is_dir()]
    if not missing:
        return
    vectors, _ = catalogue()
    draws = np.random.default_rng(0)
    torch.manual_seed(0)
    options = {"layers": 1, "embedding_dim": DIM, "heads": 2, "ffn": 128, "max_history": 50}
    model = models.build("sasrec", options, Catalogue(USERS, len(vectors)))
    with torch.no_grad():
        as_module(model).items.weight.copy_(torch.from_numpy(vectors))
    items = draws.zipf(1.3, (USERS, EVENTS)) % len(vectors)
    around = Surroundings(
        user_ids=tuple(f"u{row}" for row in range(USERS)),
        item_ids=tuple(f"i{row}" for row in range(len(vectors))),
        titles=None,
        user_features=None,
        histories=Ragged.from_lists([part.astype(np.int32) for part in items]),
        fallback=np.arange(len(vectors), dtype=np.int32),
    )
    for name in missing:
        stage = Stage(model, table=name, table_options=TABLES[name])
        export(Pipeline(stage), around, folder / name, name=name, recipe={"id": name, "steps": []})
        print(f"{name} built", flush=True)


def bare(path: Path, exact: Path, requests: Sequence[Request]) -> dict[str, float]:
    """Microseconds of a call of the engine in this process, one request at a time, and how many of the ten items that the
    bundle `exact` finds it finds."""
    engine = open_bundle(path)
    engine.warm_up()
    spent, found = [], []
    for request in requests:
        begin = time.perf_counter()
        found.append(set(engine.recommend([request])[0].items))
        spent.append((time.perf_counter() - begin) * 1e6)
    right = open_bundle(exact)
    wanted = [set(right.recommend([request])[0].items) for request in requests]
    recall = float(np.mean([len(one & other) / len(other) for one, other in zip(found, wanted, strict=True)]))
    return {"p50_us": float(np.percentile(spent, 50)), "p99_us": float(np.percentile(spent, 99)), "recall@10": recall}


def most(peer: Peer, folder: Path, requests: Sequence[Request], load: Load, p99_ms: float) -> dict[str, Any]:
    with serving(peer, folder, body(requests[0], load.k)) as server:
        runs = [*find_most(server.url, requests, load, p99_ms)]
        held = [found for found in runs if found.holds(p99_ms)]
        best = max(held, key=lambda found: found.rate, default=None)
        return {
            "most": best.rate if best else 0.0,
            "ms": dict(best.ms) if best else {},
            "p50_alone_ms": runs[0].ms["50"],
            "cold_s": server.cold_s,
            **server.memory(),
        }


def lines(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    yield (
        "| table | recall@10 | workers | most requests/s | p50 ms | p99 ms | engine alone p50 us |"
        " first answer s | RSS MB | PSS MB |"
    )
    yield "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"
    for row in rows:
        rate = f"{row['most']:,.0f} | {row['ms']['50']:.2f} | {row['ms']['99']:.2f}" if row["ms"] else "none | |"
        alone = f"{row['p50_us']:,.0f} | {row['cold_s']:.1f} | {row['rss_mb']:,.0f} | {row['pss_mb']:,.0f}"
        yield f"| {row['table']} | {row['recall@10']:.3f} | {row['workers']} | {rate} | {alone} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where bundles are, or are built")
    parser.add_argument("--tables", nargs="+", choices=TABLES, default=[*TABLES])
    parser.add_argument("--workers", nargs="+", type=int, default=[1, 2, 4], help=f"of all tables but {EXACT}")
    parser.add_argument("--p99-ms", type=float, default=5.0)
    parser.add_argument("--seconds", type=float, default=5.0)
    options = parser.parse_args()
    build(options.folder, list(dict.fromkeys((EXACT, *options.tables))))
    os.sched_setaffinity(0, CLIENT)
    requests = [Request(f"u{row}") for row in np.random.default_rng(1).integers(0, USERS, 5000)]
    rows = []
    for name in options.tables:
        path = options.folder / name
        alone = bare(path, options.folder / EXACT, requests[:1000])
        for workers in [1] if name == EXACT else options.workers:
            events = options.folder / "events.db"
            given = ("--workers", str(workers), "--events", str(events))
            peer = Peer(name, bundle=str(path), given=given)
            found = most(peer, options.folder, requests, Load(100, options.seconds), options.p99_ms)
            rows.append({"table": name, "workers": workers, **alone, **found})
            print([*lines(rows)][-1], flush=True)
    found = {
        "protocol": f"open loop (Poisson), {options.seconds:g} s a run, 64 connections at most, k = 10, users by id; "
        "all workers on one core, client on another, loopback; one thread each; no result cache",
        "p99_ms": options.p99_ms,
        "tables": {name: dict(TABLES[name]) for name in options.tables},
        "rows": rows,
    }
    print(*lines(rows), save("million", "", found), sep="\n")


if __name__ == "__main__":
    main()

"""Bundles under every runtime: latency with 1 and 2 threads, throughput at several batch sizes. Results are dated JSON.

    python benchmarks/runtimes.py runs/study/bundles/ID [TORCH_BUNDLE ...]

A bundle of runtime `ort` is remade for every runtime that takes it; another one is measured as it is, and one of runtime
`torch` under `torch.compile` too. The requests are the users' own histories as the bundle holds them. Latency blocks of all
runtimes are interleaved in one run; `torch.compile` is measured after them, in this process, with one thread.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from recfit import bundle as bundles
from recfit import measure
from recfit.engine import open_bundle
from recfit.measure.machine import machine
from recfit.measure.process import Worker
from recfit.registry import find, names
from recfit.types import Queries, Ragged, Request, Unsupported

RESULTS = Path(__file__).parent / "results"
THREADS = (1, 2)
BATCHES = (1, 8, 32, 128)
PLAN = measure.Plan(requests=1000, blocks=10, retakes=1)


def remade(source: Path, runtime: str, threads: int, directory: Path) -> Path:
    """The bundle at `source` for another runtime and number of threads. Raises `Unsupported`."""
    shutil.copytree(source, directory)
    manifest = bundles.read_manifest(directory)
    manifest["pipeline"]["threads"] = threads
    for name, spec in bundles.open_files(source).stages.items():
        if runtime == spec.runtime:
            continue
        key = runtime if name == "retrieve" else getattr(find("runtimes", runtime), "RESCORER", runtime)
        changed = replace(spec, runtime=key)
        if convert := getattr(find("runtimes", key), "convert", None):
            convert(directory / name, changed)
        manifest["pipeline"][name] = asdict(changed)
    bundles.seal(directory, manifest)
    return directory


def remakes(source: Path, threads: int, folder: Path) -> Iterator[tuple[str, Path]]:
    """Label and bundle for every runtime that takes `source`."""
    own = bundles.open_files(source).stages["retrieve"].runtime
    for runtime in [own, *(name for name in names("runtimes") if own == "ort" and name not in ("ort", "torch"))]:
        try:
            yield runtime, remade(source, runtime, threads, folder / f"{source.name}-{runtime}-{threads}")
        except Unsupported as refused:
            print(f"{source.name} on {runtime}: {refused}", flush=True)


def queries_of(source: Path) -> Queries:
    """The users' own histories as requests."""
    bundle = bundles.open_files(source)
    users = np.flatnonzero(bundle.histories.sizes)[: PLAN.requests]
    targets = Ragged.from_lists([[]] * len(users))
    return Queries(users.astype(np.int32), bundle.histories.take(users), targets)


def measured(paths: Mapping[str, Path], queries: Path) -> list[dict[str, Any]]:
    """One row a runtime, their latency blocks interleaved."""
    spans: dict[str, list[float]] = {label: [] for label in paths}
    with ExitStack() as stack:
        workers = {label: stack.enter_context(Worker(path)) for label, path in paths.items()}
        for worker in workers.values():
            worker.open()
            worker.call("load", queries=str(queries))
            worker.call("warm", count=PLAN.warm)
        for number in range(PLAN.blocks):
            for label, worker in workers.items():
                spans[label] += measure.block(worker, number, PLAN)["spans"]
        rates = {label: {str(batch): _rate(worker, batch) for batch in BATCHES} for label, worker in workers.items()}
    return [_row(label, spans[label], rates[label]) for label in paths]


def _rate(worker: Worker, batch: int) -> float:
    return float(worker.call("throughput", seconds=PLAN.throughput_seconds, batch=batch))


def _row(label: str, spans: Sequence[float], rates: Mapping[str, float]) -> dict[str, Any]:
    p50, p99 = np.percentile(spans, [50, 99]).tolist()
    return {"runtime": label, "p50_ms": p50, "p99_ms": p99, "requests_per_second": dict(rates)}


def compiled(source: Path, queries: Queries) -> dict[str, Any]:
    """The PyTorch bundle at `source` with its encoder under `torch.compile`, one thread."""
    import torch

    engine = open_bundle(source)
    torch.set_num_threads(1)
    model = engine._retrieve._model
    model.encode = torch.compile(model.encode, dynamic=True)
    ids = engine.bundle.item_ids
    requests = [Request(history=tuple(ids[row] for row in past.tolist())) for past in queries.history]
    for request in requests[: PLAN.warm]:
        engine.recommend([request])
    for batch in BATCHES:
        engine.recommend(requests[:batch])
    spans = [_seconds(engine, [request]) * 1e3 for request in requests]
    rates = {}
    for batch in BATCHES:
        parts = [requests[at : at + batch] for at in range(0, len(requests), batch)]
        rates[str(batch)] = len(requests) / sum(_seconds(engine, part) for part in parts)
    return _row("torch.compile", spans, rates)


def _seconds(engine: Any, requests: Sequence[Request]) -> float:
    begin = time.perf_counter()
    engine.recommend(requests)
    return time.perf_counter() - begin


def swept(sources: Sequence[Path], folder: Path) -> Iterator[dict[str, Any]]:
    """Every row of every number of threads."""
    queries = queries_of(sources[0])
    path = measure.save_queries(queries, folder / "queries.npz")
    for threads in THREADS:
        paths = {label: made for source in sources for label, made in remakes(source, threads, folder)}
        rows = measured(paths, path)
        if threads == 1 and "torch" in paths:
            rows.append(compiled(paths["torch"], queries))
        for row in rows:
            yield {"threads": threads, **row}


def line(row: Mapping[str, Any]) -> str:
    """A row as text."""
    rates = " ".join(f"{rate:9.0f}" for rate in row["requests_per_second"].values())
    return f"{row['runtime']:14} {row['threads']:7} {row['p50_ms']:9.3f} {row['p99_ms']:9.3f} {rates}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "bundles", type=Path, nargs="+", help="bundles of the same data, one for each runtime they have"
    )
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = list(swept(given.bundles, Path(folder)))
    heads = " ".join(f"{f'batch {batch}':>9}" for batch in BATCHES)
    print(f"{'runtime':14} {'threads':>7} {'p50 ms':>9} {'p99 ms':>9} {heads}  (requests a second)")
    print(*map(line, rows), sep="\n")
    now, first = datetime.now(UTC), bundles.read_manifest(given.bundles[0])
    record = {
        "benchmark": "runtimes",
        "at": now.isoformat(timespec="seconds"),
        "bundle": first["name"],
        "catalogue": first["catalogue"],
        "latency": f"{PLAN.requests} requests one at a time after {PLAN.warm}, {PLAN.blocks} blocks interleaved",
        "machine": machine(),
        "rows": rows,
    }
    path = RESULTS / f"runtimes-{now:%Y-%m-%d}.json"
    path.write_text(json.dumps(record, indent=1) + "\n")
    print(path)


if __name__ == "__main__":
    main()

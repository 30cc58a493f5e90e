"""Bundles under every runtime: latency with 1 and 2 threads, throughput at several batch sizes. Results are dated JSON.

    python -m benchmarks.runtimes runs/study/bundles/ID [TORCH_BUNDLE ...]

A bundle of runtime `ort` is remade for every runtime that takes it; another one is measured as it is, and one of runtime
`torch` under `torch.compile` too. The requests are the users' own histories as the bundle holds them. Latency blocks of all
runtimes are interleaved in one run; `torch.compile` is measured after them, in this process, with one thread. `cpu ms` is
processor time a request, which other programs on the machine move less than they move the percentiles.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.record import save

from recfit import bundle as bundles
from recfit import measure
from recfit.engine import Engine, open_bundle
from recfit.measure.process import Worker
from recfit.registry import find, names
from recfit.types import Queries, Ragged, Request, Unsupported

THREADS = (1, 2)
BATCHES = (1, 8, 32, 128)
COMPILED = 300
"""Requests that `torch.compile` is asked, twice at every batch size."""
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
    blocks: dict[str, list[dict[str, Any]]] = {label: [] for label in paths}
    with ExitStack() as stack:
        workers = {label: stack.enter_context(Worker(path)) for label, path in paths.items()}
        for worker in workers.values():
            worker.open()
            worker.call("load", queries=str(queries))
            worker.call("warm", count=PLAN.warm)
        for number in range(PLAN.blocks):
            for label, worker in workers.items():
                blocks[label].append(measure.block(worker, number, PLAN))
        rates = {label: {str(batch): _rate(worker, batch) for batch in BATCHES} for label, worker in workers.items()}
    return [_row(label, _spans(blocks[label]), _cpu(blocks[label]), rates[label]) for label in paths]


def _spans(blocks: Sequence[Mapping[str, Any]]) -> list[float]:
    return [span for part in blocks for span in part["spans"]]


def _cpu(blocks: Sequence[Mapping[str, Any]]) -> float:
    """Milliseconds of processor time a request, all threads together."""
    return sum(sum(part["spans"]) * part["running"] for part in blocks) / len(_spans(blocks))


def _rate(worker: Worker, batch: int) -> float:
    return float(worker.call("throughput", seconds=PLAN.throughput_seconds, batch=batch))


def _row(label: str, spans: Sequence[float], cpu: float, rates: Mapping[str, float]) -> dict[str, Any]:
    p50, p99 = np.percentile(spans, [50, 99]).tolist()
    return {"runtime": label, "cpu_ms": cpu, "p50_ms": p50, "p99_ms": p99, "requests_per_second": dict(rates)}


def compiled(source: Path, queries: Queries) -> dict[str, Any]:
    """The PyTorch bundle at `source` with its encoder under `torch.compile`, one thread."""
    import torch

    engine = open_bundle(source)
    torch.set_num_threads(1)
    model = engine._retrieve._model
    model.encode = torch.compile(model.encode, dynamic=True)
    ids = engine.bundle.item_ids
    requests = [Request(history=tuple(ids[row] for row in past.tolist())) for past in queries.history][:COMPILED]
    for batch in BATCHES:  # the first run of a shape compiles
        _pass(engine, requests, batch)
    begin = time.process_time()
    spans = [span * 1e3 for span in _pass(engine, requests, 1)]
    cpu = (time.process_time() - begin) * 1e3 / len(requests)
    rates = {str(batch): len(requests) / sum(_pass(engine, requests, batch)) for batch in BATCHES}
    return _row("torch.compile", spans, cpu, rates)


def _pass(engine: Engine, requests: Sequence[Request], batch: int) -> list[float]:
    """Seconds of every batch of the requests."""
    spans = []
    for at in range(0, len(requests), batch):
        begin = time.perf_counter()
        engine.recommend(requests[at : at + batch])
        spans.append(time.perf_counter() - begin)
    return spans


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
    return (
        f"{row['runtime']:14} {row['threads']:7} {row['cpu_ms']:9.3f} {row['p50_ms']:9.3f} {row['p99_ms']:9.3f} {rates}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "bundles", type=Path, nargs="+", help="bundles of the same data, one for each runtime they have"
    )
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = list(swept(given.bundles, Path(folder)))
    heads = " ".join(f"{f'batch {batch}':>9}" for batch in BATCHES)
    print(f"{'runtime':14} {'threads':>7} {'cpu ms':>9} {'p50 ms':>9} {'p99 ms':>9} {heads}  (requests a second)")
    print(*map(line, rows), sep="\n")
    first = bundles.read_manifest(given.bundles[0])
    found = {
        "bundle": first["name"],
        "catalogue": first["catalogue"],
        "latency": f"{PLAN.requests} requests one at a time after {PLAN.warm}, {PLAN.blocks} blocks interleaved",
        "rows": rows,
    }
    print(save("runtimes", "", found))


if __name__ == "__main__":
    main()

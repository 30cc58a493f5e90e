"""Bundles under every runtime: latency with 1 and 2 threads, throughput at several batch sizes, memory. Results are dated JSON.

    python -m benchmarks.runtimes runs/study/bundles/ID [TORCH_BUNDLE ...] [--threads N ...]

A bundle of runtime `ort` is remade for every runtime that takes it; another one is measured as it is. Each is measured with
the settings that its runtime has beside its threads too: without the arena, spinning (from 2 threads on), compiled, in bf16.
The requests are the users' own histories as the bundle holds them. Latency blocks of all rows with as many threads are
interleaved in one run, in a process each, and so are the rounds of batches, each of requests of similar length. `cpu ms` is
processor time a request, which other programs on the machine move less than they move the percentiles. Memory is what a
process holds after the requests one at a time and after the batches; of pages that several processes map it is a share, so
only rows of one runtime compare.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.record import save

from recfit import bundle as bundles
from recfit import measure
from recfit.measure.process import Worker
from recfit.registry import find, names
from recfit.runtimes import rounds_by_batch
from recfit.types import DataError, Queries, Ragged, Unsupported

THREADS = (1, 2)
SETTINGS = ({}, {"arena": False}, {"spinning": True}, {"compile": True}, {"precision": "bf16"})
"""What a runtime is measured with, where it has such a setting."""
PATIENCE = 1800.0  # seconds that a bundle may take to open: one that compiles
PLAN = measure.Plan(requests=1000, blocks=10, retakes=1, batches=(1, 8, 32, 128), throughput_seconds=2.0)


def remade(source: Path, runtime: str, threads: int, options: Mapping[str, Any], directory: Path) -> Path:
    """The bundle at `source` for another runtime and number of threads, with `options`. Raises `Unsupported`."""
    shutil.copytree(source, directory)
    manifest = bundles.read_manifest(directory)
    manifest["pipeline"]["threads"] = threads
    for name, spec in bundles.open_files(source).stages.items():
        key = runtime if name == "retrieve" else getattr(find("runtimes", runtime), "RESCORER", runtime)
        module, changed = find("runtimes", key), replace(spec, runtime=key, options={**spec.options, **options})
        changed = replace(changed, alone=spec.alone or rounds_by_batch(changed))
        if key != spec.runtime and (convert := getattr(module, "convert", None)):
            convert(directory / name, changed)
        manifest["pipeline"][name] = asdict(changed)
    bundles.seal(directory, manifest)
    return directory


def remakes(source: Path, threads: int, folder: Path) -> Iterator[tuple[str, Path]]:
    """Label and bundle for every runtime that takes `source`."""
    own = bundles.open_files(source).stages["retrieve"].runtime
    for runtime in [own, *(name for name in names("runtimes") if own == "ort" and name not in ("ort", "torch"))]:
        for options in settings_of(runtime, threads):
            label = ", ".join([runtime, *(f"{name}={str(value).lower()}" for name, value in options.items())])
            try:
                yield label, remade(source, runtime, threads, options, folder / f"{source.name}, {label}, {threads}")
            except Unsupported as refused:
                print(f"{source.name} on {label}: {refused}", flush=True)


def settings_of(runtime: str, threads: int) -> Iterator[Mapping[str, Any]]:
    """Those of `SETTINGS` that `runtime` has and that change anything."""
    offered = getattr(find("runtimes", runtime), "OPTIONS", ())
    for options in SETTINGS:
        if options.keys() <= {*offered} and not ("spinning" in options and threads == 1):
            yield options


def queries_of(source: Path) -> Queries:
    """The users' own histories as requests. Raises `DataError` for a bundle without them."""
    bundle = bundles.open_files(source)
    users = np.flatnonzero(bundle.histories.sizes)[: PLAN.requests]
    if not len(users):
        raise DataError(f'{source} holds no histories to ask with; export it with [serve] histories = "bundle"')
    targets = Ragged.from_lists([[]] * len(users))
    return Queries(users.astype(np.int32), bundle.histories.take(users), targets)


def measured(paths: Mapping[str, Path], queries: Path) -> list[dict[str, Any]]:
    """One row a runtime, their latency blocks interleaved."""
    blocks: dict[str, list[dict[str, Any]]] = {label: [] for label in paths}
    with ExitStack() as stack:
        workers = {label: stack.enter_context(Worker(path, PATIENCE)) for label, path in paths.items()}
        for worker in workers.values():
            worker.open()
            worker.call("load", queries=str(queries))
            worker.call("warm", count=PLAN.warm)
        for number in range(PLAN.blocks):
            for label, worker in workers.items():
                blocks[label].append(measure.block(worker, number, PLAN))
        held = {label: [_held(worker)] for label, worker in workers.items()}
        rates = measure.throughput([*workers.values()], PLAN)
        for label, worker in workers.items():
            held[label].append(_held(worker))
    return [_row(label, blocks[label], rate, held[label]) for label, rate in zip(paths, rates, strict=True)]


def _spans(blocks: Sequence[Mapping[str, Any]]) -> list[float]:
    return [span for part in blocks for span in part["spans"]]


def _cpu(blocks: Sequence[Mapping[str, Any]]) -> float:
    """Milliseconds of processor time a request, all threads together."""
    return sum(sum(part["spans"]) * part["running"] for part in blocks) / len(_spans(blocks))


def _held(worker: Worker) -> float:
    """Megabytes."""
    return float(worker.call("memory")["pss"])


def _row(
    label: str, blocks: Sequence[Mapping[str, Any]], rates: Mapping[int, float], held: Sequence[float]
) -> dict[str, Any]:
    p50, p99 = np.percentile(_spans(blocks), [50, 99]).tolist()
    times = {"cpu_ms": _cpu(blocks), "p50_ms": p50, "p99_ms": p99}
    by_batch = {str(batch): rate for batch, rate in rates.items()}
    return {"runtime": label, **times, "requests_per_second": by_batch, "mb": held[0], "mb_after_batches": held[1]}


def swept(sources: Sequence[Path], counts: Sequence[int], folder: Path) -> Iterator[dict[str, Any]]:
    """Every row of every number of threads out of `counts`."""
    queries = queries_of(sources[0])
    path = measure.save_queries(queries, folder / "queries.npz")
    for threads in counts:
        paths = {label: made for source in sources for label, made in remakes(source, threads, folder)}
        for row in measured(paths, path):
            yield {"threads": threads, **row}


def line(row: Mapping[str, Any]) -> str:
    """A row as text."""
    rates = " ".join(f"{rate:9.0f}" for rate in row["requests_per_second"].values())
    times = " ".join(f"{row[name]:9.3f}" for name in ("cpu_ms", "p50_ms", "p99_ms"))
    return f"{row['runtime']:20} {row['threads']:7} {times} {rates} {row['mb']:7.1f} {row['mb_after_batches']:7.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "bundles", type=Path, nargs="+", help="bundles of the same data, one for each runtime they have"
    )
    parser.add_argument("--threads", type=int, nargs="+", default=THREADS, help="numbers of threads (default: 1 2)")
    parser.add_argument("--label", default="", help="a word for the name of the result")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = list(swept(given.bundles, given.threads, Path(folder)))
    heads = " ".join(f"{f'batch {batch}':>9}" for batch in PLAN.batches)
    print(f"{'runtime':20} {'threads':>7} {'cpu ms':>9} {'p50 ms':>9} {'p99 ms':>9} {heads} {'MB':>7} {'after':>7}")
    print(*map(line, rows), sep="\n")
    first = bundles.read_manifest(given.bundles[0])
    found = {
        "bundle": first["name"],
        "catalogue": first["catalogue"],
        "latency": f"{PLAN.requests} requests one at a time after {PLAN.warm}, {PLAN.blocks} blocks interleaved",
        "rows": rows,
    }
    label = [*filter(None, [given.label]), "threads", *map(str, given.threads)]
    print(save("runtimes", "-".join(label), found))


if __name__ == "__main__":
    main()

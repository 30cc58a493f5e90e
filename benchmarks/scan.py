"""The best 10 of a million items: recfit's tables against FAISS, usearch and PyTorch, one thread. Results are dated JSON.

    python -m benchmarks.scan runs/scan        # what is missing there is built first; one peer needs: pip install usearch

The items are those of an ALS model (d = 64) of MovieLens-100K and points between and around them; the queries are the
request vectors of its users. Every contender answers in a process of its own, rounds alternate. `floor` is what the bytes
of a scan take at the memory bandwidth measured in the same run.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.record import save

from recfit.registry import find
from recfit.tables import Searchable
from recfit.topk import best
from recfit.types import FloatArray, IntArray

ITEMS, DIM, K, BATCH = 1_000_000, 64, 10, 32
ROUNDS, SINGLES, BATCHES = 5, 120, 4
NEIGHBOURS, NOISE = 20, 0.3
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")

Find = Callable[[FloatArray], IntArray]
"""Queries [B, d] -> item rows [B, K]."""


@dataclass(frozen=True)
class Contender:
    """`files` is the folder it is built in, which others may share; `reads` the bytes of an item that every query reads."""

    label: str
    files: str
    build: Callable[[FloatArray, Path], None]
    open: Callable[[Path], Find]
    reads: float | None = None


def table(name: str, reads: float | None = None, **settings: Any) -> Contender:
    """A format of recfit; `settings` are those of the search."""
    shown = ", ".join(f"{key}={value}" for key, value in settings.items())
    built = settings | {key: 1 for key in settings if key in ("k_factor", "ef_search", "nprobe")}
    folder = "-".join([name, *(f"{key}{value}" for key, value in built.items() if value != 1)])
    return Contender(
        f"recfit {name} {shown}".strip(), folder, partial(_write, name, built), partial(_open, name, settings), reads
    )


def _write(name: str, settings: Mapping[str, Any], vectors: FloatArray, folder: Path) -> None:
    module = find("tables", name)
    module.write(vectors, folder, module.Config(DIM, **settings))


def _open(name: str, settings: Mapping[str, Any], folder: Path) -> Find:
    module = find("tables", name)
    opened = module.open_table(folder, module.Config(DIM, **settings), 1)
    nothing = np.empty(0, np.int32)

    def search(queries: FloatArray) -> IntArray:
        gone = [nothing] * len(queries)
        found = (
            opened.search(queries, K, gone) if isinstance(opened, Searchable) else best(opened.scores(queries), K, gone)
        )
        return np.stack([rows for rows, _ in found])

    return search


def write_faiss(factory: str, vectors: FloatArray, folder: Path) -> None:
    import faiss

    faiss.omp_set_num_threads(os.cpu_count() or 1)
    folder.mkdir(parents=True)
    index = faiss.index_factory(DIM, factory, faiss.METRIC_INNER_PRODUCT)
    if factory.startswith("HNSW"):
        index.hnsw.efConstruction = 40
    index.train(vectors)
    index.add(vectors)
    faiss.write_index(index, str(folder / "index.faiss"))


def open_faiss(ef: int, folder: Path) -> Find:
    import faiss

    faiss.omp_set_num_threads(1)
    index = faiss.read_index(str(folder / "index.faiss"))
    if ef:
        index.hnsw.efSearch = ef
    return lambda queries: index.search(queries, K)[1]


def write_usearch(vectors: FloatArray, folder: Path) -> None:
    from usearch.index import Index

    folder.mkdir(parents=True)
    index = Index(ndim=DIM, metric="ip", dtype="f32", connectivity=16, expansion_add=40)
    index.add(np.arange(len(vectors)), vectors, threads=os.cpu_count() or 1)
    index.save(str(folder / "index.usearch"))


def open_usearch(ef: int, folder: Path) -> Find:
    from usearch.index import Index

    index = Index.restore(str(folder / "index.usearch"))
    index.expansion_search = ef

    def search(queries: FloatArray) -> IntArray:
        keys = index.search(queries if len(queries) > 1 else queries[0], K, threads=1).keys
        return keys.reshape(len(queries), -1).astype(np.int64)

    return search


def write_torch(vectors: FloatArray, folder: Path) -> None:
    folder.mkdir(parents=True)
    np.save(folder / "rows.npy", vectors)


def open_torch(folder: Path) -> Find:
    import torch

    torch.set_num_threads(1)
    rows = torch.from_numpy(np.load(folder / "rows.npy"))

    def search(queries: FloatArray) -> IntArray:
        with torch.inference_mode():
            return torch.topk(torch.mm(torch.from_numpy(queries), rows.T), K).indices.numpy()

    return search


OURS = [
    table("float32", reads=4 * DIM),
    table("int8", reads=DIM + 4),
    *(table("pq_scan", reads=DIM / 4, k_factor=factor) for factor in (5, 20, 100)),
    table("pq_scan", reads=DIM / 4, k_factor=20, rows="float32"),
    *(table("ivf", nprobe=lists) for lists in (8, 32, 128)),
    *(table("ivf", nprobe=lists, rows="float32") for lists in (128, 256, 512)),
    *(table("hnsw", ef_search=ef) for ef in (32, 128)),
]
PEERS = [
    Contender("torch mm + topk", "torch", write_torch, open_torch, 4 * DIM),
    Contender("FAISS flat", "faiss-flat", partial(write_faiss, "Flat"), partial(open_faiss, 0), 4 * DIM),
    *(
        Contender(
            f"FAISS HNSW16 efSearch={ef}", "faiss-hnsw", partial(write_faiss, "HNSW16,Flat"), partial(open_faiss, ef)
        )
        for ef in (32, 128)
    ),
    *(Contender(f"usearch 16 expansion={ef}", "usearch", write_usearch, partial(open_usearch, ef)) for ef in (32, 128)),
]


def catalogue() -> tuple[FloatArray, FloatArray]:
    """Item vectors [ITEMS, DIM] and queries [users, DIM]: a trained table, points between its neighbours and around them."""
    import torch

    from recfit import config, data, models
    from recfit.data.splits import split

    torch.set_num_threads(1)
    parts = split(data.from_config(config.Data("ml-100k")), "leave_last")
    model: Any = models.build("als", {"embedding_dim": DIM}, models.catalogue_of(parts))
    model.solve(parts)
    with torch.inference_mode():
        rows = model.item_vectors().numpy()
        queries = model.encode(torch.from_numpy(parts.test.history.padded(200))).numpy()
    unit = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-9)
    near = np.argsort(-(unit @ unit.T), axis=1)[:, 1 : NEIGHBOURS + 1]
    draws = np.random.default_rng(0)
    one = draws.integers(0, len(rows), ITEMS - len(rows))
    other = near[one, draws.integers(0, NEIGHBOURS, len(one))]
    share = draws.random((len(one), 1), np.float32)
    added = share * rows[one] + (1 - share) * rows[other]
    spread = np.linalg.norm(added, axis=1, keepdims=True) / np.sqrt(DIM)
    added += NOISE * spread * draws.standard_normal(added.shape, np.float32)
    order = draws.permutation(ITEMS)
    return np.concatenate((rows, added))[order], queries[draws.permutation(len(queries))].copy()


def prepared(folder: Path, contenders: Sequence[Contender]) -> FloatArray:
    """Everything that is built, once; returns the queries."""
    if not (folder / "exact.npy").exists():
        folder.mkdir(parents=True, exist_ok=True)
        vectors, queries = catalogue()
        np.save(folder / "items.npy", vectors)
        np.save(folder / "queries.npy", queries)
        exact = [best(query[None] @ vectors.T, K, [np.empty(0, np.int32)])[0][0] for query in queries]
        np.save(folder / "exact.npy", np.stack(exact))
    vectors = np.load(folder / "items.npy")
    for contender in contenders:
        if not (folder / contender.files / "built").exists():
            begin = time.monotonic()
            contender.build(vectors, folder / contender.files)
            (folder / contender.files / "built").write_text(f"{time.monotonic() - begin:.1f}")
            print(f"built {contender.files} in {time.monotonic() - begin:.0f} s", flush=True)
    queries: FloatArray = np.load(folder / "queries.npy")
    return queries


def serve(open_it: Callable[[Path], Find], folder: Path, pipe: Any) -> None:
    """A contender's process: rows and milliseconds for queries that it is sent; None ends it, answered by its memory."""
    search = open_it(folder)
    while (queries := pipe.recv()) is not None:
        begin = time.perf_counter()
        rows = search(queries)
        pipe.send((rows, (time.perf_counter() - begin) * 1e3))
    status = Path("/proc/self/status").read_text()
    pipe.send({key: float(status.split(f"{key}:")[1].split()[0]) / 1e3 for key in ("VmHWM", "VmRSS")})


@dataclass
class Running:
    """A contender's process, and what it has answered."""

    contender: Contender
    folder: Path
    singles: list[float] = field(default_factory=list)
    batches: list[float] = field(default_factory=list)
    found: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, other = context.Pipe()
        self._process = context.Process(target=serve, args=(self.contender.open, self.folder, other))
        self._process.start()

    def ask(self, queries: FloatArray) -> tuple[IntArray, float]:
        self._pipe.send(queries)
        answer: tuple[IntArray, float] = self._pipe.recv()
        return answer

    def round(self, queries: FloatArray, exact: IntArray) -> None:
        for query, wanted in zip(queries[:SINGLES], exact, strict=False):
            rows, ms = self.ask(query[None])
            self.singles.append(ms)
            self.found.append(np.isin(wanted, rows[0]).mean())
        for at in range(BATCHES):
            part = queries[at * BATCH : (at + 1) * BATCH]
            self.batches.append(self.ask(part)[1] / len(part))

    def row(self, bandwidth: float) -> dict[str, Any]:
        self._pipe.send(None)
        memory = self._pipe.recv()
        self._process.join()
        files = [path for path in self.folder.rglob("*") if path.is_file() and path.name != "built"]
        size, reads = sum(path.stat().st_size for path in files), self.contender.reads
        return {
            "contender": self.contender.label,
            "p50_ms": float(np.median(self.singles)),
            "p99_ms": float(np.percentile(self.singles, 99)),
            "floor_ms": None if reads is None else reads * ITEMS / bandwidth * 1e3,
            "qps_batch": 1e3 / float(np.median(self.batches)),
            "recall": float(np.mean(self.found)),
            "bytes_an_item": size / ITEMS,
            "peak_mb": memory["VmHWM"],
            "rss_mb": memory["VmRSS"],
            "built_s": float((self.folder / "built").read_text()),
        }


def bandwidth() -> float:
    """Bytes a second that one thread reads: the largest of 512 MB of numbers, the best of 7."""
    numbers, spans = np.zeros(128 * 2**20, np.float32), []
    for _ in range(7):
        begin = time.perf_counter()
        numbers.max()
        spans.append(time.perf_counter() - begin)
    return numbers.nbytes / min(spans)


def lines(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    heads = (
        "",
        "p50 ms",
        "p99 ms",
        "floor ms",
        f"queries/s (batch {BATCH})",
        f"recall@{K}",
        "bytes an item",
        "resident MB",
    )
    table = [f"| {' | '.join(heads)} |", "| --- " + "| ---: " * (len(heads) - 1) + "|"]
    for row in rows:
        floor = "" if row["floor_ms"] is None else f"{row['floor_ms']:.2f}"
        numbers = f"{row['p50_ms']:.3f} | {row['p99_ms']:.3f} | {floor} | {row['qps_batch']:,.0f} | {row['recall']:.3f}"
        table.append(f"| {row['contender']} | {numbers} | {row['bytes_an_item']:.0f} | {row['rss_mb']:,.0f} |")
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where items, queries and indexes are kept between runs (3 GB)")
    parser.add_argument(
        "--only", default="", help="contenders whose label holds this text; the result is named after it"
    )
    parser.add_argument("--build", action="store_true", help="build what is missing and stop")
    given = parser.parse_args()
    os.environ.update(dict.fromkeys(THREADS, "1"))
    contenders = [one for one in (*OURS, *PEERS) if given.only in one.label]
    queries, exact = prepared(given.folder, contenders), np.load(given.folder / "exact.npy")
    if given.build:
        return
    speeds = [bandwidth()]
    running = [Running(one, given.folder / one.files) for one in contenders]
    for one in running:  # warm, and one after another
        one.ask(queries[:1])
        one.ask(queries[:BATCH])
    for number in range(ROUNDS):
        shift = -number * SINGLES
        for one in running:
            one.round(np.roll(queries, shift, axis=0), np.roll(exact, shift, axis=0))
    speeds.append(bandwidth())
    rows = [one.row(max(speeds)) for one in running]
    print(*lines(rows), f"memory bandwidth, one thread: {max(speeds) / 1e9:.1f} GB/s", sep="\n")
    found = {
        "protocol": f"{ITEMS:,} items, d = {DIM}, k = {K}, inner product, 1 thread; {ROUNDS} interleaved rounds of {SINGLES} "
        f"queries one at a time and {BATCHES} batches of {BATCH}; one process a contender",
        "bandwidth_gb_s": [speed / 1e9 for speed in speeds],
        "rows": rows,
    }
    print(save("scan", given.only, found))


if __name__ == "__main__":
    main()

"""Quality, latency and memory of a bundle, read off a fresh process that runs the serving engine. The only clock."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from recfit import bundle as bundles
from recfit.measure import quality
from recfit.measure.machine import machine
from recfit.measure.process import Worker
from recfit.measure.statistics import interval, percentile_interval
from recfit.types import IntArray, Queries

Samples = npt.NDArray[np.float64]
LIST_LENGTH = 10
MIN_REQUESTS = 1000


@dataclass(frozen=True)
class Plan:
    """How to measure. `requests` behind the percentiles, in `blocks` that alternate between bundles;
    `rate` (requests a second) adds an open-loop run; `batch` is the batch size of the throughput run."""

    requests: int = 1500
    blocks: int = 5
    warm: int = 200
    rate: float | None = None
    batch: int = 32
    throughput_seconds: float = 0.5


@dataclass(frozen=True)
class Measurement:
    """Metric -> value, with 95 % intervals where there is one, the per-user quality values and the protocol."""

    metrics: Mapping[str, float]
    intervals: Mapping[str, tuple[float, float]]
    users: Mapping[str, Samples] = field(repr=False)
    protocol: Mapping[str, Any]


def save_queries(queries: Queries, path: Path) -> Path:
    """Store requests for the measured processes (no targets: what is measured never sees the answers)."""
    np.savez(path, user=queries.user, history_indptr=queries.history.indptr, history_values=queries.history.values)
    return path


def latency(bundle_paths: Sequence[Path], queries: Queries, plan: Plan) -> list[dict[str, Any]]:
    """Size, load time, latency, memory and throughput of bundles, their latency blocks interleaved A/B/A/B in one run."""
    with tempfile.TemporaryDirectory() as folder:
        path = str(save_queries(queries, Path(folder) / "queries.npz"))
        workers = [Worker(bundle) for bundle in bundle_paths]
        try:
            return _latency(workers, path, plan)
        finally:
            for worker in workers:
                worker.stop()


def _latency(workers: Sequence[Worker], queries: str, plan: Plan) -> list[dict[str, Any]]:
    opened = [worker.call("open", bundle=str(worker.bundle)) for worker in workers]
    for worker in workers:
        worker.call("load", queries=queries)
        worker.call("warm", count=plan.warm)
    spans: list[list[float]] = [[] for _ in workers]
    size = -(-plan.requests // plan.blocks)
    for block in range(plan.blocks):
        for worker, taken in zip(workers, spans, strict=True):
            taken += worker.call("latency", start=block * size, count=size)
    found = []
    for worker, taken, start in zip(workers, spans, opened, strict=True):
        memory = worker.call("memory")
        values = {
            **start,
            **_percentiles(np.array(taken), ""),
            "memory_mb": memory["peak_rss"],
            "pss_mb": memory["pss"],
        }
        values["bundle_mb"] = (
            sum(part["bytes"] for part in bundles.read_manifest(worker.bundle)["files"].values()) / 1e6
        )
        if plan.rate is not None:
            loaded = worker.call("under_load", rate=plan.rate, count=plan.requests, seed=0)
            values |= _percentiles(np.array(loaded), "_loaded")
        values["qps"] = worker.call("throughput", seconds=plan.throughput_seconds, batch=plan.batch)
        tail = percentile_interval(np.array(taken), 99)
        found.append({"metrics": values, "intervals": {"p99_ms": (tail.low, tail.high)}})
    return found


def _percentiles(samples: Samples, suffix: str) -> dict[str, float]:
    return {f"p{q}{suffix}_ms": float(np.percentile(samples, q)) for q in (50, 95, 99)}


def lists(bundle: Path, queries: Queries, k: int = LIST_LENGTH) -> tuple[IntArray, dict[str, int]]:
    """What a fresh process recommends: item rows [q, k], -1 pads; and how many answers came from where."""
    with tempfile.TemporaryDirectory() as folder, Worker(bundle) as worker:
        path = save_queries(queries, Path(folder) / "queries.npz")
        worker.call("open", bundle=str(bundle))
        worker.call("load", queries=str(path))
        output = Path(folder) / "lists.npy"
        sources = worker.call("lists", k=k, output=str(output))
        return np.load(output), sources


def users_quality(
    bundle: Path, queries: Queries, popularity: IntArray, metrics: Sequence[str] = quality.METRICS
) -> tuple[dict[str, Samples], dict[str, float]]:
    """Per-user quality values, and the list statistics (coverage, popularity, share answered from the cache)."""
    k = max(quality.parse(metric)[1] for metric in metrics)
    found, sources = lists(bundle, queries, max(k, LIST_LENGTH))
    per_user = quality.by_user(quality.per_query(found, queries.targets, metrics), queries.user)
    extra = quality.beyond_accuracy(found, len(popularity), popularity)
    return per_user, {**extra, "cache_share": sources.get("cache", 0) / max(1, len(queries))}


def measure(
    bundle: Path,
    queries: Queries,
    popularity: IntArray,
    plan: Plan | None = None,
    metrics: Sequence[str] = quality.METRICS,
) -> Measurement:
    """Everything about one bundle, on `queries`. `popularity` counts the training events of every item."""
    plan = plan or Plan()
    cost = latency([bundle], queries, plan)[0]
    users, extra = users_quality(bundle, queries, popularity, metrics)
    return combine(bundle, cost, users, extra, queries, plan)


def combine(
    bundle: Path,
    cost: Mapping[str, Any],
    users: Mapping[str, Samples],
    extra: Mapping[str, float],
    queries: Queries,
    plan: Plan,
) -> Measurement:
    """One `Measurement` out of a latency run and a quality run of the same bundle."""
    means = {metric: interval(values) for metric, values in users.items()}
    return Measurement(
        metrics={**{metric: found.mean for metric, found in means.items()}, **extra, **cost["metrics"]},
        intervals={**{metric: (found.low, found.high) for metric, found in means.items()}, **cost["intervals"]},
        users=users,
        protocol=protocol(bundle, queries, plan),
    )


def protocol(bundle: Path, queries: Queries, plan: Plan) -> dict[str, Any]:
    """What stands beside the numbers: load, threads, counts, machine."""
    pipeline = bundles.read_manifest(bundle)["pipeline"]
    return {
        "ranking": "full catalogue, seen items removed, ties to the lower row",
        "queries": len(queries),
        "users": len(np.unique(queries.user)),
        "latency": f"{plan.requests} requests one at a time after {plan.warm} to warm up, {plan.blocks} blocks",
        "rate": plan.rate,
        "throughput_batch": plan.batch,
        "memory": "peak resident set of the process after the latency run",
        "runtime": pipeline["retrieve"]["runtime"],
        "threads": pipeline["threads"],
        "machine": machine(),
    }

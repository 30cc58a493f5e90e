"""Quality, latency and memory of a bundle, read off a fresh process that runs the serving engine. The only clock."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from statistics import harmonic_mean
from typing import Any

import numpy as np
import numpy.typing as npt

from recfit import bundle as bundles
from recfit.measure import quality
from recfit.measure.machine import machine
from recfit.measure.process import Worker
from recfit.measure.statistics import Interval, interval, percentile_interval
from recfit.registry import find
from recfit.types import IntArray, Queries

Samples = npt.NDArray[np.float64]
LIST_LENGTH = 10
# Share of a block's time that its process must have been running to count as undisturbed.
UNDISTURBED = 0.97
# Lists asked for in one call: a slow bundle may take long for all, not for these.
PART = 250
# Requests that the deciding stage answers over all items, to see what it missed; a ranker takes long for each.
EXACT = 200
# Rounds of a throughput run, each with requests of another length: short, middling and long histories.
LENGTHS = 3


@dataclass(frozen=True)
class Plan:
    """How to measure. `requests` behind the percentiles, in `blocks` that alternate between bundles; a block in which
    other processes took the processor away is taken again, `retakes` times at most. `rate` (requests a second) adds an
    open-loop run. `batches` are the sizes that share the `throughput_seconds` of a bundle; without any, throughput is not
    measured."""

    requests: int = 1500
    blocks: int = 15
    retakes: int = 3
    warm: int = 200
    rate: float | None = None
    batches: tuple[int, ...] = (1, 8, 32)
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
    """Size, load time, latency, memory and throughput of bundles, their blocks interleaved A/B/A/B in one run.

    A random sample of the queries is replayed, the same for every bundle.
    """
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        path = save_queries(_replayed(queries, plan), Path(folder) / "queries.npz")
        # One after another: processes that start side by side slow each other down.
        started = [_started(stack.enter_context(Worker(bundle)), path, plan) for bundle in bundle_paths]
        blocks: list[list[dict[str, Any]]] = [[] for _ in started]
        for number in range(plan.blocks):
            for (worker, _), taken in zip(started, blocks, strict=True):
                taken.append(block(worker, number, plan))
        costs = [_costs(*start, taken, plan) for start, taken in zip(started, blocks, strict=True)]
        if plan.batches:  # last: batches take memory that requests alone don't
            for cost, rates in zip(costs, throughput([worker for worker, _ in started], plan), strict=True):
                best = max(rates, key=lambda batch: rates[batch])
                cost["metrics"] |= {"qps": rates[best], "qps_batch": best}
        return costs


def throughput(workers: Sequence[Worker], plan: Plan) -> list[dict[int, float]]:
    """Requests a second of bundles, by batch size, taken in rounds of all of them, each after a batch that is not timed.

    A runtime that pads, or that runs the requests of a batch one by one, should not be judged by one size; and work that
    nobody waits for is sorted, so a batch has requests with histories of similar length. Every round has other lengths, as
    many requests of each: the mean of the times of a request is that of all, however few of them a slow bundle got to.
    """
    seconds = plan.throughput_seconds / (LENGTHS * len(plan.batches))
    rates: list[dict[int, list[float]]] = [{batch: [] for batch in plan.batches} for _ in workers]
    for part in range(LENGTHS):
        for batch in plan.batches:
            for worker, found in zip(workers, rates, strict=True):
                of = {"batch": batch, "seconds": seconds, "part": part, "parts": LENGTHS}
                found[batch].append(_undisturbed(worker, plan, "throughput", **of)["rate"])
    return [{batch: harmonic_mean(taken) for batch, taken in found.items()} for found in rates]


def block(worker: Worker, number: int, plan: Plan) -> dict[str, Any]:
    """One block of requests, the least disturbed of its takes."""
    size = -(-plan.requests // plan.blocks)
    return _undisturbed(worker, plan, "latency", start=number * size, count=size)


def _undisturbed(worker: Worker, plan: Plan, name: str, **arguments: Any) -> dict[str, Any]:
    """The worker's answer to `name`, the least disturbed of its takes."""
    best: dict[str, Any] = {"running": 0.0}
    for _ in range(1 + plan.retakes):
        taken = worker.call(name, **arguments)
        best = max(best, taken, key=lambda part: float(part["running"]))
        if best["running"] >= UNDISTURBED:
            break
    return best


def _replayed(queries: Queries, plan: Plan) -> Queries:
    """No more than are replayed: what the process holds counts as its memory."""
    return queries.take(np.random.default_rng(0).permutation(len(queries))[: plan.requests])


def _started(worker: Worker, queries: Path, plan: Plan) -> tuple[Worker, float]:
    """The worker, warm, and the seconds it took from its start to its first answer."""
    seconds = worker.open()
    worker.call("load", queries=str(queries))
    worker.call("warm", count=plan.warm)
    return worker, seconds


def _costs(worker: Worker, load_s: float, blocks: Sequence[Mapping[str, Any]], plan: Plan) -> dict[str, Any]:
    """Metrics and intervals of one bundle, after its latency run."""
    spans = np.concatenate([part["spans"] for part in blocks])
    memory = worker.call("memory")
    size = sum(part["bytes"] for part in bundles.read_manifest(worker.bundle)["files"].values())
    tails = _percentiles(spans, "_ms")
    if plan.rate is not None:
        loaded = worker.call("under_load", takes=plan.requests / plan.rate, rate=plan.rate, count=plan.requests, seed=0)
        tails |= _percentiles(np.array(loaded), "_loaded_ms")
    values = {
        "load_s": load_s,
        "memory_mb": memory["peak_rss"],
        "pss_mb": memory["pss"],
        "bundle_mb": size / 1e6,
        "disturbed": float(np.mean([part["running"] < UNDISTURBED for part in blocks])),
    }
    return {
        "metrics": values | {name: found.mean for name, found in tails.items()},
        "intervals": {name: (found.low, found.high) for name, found in tails.items()},
    }


def _percentiles(samples: Samples, suffix: str) -> dict[str, Interval]:
    return {f"p{q}{suffix}": percentile_interval(samples, q) for q in (50, 95, 99)}


def lists(bundle: Path, queries: Queries, k: int = LIST_LENGTH) -> tuple[IntArray, dict[str, int]]:
    """What a fresh process recommends: item rows [q, k], -1 pads; and how many answers came from where."""
    parts, sources = [], Counter[str]()
    with tempfile.TemporaryDirectory() as folder, Worker(bundle) as worker:
        path, output = save_queries(queries, Path(folder) / "queries.npz"), Path(folder) / "lists.npy"
        worker.open()
        worker.call("load", queries=str(path))
        for start in range(0, len(queries), PART):
            sources.update(worker.call("lists", start=start, count=PART, k=k, output=str(output)))
            parts.append(np.load(output))
    return np.concatenate(parts), dict(sources)


def stage_one(bundle: Path, queries: Queries, k: int = LIST_LENGTH) -> dict[str, float]:
    """`recall_of_stage_one`: which share of the targets reaches the second stage, where there is one;
    `overlap_with_exact`: which share of the list of `k` that the deciding stage would give if every item reached it is
    served, on `EXACT` requests at random. Nothing for a bundle that scores every item."""
    if not _leaves_out(bundle):
        return {}
    sample = np.sort(np.random.default_rng(0).permutation(len(queries))[:EXACT])
    with tempfile.TemporaryDirectory() as folder, Worker(bundle) as worker:
        path, output = save_queries(queries, Path(folder) / "queries.npz"), Path(folder) / "rows.npy"
        worker.open()
        worker.call("load", queries=str(path))
        found = []
        for start in range(0, len(queries), PART):
            worker.call("candidates", start=start, count=PART, k=k, output=str(output))
            found += [*np.load(output)]
        worker.call("exhaustive", rows=sample.tolist(), k=k, output=str(output))
        exact = np.load(output)
    shares = {"overlap_with_exact": quality.share_found([found[row] for row in sample], exact)}
    if bundles.read_manifest(bundle)["pipeline"]["rank"] is not None:
        shares["recall_of_stage_one"] = quality.share_found(found, queries.targets)
    return shares


def _leaves_out(bundle: Path) -> bool:
    """Whether there are items that the deciding stage never scores."""
    stages = bundles.read_manifest(bundle)["pipeline"]
    form = stages["retrieve"]["table"].get("format")
    return stages["rank"] is not None or (form is not None and getattr(find("tables", form), "APPROXIMATE", False))


def users_quality(
    bundle: Path, queries: Queries, popularity: IntArray, metrics: Sequence[str] = quality.METRICS
) -> tuple[dict[str, Samples], dict[str, float]]:
    """Per-user quality values; list statistics (coverage, popularity, shares answered by cache and fallback), and what a
    first stage or an index leaves out."""
    k = max(quality.parse(metric)[1] for metric in metrics)
    found, sources = lists(bundle, queries, max(k, LIST_LENGTH))
    per_user = quality.by_user(quality.per_query(found, queries.targets, metrics), queries.user)
    extra = quality.beyond_accuracy(found, len(popularity), popularity)
    shares = {f"{source}_share": sources.get(source, 0) / len(queries) for source in ("cache", "fallback")}
    return per_user, extra | shares | stage_one(bundle, queries)


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
        "latency": f"{plan.requests} requests one at a time after {plan.warm} to warm up, in {plan.blocks} blocks, each after "
        "a few that are not timed (blocks in which other processes took the processor are taken again, up to "
        f"{plan.retakes} times), replaying {min(plan.requests, len(queries))} random queries",
        "load": "from the start of the process to its first answer, once",
        "rate": plan.rate,
        "throughput": _throughput_text(plan) if plan.batches else None,
        "memory": "peak resident set of the process after the latency run; the replayed requests are part of it",
        "runtime": pipeline["retrieve"]["runtime"],
        "threads": pipeline["threads"],
        "machine": machine(),
    }


def _throughput_text(plan: Plan) -> str:
    return (
        f"the most of batches of {', '.join(map(str, plan.batches))} (qps_batch: which), each in {LENGTHS} rounds of all "
        "bundles of the run, each after a batch that is not timed; requests sorted by the length of their histories, a round "
        "has a share of the lengths (disturbed ones are taken again like blocks)"
    )

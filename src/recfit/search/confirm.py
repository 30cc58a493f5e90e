"""The fastest of many noisy measurements is partly the luckiest. It is measured once more, in one run with the original,
before it is delivered, and so is the best in the objective that it is tied with; what does not hold then makes way for the
next."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from recfit import bundle as bundles
from recfit import measure
from recfit.search.bench import Bench
from recfit.search.build import Job, build
from recfit.search.isolate import PATIENCE, isolated
from recfit.search.select import Choice, choose
from recfit.search.study import Candidate
from recfit.selecting import line

ROUNDS = 5
TIMES = ("p50_ms", "p95_ms", "p99_ms")


def confirmed(bench: Bench) -> Choice:
    """The choice, once its times were taken beside the original's; after `ROUNDS` of others, the best that is known."""
    study = bench.study
    for _ in range(ROUNDS):
        waiting = _waiting(bench)
        if not waiting:
            break
        for again in _measured(bench, waiting):
            study.add(again, study.measured(again).users)
            bench.say(f"again, beside the original: {line(again, bench.budget)}")
    return choose(study, bench.budget)


def _waiting(bench: Bench) -> list[Candidate]:
    """What the choice rests on and was not taken again: itself and, where times are the objective, the best in it. That one
    says who is tied with it, and if it was lucky nobody is."""
    choice = choose(bench.study, bench.budget)
    timed = bench.budget.objective in ("latency", "cost")
    rests = {one.id: one for one in (choice.leader if timed else None, choice.chosen) if one is not None}
    original = bench.study.facts["original"]
    return [one for one in rests.values() if "confirmed" not in one.protocol and one.id != original]


def _measured(bench: Bench, some: Sequence[Candidate]) -> list[Candidate]:
    """`some` with times from one run with the original, on the scale that the study measured the original with."""
    begin = time.monotonic()
    original = bench.study.candidates[bench.study.facts["original"]]
    bundles = [_bundle(bench, part) for part in (*some, original)]
    *costs, base = measure.latency(bundles, bench.split.validation, bench.plan)
    seconds = round((time.monotonic() - begin) / len(some), 2)
    pace = original.metrics["p50_ms"] / base["metrics"]["p50_ms"]
    rated = "qps" in original.metrics
    return [_again(found, now, pace, rated, seconds) for found, now in zip(some, costs, strict=True)]


def _again(found: Candidate, now: Mapping[str, Any], pace: float, rated: bool, seconds: float) -> Candidate:
    """`found` with the times of `now`, by the pace of the machine then: that of the original's median, since a busy moment that
    hits its tail would make any other look fast. With the rate too, unless there is none to compare it with (`rated`; rows
    of older studies have none)."""
    metrics = {name: now["metrics"][name] * pace for name in TIMES}
    spans = {name: tuple(end * pace for end in now["intervals"][name]) for name in TIMES}
    if rated and "qps" in found.metrics:
        qps = now["metrics"]["qps"] / pace
        hours = found.metrics["core_hours_per_million"] * found.metrics["qps"] / qps
        metrics |= {"qps": qps, "qps_batch": now["metrics"]["qps_batch"], "core_hours_per_million": hours}
    return replace(
        found,
        metrics={**found.metrics, **metrics},
        intervals={**found.intervals, **spans},
        protocol={**found.protocol, "confirmed": "times taken again, blocks interleaved with the original's"},
        seconds={**found.seconds, "confirm": seconds},
    )


def _bundle(bench: Bench, found: Candidate) -> Path:
    """The candidate's bundle, built again where it was deleted, is of another format, or has lists, which may have expired."""
    path = bench.study.path("bundles", found.id)
    if not bundles.is_readable(path) or any(step["technique"] == "cache" for step in found.recipe):
        job = Job(found.recipe, path)
        isolated(build, bench.workshop, job, memory_gb=bench.settings.search.memory_gb, seconds=PATIENCE)
    return path

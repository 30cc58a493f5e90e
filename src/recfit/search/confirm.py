"""The fastest of many noisy measurements is partly the luckiest. It is measured once more, in one run with the original,
before it is delivered; what does not hold then makes way for the next."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

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
    """The choice, once its times were taken beside the original's; after `ROUNDS` others, the best that is known."""
    study = bench.study
    for _ in range(ROUNDS):
        found = choose(study, bench.budget).chosen
        if found is None or "confirmed" in found.protocol or found.id == study.facts["original"]:
            break
        again = _measured(bench, found)
        study.add(again, study.measured(found).users)
        bench.say(f"again, beside the original: {line(again, bench.budget)}")
    return choose(study, bench.budget)


def _measured(bench: Bench, found: Candidate) -> Candidate:
    """`found` with times from one run with the original, on the scale that the study measured the original with."""
    begin = time.monotonic()
    original = bench.study.candidates[bench.study.facts["original"]]
    pair = [_bundle(bench, part) for part in (found, original)]
    now, base = measure.latency(pair, bench.split.validation, bench.plan)
    scale = {name: original.metrics[name] / base["metrics"][name] for name in (*TIMES, "qps")}
    qps = now["metrics"]["qps"] * scale["qps"]
    rate = {
        "qps": qps,
        "qps_batch": now["metrics"]["qps_batch"],
        "core_hours_per_million": found.metrics["core_hours_per_million"] * found.metrics["qps"] / qps,
    }
    times = {name: now["metrics"][name] * scale[name] for name in TIMES}
    spans = {name: tuple(end * scale[name] for end in now["intervals"][name]) for name in TIMES}
    return replace(
        found,
        metrics={**found.metrics, **times, **rate},
        intervals={**found.intervals, **spans},
        protocol={**found.protocol, "confirmed": "times taken again, blocks interleaved with the original's"},
        seconds={**found.seconds, "confirm": round(time.monotonic() - begin, 2)},
    )


def _bundle(bench: Bench, found: Candidate) -> Path:
    """The candidate's bundle, built again where it was deleted, or where it has lists, which may have expired."""
    path = bench.study.path("bundles", found.id)
    if not path.exists() or any(step["technique"] == "cache" for step in found.recipe):
        job = Job(found.recipe, path)
        isolated(build, bench.workshop, job, memory_gb=bench.settings.search.memory_gb, seconds=PATIENCE)
    return path

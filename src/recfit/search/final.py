"""The last measurement: the choice and both originals, fresh bundles, test requests, latency blocks interleaved."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from recfit import bundle as bundles
from recfit import measure
from recfit.data.requests import write_queries
from recfit.measure import Measurement
from recfit.measure.statistics import paired
from recfit.search.bench import Bench
from recfit.search.budget import COSTS, Budget, Measured
from recfit.search.build import Job, build
from recfit.search.evaluate import core_hours
from recfit.search.isolate import PATIENCE, isolated
from recfit.search.study import Candidate

SAID = {
    "p99_ms": ("lower p99", "higher p99"),
    "memory_mb": ("less memory", "the memory"),
    "bundle_mb": ("smaller on disk", "larger on disk"),
}


def deliver(bench: Bench, chosen: Candidate) -> None:
    """Measure on the test split, once; write the promise into the chosen bundle and put it at `bundle/` of the study."""
    study = bench.study
    ids = {"A": study.facts["eager"], "B": study.facts["original"], "chosen": chosen.id}
    budget = asdict(bench.settings.budget)
    before = study.facts.get("final", {})
    if (before.get("ids"), before.get("budget")) == (ids, budget) and _delivered(bench) == chosen.id:
        return
    bench.say("final: measuring the choice and the original again, on the test requests")
    found = _measured(bench, ids)
    final = {**summary(ids, found, bench.budget), "budget": budget}
    winner = study.path("final", "chosen")
    bundles.promise(winner, {**final["rows"]["chosen"], "protocol": dict(found["chosen"].protocol)})
    shutil.rmtree(study.path("bundle"), ignore_errors=True)
    shutil.copytree(winner, study.path("bundle"))
    _write_test(bench)
    study.note(final=final)


def _delivered(bench: Bench) -> str | None:
    """The id of the recipe whose bundle lies at `bundle/` of the study; None for one that this recfit does not read."""
    path = bench.study.path("bundle")
    return str(bundles.read_manifest(path)["recipe"]["id"]) if bundles.is_readable(path) else None


def _measured(bench: Bench, ids: Mapping[str, str]) -> dict[str, Measurement]:
    study, split = bench.study, bench.split
    for label, id in ids.items():
        job = Job(study.candidates[id].recipe, study.path("final", label), final=True)
        isolated(build, bench.workshop, job, memory_gb=bench.settings.search.memory_gb, seconds=PATIENCE)
    paths = {label: study.path("final", label) for label in ids}
    costs = measure.latency(list(paths.values()), split.test, bench.plan)
    metrics, found = bench.gates().metrics, {}
    for (label, path), cost in zip(paths.items(), costs, strict=True):
        users, extra = measure.users_quality(path, split.test, bench.popularity, metrics)
        found[label] = measure.combine(path, cost, users, extra, split.test, bench.plan)
    return found


def _verdicts(chosen: Measurement, base: Measurement, budget: Budget) -> dict[str, str]:
    """The budget's limits, held against what the test split gave."""
    new, old = (
        Measured({**part.metrics, "core_hours_per_million": core_hours(part)}, part.intervals, part.users)
        for part in (chosen, base)
    )
    return budget.verdicts(new, old)


def _write_test(bench: Bench) -> None:
    """The test requests and their answers as files, so that anyone can check the numbers."""
    folder = bench.study.path("test")
    folder.mkdir(exist_ok=True)
    known = bench.interactions
    write_queries(bench.split.test, known.user_ids, known.item_ids, folder / "requests.jsonl", folder / "targets.csv")


def summary(ids: Mapping[str, str], found: Mapping[str, Measurement], budget: Budget) -> dict[str, Any]:
    """The final table: metrics, how many times better than A and B the choice is, the paired difference to B, and
    whether the limits hold here too."""
    chosen, base = found["chosen"], found["B"]
    ratios = {label: _ratios(found[label].metrics, chosen.metrics) for label in ("A", "B")}
    difference = {name: asdict(paired(values, base.users[name])) for name, values in chosen.users.items()}
    verdicts = _verdicts(chosen, base, budget)
    missed = [
        f"{limit.text(base.metrics)} is {verdicts[limit.metric]}"
        for limit in budget.limits
        if verdicts[limit.metric] != "held"
    ]
    text = _sentence(chosen, base, ratios, difference, budget.quality_metric)
    return {
        "ids": dict(ids),
        "rows": {
            name: {"metrics": dict(part.metrics), "intervals": dict(part.intervals)} for name, part in found.items()
        },
        "ratios": ratios,
        "difference": difference,
        "verdicts": verdicts,
        "text": f"{text}. On the test requests {'; '.join(missed)}" if missed else text,
        "protocol": dict(chosen.protocol),
    }


def gain(ratio: float, better: str, worse: str) -> str:
    """A ratio that is above 1 where the choice is better, in words."""
    return f"{ratio:.1f}x {better}" if ratio >= 1 else f"{1 / ratio:.1f}x {worse}"


def _ratios(original: Mapping[str, float], chosen: Mapping[str, float]) -> dict[str, float]:
    """Above 1 where the choice is better."""
    return {cost: original[cost] / chosen[cost] for cost in COSTS} | {"qps": chosen["qps"] / original["qps"]}


def _sentence(
    chosen: Measurement,
    base: Measurement,
    ratios: Mapping[str, Mapping[str, float]],
    difference: Mapping[str, Mapping[str, float]],
    metric: str,
) -> str:
    """What was given up for what."""
    new, old, gap = chosen.metrics[metric], base.metrics[metric], difference[metric]
    kept = f"{new / old:.1%} kept" if old else "the original has none"
    gains = [", ".join(gain(part[cost], *words) for cost, words in SAID.items()) for part in (ratios["A"], ratios["B"])]
    return (
        f"{metric} {new:.4f} against {old:.4f} ({kept}; difference {gap['mean']:+.4f}, 95 % interval {gap['low']:+.4f} "
        f"to {gap['high']:+.4f}). Against the original in PyTorch: {gains[0]}; in ONNX Runtime: {gains[1]}"
    )

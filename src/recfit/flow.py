"""One `optimize` run, from interactions and a budget to a chosen bundle. Every step can be interrupted and resumed."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from recfit import bundle as bundles
from recfit import config, data, measure, models, report
from recfit import pipeline as pipelines
from recfit.data import requests as request_files
from recfit.data.splits import split as split_by
from recfit.measure import Plan
from recfit.measure.statistics import Interval, paired
from recfit.pipeline import Pipeline, Stage
from recfit.report.assemble import assemble
from recfit.search.budget import Budget
from recfit.search.build import Job, Workshop, build
from recfit.search.evaluate import SCREEN_SLACK, STRUCTURAL, Gates, Limits
from recfit.search.isolate import isolated
from recfit.search.propose import proposals
from recfit.search.recipe import Recipe
from recfit.search.select import choose, require
from recfit.search.study import Candidate, Study
from recfit.selecting import line
from recfit.techniques import Context, make
from recfit.training import Fit, train
from recfit.types import ConfigError, Interactions, Split

Say = Callable[[str], None]


@dataclass(frozen=True)
class Outcome:
    """What `optimize` found: the study, the choice, the delivered bundle and the report page."""

    study: Path
    chosen: Candidate
    bundle: Path
    report: Path
    summary: Mapping[str, Any]


@dataclass(frozen=True)
class Bench:
    """What the steps of one run share."""

    settings: config.Settings
    interactions: Interactions
    split: Split
    study: Study
    workshop: Workshop
    budget: Budget
    plan: Plan
    say: Say

    @property
    def popularity(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Training events of every item."""
        return np.bincount(self.split.train.item, minlength=self.split.n_items).astype(np.int64)

    @property
    def limits(self) -> Limits:
        search = self.settings.search
        return Limits(search.memory_gb, time.monotonic() + search.max_minutes * 60)


def optimize(settings: config.Settings | str | Path, say: Say = print) -> Outcome:
    """Measure every way of paying for the budget and deliver the best. Raises `Infeasible` where none holds it.

    The same call resumes an interrupted run and repeats no finished work.
    """
    bench = prepare(settings, say)
    original(bench)
    if reachable(bench):
        explore(bench)
    choice = choose(bench.study, bench.budget)
    if choice.chosen is not None:
        final(bench, choice.chosen)
    page = bench.study.path("report.html")
    report.write(assemble(bench.study, bench.budget, choice), page)
    chosen = require(choice)
    return Outcome(bench.study.directory, chosen, bench.study.path("bundle"), page, bench.study.facts["final"])


def prepare(settings: config.Settings | str | Path, say: Say = print) -> Bench:
    """Read the data, split it, open the study."""
    if not isinstance(settings, config.Settings):
        settings = config.load(settings)
    interactions = data.from_config(settings.data)
    split = split_by(interactions, settings.data.split)
    say(
        f"{interactions.name}: {len(interactions):,} events, {split.n_users:,} users, {split.n_items:,} items; "
        f"{split.protocol}, {len(split.validation):,} validation and {len(split.test):,} test requests"
    )
    study = Study(Path(settings.search.directory))
    search = settings.search
    fit = fit_settings({**settings.model.fit, **search.fit}, search.threads)
    workshop = Workshop(split, study.path("original"), study.path("models"), fit, search.threads, progress=True)
    budget = budget_of(settings.budget)
    plan = Plan(requests=search.requests, rate=search.rate)
    return Bench(settings, interactions, split, study, workshop, budget, plan, say)


def budget_of(settings: config.Budget) -> Budget:
    """The budget that `[budget]` states."""
    values = asdict(settings)
    return Budget.of(values.pop("limits"), **values)


def fit_settings(values: Mapping[str, Any], threads: int) -> Fit:
    """Training settings; an unknown key names what is allowed."""
    allowed = [item.name for item in dataclasses.fields(Fit)]
    for key in values:
        if key not in allowed:
            raise ConfigError(f"[model.fit] has no setting {key!r}; allowed: {', '.join(allowed)}")
    return Fit(**{"threads": threads, **values})


def original(bench: Bench) -> None:
    """Train or load the original, check the study is this original's, measure it as B (ONNX Runtime) and A (PyTorch)."""
    settings = bench.settings
    bench.study.begin({"data": _data_facts(bench)}, identity(settings, bench.split))
    bench.study.note(budget=asdict(settings.budget))
    if not pipelines.saved(bench.workshop.original):
        bench.say(f"original: {settings.model.kind} {dict(settings.model.options)}")
        begin = time.monotonic()
        limits = {"memory_gb": settings.search.memory_gb, "seconds": 24 * 3600.0}
        isolated(make_original, settings, bench.workshop, **limits)
        bench.study.note(original_seconds=round(time.monotonic() - begin, 1))
    gates = _gates(bench)
    threads = settings.search.serve_threads
    reference = Recipe(() if threads == 1 else (make("runtime", {"threads": threads}),))
    eager = Recipe((make("runtime", {"name": "torch", "threads": threads}),))
    for key, recipe in (("original", reference), ("eager", eager)):
        found = bench.study.candidates.get(recipe.id) or gates.run(recipe)
        if found.status != "done":
            raise ConfigError(f"the original cannot be measured: {found.reason}")
        bench.study.note(**{key: recipe.id})
        bench.say(line(found, bench.budget))


def identity(settings: config.Settings, split: Split) -> str:
    """A digest of what a study's numbers depend on: data, split, original, training."""
    parts = [split.target_hash, split.protocol, len(split.train), asdict(settings.model), dict(settings.search.fit)]
    parts.append(settings.search.serve_threads)
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def train_original(settings: config.Settings | str | Path, output: Path) -> dict[str, float]:
    """Train the original of a config, without a study; stores the model at `output`, returns how it went."""
    if not isinstance(settings, config.Settings):
        settings = config.load(settings)
    split = split_by(data.from_config(settings.data), settings.data.split)
    fit = fit_settings(settings.model.fit, settings.search.threads)
    model = build_original(settings.model, split, fit)
    trained = train(model, split, fit, checkpoint=output.with_suffix(".checkpoint"))
    models.save(model, output)
    return {"ndcg@10": trained.ndcg, "seconds": trained.seconds, "epochs": len(trained.epochs)}


def build_original(settings: config.Model, split: Split, fit: Fit) -> models.Model:
    """The untrained original that `[model]` names."""
    torch.set_num_threads(fit.threads)
    torch.manual_seed(fit.seed)
    kind = "custom" if settings.factory else settings.kind
    options = {"factory": settings.factory, "options": settings.options} if settings.factory else settings.options
    return models.build(kind, options, models.catalogue_of(split))


def make_original(settings: config.Settings, workshop: Workshop) -> None:
    """Runs in a child: train or load the original and store it."""
    chosen = settings.model
    if chosen.path is not None:
        model = models.load(Path(chosen.path))
    else:
        fit = fit_settings(chosen.fit, workshop.threads)
        model = build_original(chosen, workshop.split, fit)
        checkpoint = workshop.original.with_suffix(".checkpoint")
        train(model, workshop.split, fit, checkpoint=checkpoint, progress=workshop.progress)
    pipelines.save(Pipeline(Stage(model)), workshop.original)


def reachable(bench: Bench) -> bool:
    """Say for every limit what the least and the original need; False if a limit is below what any bundle needs here.

    The least is what the engine itself takes: popularity, and popularity from precomputed lists.
    """
    popular = make("simplify", {"kind": "popularity"})
    recipes = [Recipe((popular,)), Recipe((popular, make("cache", {"share": 1.0})))]
    gates = _gates(bench)
    found = [bench.study.candidates.get(recipe.id) or gates.run(recipe) for recipe in recipes]
    base = bench.study.measured(bench.study.candidates[bench.study.facts["original"]])
    possible = True
    for limit in bench.budget.limits:
        if limit.metric in STRUCTURAL:
            least = min(candidate.metrics[limit.metric] for candidate in found if candidate.status == "done")
            bound = limit.absolute(base.metrics)
            state = "out of reach" if least > bound * SCREEN_SLACK else "open"
            possible &= state == "open"
            bench.say(
                f"limit {limit.text(base.metrics)}: the least any bundle needs here is {least:.4g}, "
                f"the original {base.metrics[limit.metric]:.4g}: {state}"
            )
    return possible


def explore(bench: Bench) -> None:
    """Propose, build and measure candidates until a limit of `[search]` is reached or nothing is left to try."""
    gates = _gates(bench)
    search = bench.settings.search
    context = Context(bench.split, pipelines.load(bench.workshop.original), bench.workshop.fit)
    begin, already = time.monotonic(), sum(sum(c.seconds.values()) for c in bench.study.candidates.values())
    for recipe in proposals(bench.study, bench.budget, context, search.techniques):
        spent = (already + time.monotonic() - begin) / 60
        if len(bench.study.candidates) >= search.max_candidates or spent >= search.max_minutes:
            break
        found = gates.run(recipe)
        bench.say(
            f"[{len(bench.study.candidates)}/{search.max_candidates}, {spent:.1f} min] {line(found, bench.budget)}"
        )


def final(bench: Bench, chosen: Candidate) -> None:
    """Measure the choice and both originals once more: fresh bundles, test requests, latency blocks interleaved."""
    study, facts = bench.study, bench.study.facts
    rows = {"A": facts["eager"], "B": facts["original"], "chosen": chosen.id}
    if facts.get("final", {}).get("ids") == rows and study.path("bundle").exists():
        return
    bench.say("final: measuring the choice and the original again, on the test requests")
    for label, id in rows.items():
        job = Job(study.candidates[id].recipe, study.path("final", label), final=True)
        isolated(build, bench.workshop, job, memory_gb=bench.settings.search.memory_gb, seconds=3600.0)
    paths = [study.path("final", label) for label in rows]
    costs = measure.latency(paths, bench.split.test, bench.plan)
    metrics = _gates(bench).metrics
    found = {}
    for label, path, spent in zip(rows, paths, costs, strict=True):
        users, extra = measure.users_quality(path, bench.split.test, bench.popularity, metrics)
        found[label] = measure.combine(path, spent, users, extra, bench.split.test, bench.plan)
    summary = _summary(rows, found, bench.budget)
    bundles.promise(study.path("final", "chosen"), {**summary["rows"]["chosen"], "protocol": found["chosen"].protocol})
    shutil.rmtree(study.path("bundle"), ignore_errors=True)
    shutil.copytree(study.path("final", "chosen"), study.path("bundle"))
    folder = study.path("test")
    folder.mkdir(exist_ok=True)
    ids = bench.interactions.user_ids, bench.interactions.item_ids
    request_files.write_queries(bench.split.test, *ids, folder / "requests.jsonl", folder / "targets.csv")
    study.note(final=summary)


def _summary(rows: Mapping[str, str], found: Mapping[str, measure.Measurement], budget: Budget) -> dict[str, Any]:
    """The final table: metrics, ratios of A and B to the choice, and the paired difference to B."""
    chosen, base = found["chosen"], found["B"]
    ratios = {
        label: {
            metric: found[label].metrics[metric] / chosen.metrics[metric]
            for metric in ("p50_ms", "p95_ms", "p99_ms", "memory_mb", "bundle_mb", "load_s")
        }
        | {"qps": chosen.metrics["qps"] / found[label].metrics["qps"]}
        for label in ("A", "B")
    }
    differences = {metric: asdict(paired(values, base.users[metric])) for metric, values in chosen.users.items()}
    metric = budget.quality_metric
    kept = chosen.metrics[metric] / base.metrics[metric] if base.metrics[metric] else 1.0
    interval = Interval(**differences[metric])
    text = (
        f"{metric} {chosen.metrics[metric]:.4f} against {base.metrics[metric]:.4f} ({kept:.1%} kept; difference "
        f"{interval.mean:+.4f}, 95 % interval {interval.low:+.4f} to {interval.high:+.4f}) buys {ratios['A']['p99_ms']:.1f}x lower "
        f"p99, {ratios['A']['memory_mb']:.1f}x less memory and a {ratios['A']['bundle_mb']:.1f}x smaller bundle than "
        f"PyTorch; {ratios['B']['p99_ms']:.1f}x, {ratios['B']['memory_mb']:.1f}x and {ratios['B']['bundle_mb']:.1f}x against ONNX Runtime"
    )
    measured = {
        label: {"metrics": dict(part.metrics), "intervals": dict(part.intervals)} for label, part in found.items()
    }
    return {
        "ids": dict(rows), "rows": measured, "ratios": ratios, "difference": differences, "text": text,
        "protocol": dict(chosen.protocol),
    }  # fmt: skip


def _gates(bench: Bench) -> Gates:
    return Gates(bench.study, bench.budget, bench.workshop, bench.limits, bench.plan, bench.popularity, bench.say)


def _data_facts(bench: Bench) -> dict[str, Any]:
    split = bench.split
    return {
        "name": bench.interactions.name,
        "users": split.n_users,
        "items": split.n_items,
        "events": len(bench.interactions),
        "protocol": split.protocol,
        "target_hash": split.target_hash,
        "validation_queries": len(split.validation),
        "test_queries": len(split.test),
        "masking": "full catalogue, items of the request's history removed",
    }

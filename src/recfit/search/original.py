"""The original: trained here or loaded, measured as it is run today and as a bundle, compared with simple models first."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from recfit import config, data, models
from recfit import pipeline as pipelines
from recfit.data.splits import split as split_by
from recfit.measure.machine import machine
from recfit.measure.statistics import paired
from recfit.pipeline import Pipeline, Stage
from recfit.search.bench import Bench, fit_settings, views
from recfit.search.build import Workshop
from recfit.search.evaluate import SCREEN_SLACK, STRUCTURAL
from recfit.search.isolate import PATIENCE, isolated
from recfit.search.recipe import Recipe
from recfit.search.study import Candidate
from recfit.selecting import line
from recfit.techniques import make
from recfit.techniques.simplify import baselines
from recfit.training import Fit, train
from recfit.types import ConfigError, Split


def measured_original(bench: Bench) -> None:
    """Train or load the original, check that the study is this original's, measure it as B (ONNX Runtime) and A (PyTorch)."""
    settings, study = bench.settings, bench.study
    claim(bench)
    search = settings.search
    study.note(budget=asdict(settings.budget), max_minutes=search.max_minutes, memory_gb=search.memory_gb)
    if not pipelines.saved(bench.workshop.original):
        chosen = settings.model
        bench.say(f"original: {chosen.path or chosen.factory or chosen.kind} {dict(chosen.options) or ''}")
        begin = time.monotonic()
        isolated(make_original, settings, bench.workshop, memory_gb=settings.search.memory_gb, seconds=PATIENCE)
        study.note(original_seconds=round(time.monotonic() - begin, 1))
    for key, recipe in originals().items():
        if recipe.id in study.candidates and study.candidates[recipe.id].status != "done":
            del study.candidates[recipe.id]  # nothing goes without it, so it is tried again
        found = known_or_run(bench, recipe, gated=False)
        if found.status != "done":
            raise ConfigError(f"the original cannot be measured: {found.reason}")
        study.note(**{key: recipe.id})
    base = study.measured(study.candidates[study.facts["original"]])
    bench.budget.verdicts(base, base)  # a metric that this study did not measure is refused now


def claim(bench: Bench) -> None:
    """Open the study; `ConfigError` where it is that of another original, data set, split, training or processor."""
    bench.study.begin({"data": data_facts(bench)}, identity(bench.settings, bench.split))


def originals() -> dict[str, Recipe]:
    """The original as a bundle (B) and as it is run today (A)."""
    return {"original": Recipe(), "eager": Recipe((make("runtime", {"name": "torch"}),))}


def simple(n_items: int) -> list[Recipe]:
    """The models that any original must beat."""
    return [Recipe((step,)) for step in baselines(n_items)]


def floor() -> list[Recipe]:
    """What the engine itself takes, on both runtimes: popularity, and popularity from precomputed lists."""
    popular, lists, numpy = (
        make("simplify", {"kind": "popularity"}),
        make("cache", {"share": 1.0}),
        make("runtime", {"name": "numpy"}),
    )
    return [Recipe((popular, *rest)) for rest in ((), (lists,), (numpy,), (lists, numpy))]


def yardsticks(bench: Bench) -> list[str]:
    """The ids of what every study measures before it searches."""
    recipes = [*originals().values(), *simple(bench.split.n_items), *floor()]
    return list(dict.fromkeys(recipe.id for recipe in recipes))


def known_or_run(bench: Bench, recipe: Recipe, *, gated: bool = True) -> Candidate:
    """The candidate of `recipe`, measured now if the study does not know it, or only knows that it fell at a gate."""
    known = bench.study.candidates.get(recipe.id)
    if known is not None and (gated or known.status != "screened out"):
        return known
    found = bench.gates().run(recipe, gated=gated)
    count, most = len(bench.study.candidates), bench.settings.search.max_candidates
    bench.say(f"[{count}/{most}, {bench.minutes_spent:.1f} min] {line(found, bench.budget)}")
    return found


def compared(bench: Bench) -> None:
    """Measure the simple models, whatever the budget, and say first of all if the original loses to one of them."""
    found = [known_or_run(bench, recipe, gated=False) for recipe in simple(bench.split.n_items)]
    metric = bench.budget.quality_metric
    base = bench.study.measured(bench.study.candidates[bench.study.facts["original"]])
    for candidate in found:
        if candidate.status == "done":
            gain = paired(bench.study.measured(candidate).users[metric], base.users[metric])
            if gain.low > 0:
                bench.say(
                    f"WARNING: the original loses to {candidate.name}: {metric} {base.metrics[metric]:.4f} against "
                    f"{candidate.metrics[metric]:.4f} (difference {gain.low:+.4f} to {gain.high:+.4f}). Mend it before "
                    "fitting it into a budget, or take the simple model"
                )


def reachable(bench: Bench) -> bool:
    """Say for every limit what the least and the original need; False if a limit is below what any bundle needs here."""
    found = [known_or_run(bench, recipe, gated=False) for recipe in floor()]
    base = bench.study.measured(bench.study.candidates[bench.study.facts["original"]])
    possible = True
    for limit in bench.budget.limits:
        values = [candidate.metrics[limit.metric] for candidate in found if limit.metric in candidate.metrics]
        if limit.metric in STRUCTURAL and values:
            least = min(values)
            state = "out of reach" if least > limit.absolute(base.metrics) * SCREEN_SLACK else "open"
            possible &= state == "open"
            bench.say(
                f"limit {limit.text(base.metrics)}: the least any bundle needs here is {least:.4g}, "
                f"the original {base.metrics[limit.metric]:.4g}: {state}"
            )
    return possible


def identity(settings: config.Settings, split: Split) -> str:
    """A digest of what a study's numbers depend on: data, split, original, training, threads, processor."""
    search, here = settings.search, machine()
    events = [split.target_hash, split.protocol, len(split.train), len(split.validation), _features(split)]
    original = [asdict(settings.model), _content(settings.model)]
    how: list[Any] = [dict(search.fit), search.serve_threads, settings.serve.histories]
    how += ["sessions"] if settings.serve.session_mb else []
    parts = [*events, *original, *how, here["cpu"], here["cores"], here["isa"]]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def _features(split: Split) -> str:
    """A digest of what is known of users and items."""
    digest = hashlib.sha256()
    for side in (split.train.user_features, split.train.item_features):
        digest.update(b"none" if side is None else json.dumps([side.names, side.codes.tolist()]).encode())
    return digest.hexdigest()[:16]


def _content(model: config.Model) -> str:
    """What is behind `path` or `factory`: the model's fingerprint, the factory's source."""
    if model.path:
        return models.fingerprint(models.load(Path(model.path)))
    if model.factory:
        source = find_spec(model.factory.partition(":")[0])
        if source is not None and source.origin is not None:
            return hashlib.sha256(Path(source.origin).read_bytes()).hexdigest()[:16]
    return ""


def train_original(
    settings: config.Settings | str | Path, output: Path, say: Callable[[str], None]
) -> dict[str, float]:
    """Train the original of a config, without a study; stores the model at `output`, returns how it went."""
    if not isinstance(settings, config.Settings):
        settings = config.load(settings)
    split, _ = views(split_by(data.from_config(settings.data), settings.data.split))
    model = settings.model
    say(f"training {model.factory or model.kind} {dict(model.options) or ''} on {len(split.train):,} events")
    limits = {"memory_gb": settings.search.memory_gb, "seconds": PATIENCE}
    found: dict[str, float] = isolated(_train_alone, settings, split, output, **limits)
    return found


def _train_alone(settings: config.Settings, split: Split, output: Path) -> dict[str, float]:
    """Runs in a child: train the original of `settings` and store it at `output`."""
    fit = fit_settings(settings.search.threads, model=settings.model.fit)
    model = build_original(settings.model, split, fit)
    checkpoint = output.with_name(f"{output.name}.checkpoint")
    trained = train(model, split, fit, checkpoint=checkpoint)
    models.save(model, output)
    checkpoint.unlink(missing_ok=True)
    return {
        "ndcg@10": trained.ndcg,
        "seconds": trained.seconds,
        "epochs": len(trained.epochs),
        "parameters": parameters(model),
    }


def parameters(model: models.Model) -> int:
    """How many numbers training sets."""
    return sum(part.numel() for part in models.as_module(model).parameters())


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
        models.check_ids(model, workshop.split, chosen.path)
    else:
        fit = fit_settings(workshop.threads, model=chosen.fit)
        model = build_original(chosen, workshop.split, fit)
        checkpoint = workshop.original.with_suffix(".checkpoint")
        train(model, workshop.split, fit, checkpoint=checkpoint, progress=workshop.progress)
    pipelines.save(Pipeline(Stage(model)), workshop.original)


def data_facts(bench: Bench) -> dict[str, Any]:
    """What the report says of the data and the protocol."""
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

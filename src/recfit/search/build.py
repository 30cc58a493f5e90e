"""Recipe -> bundle, in a process of its own. Runs in the child that `isolate` starts."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from recfit import pipeline as pipelines
from recfit.export import export, surroundings
from recfit.pipeline import Pipeline
from recfit.search.recipe import Recipe
from recfit.techniques import Context, applied
from recfit.training import Fit
from recfit.types import Ragged, Split


@dataclass(frozen=True)
class Workshop:
    """What every build of a study shares. `original` and `models` are folders: the original, and trained prefixes.
    `keep_histories`: whether bundles store what users did, or requests bring it. Bundles answer on `serve_threads`,
    unless a recipe has its own, and go on from `sessions` where they can. `fit` and `afresh` are those of `Context`."""

    split: Split
    original: Path
    models: Path
    fit: Fit
    threads: int
    progress: bool
    keep_histories: bool = True
    serve_threads: int = 1
    sessions: bool = False
    afresh: Fit | None = None

    def served(self) -> Pipeline:
        """The original as it is served."""
        original = pipelines.load(self.original)
        return replace(original, runtime=replace(original.runtime, threads=self.serve_threads))


@dataclass(frozen=True)
class Job:
    """One bundle to make. `structure_only` skips training; `final` stores all that was learned from instead of older
    histories, and what quantization did to each layer."""

    recipe: list[dict[str, Any]]
    output: Path
    structure_only: bool = False
    final: bool = False


def build(workshop: Workshop, job: Job) -> str:
    """Apply the recipe to the original and export it; returns the bundle's directory."""
    torch.set_num_threads(workshop.threads)
    recipe = Recipe.from_json(job.recipe)
    pipeline = _applied(recipe, workshop, job)
    pipeline = replace(pipeline, runtime=replace(pipeline.runtime, sessions=workshop.sessions))
    past = snapshot(workshop.split, final=job.final)
    around = surroundings(workshop.split, past, workshop.keep_histories)
    described = {"id": recipe.id, "steps": job.recipe, "notes": list(pipeline.notes)}
    export(pipeline, around, job.output, name=recipe.name, recipe=described, report=job.final)
    return str(job.output)


def snapshot(split: Split, *, final: bool) -> Ragged:
    """The histories a bundle stores: they end an event or more before the requests it will be measured with.

    Validation requests come right after the training events, so the search stores those without each user's last;
    test requests come later, so the final bundle stores all of them.
    """
    past = split.train.histories()
    if final:
        return past
    return Ragged.from_lists([part[:-1] for part in past])


def _applied(recipe: Recipe, workshop: Workshop, job: Job) -> Pipeline:
    """The original after every step; trained prefixes are kept, so that recipes that share them train once."""
    original = workshop.served()
    context = Context(
        workshop.split,
        original,
        workshop.fit,
        structure_only=job.structure_only,
        progress=workshop.progress,
        folder=workshop.models,
        afresh=workshop.afresh,
    )
    pipeline = original
    for prefix in recipe.prefixes:
        kept = workshop.models / prefix.id
        if pipelines.saved(kept):
            pipeline = pipelines.load(kept)
            continue
        torch.manual_seed(workshop.fit.seed)  # the same weights, whether the steps before were trained or loaded
        pipeline = applied(prefix.steps[-1], pipeline, context)
        if not job.structure_only:
            pipelines.save(pipeline, kept)
    return pipeline

"""Which recipe next: single techniques first, one of every family whatever the budget, then chains grown from the survivors."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from statistics import median

import numpy as np

from recfit.measure.statistics import interval
from recfit.models import as_module
from recfit.pipeline import Pipeline
from recfit.search.budget import Budget, Limit, Measured, shortfall
from recfit.search.recipe import Recipe
from recfit.search.study import Candidate, Study
from recfit.techniques import Context, Technique, applied, available
from recfit.types import RecfitError

# The share of the search that goes to single techniques.
SINGLES_SHARE = 0.4
# Share of the original's parameters below which a model is trained in a fraction of the time.
SMALL = 0.25
# Share of the original's quality that chains should keep where the budget has no limit on it (docs/search.md).
KEPT = 0.9
# One chain in so many widens the frontier instead of serving this study's budget.
BROAD = 2
POINTS = 4000

Child = tuple[Recipe, Recipe]
"""A longer recipe, and the step that it has more, alone."""
Promise = tuple[Recipe, Mapping[str, float]]
"""A recipe, and what it should measure."""


@dataclass(frozen=True)
class Proposal:
    """A recipe to try; one that is not `gated` is measured in full, whatever limit it breaks."""

    recipe: Recipe
    gated: bool = True


def singles(context: Context, wanted: Sequence[str]) -> list[Recipe]:
    """Every technique alone: one of each family first, then the others, the variants of each technique in turn; and of
    both what costs no training before what does. Light trainings come as soon as those of a family's first that need none:
    of a large original many fit into the time that one fine-tuning of it takes."""
    groups = [variants(context) for variants in available(wanted)]
    turns = [step for turn in zip_longest(*groups) for step in turn if step is not None]
    steps = sorted(turns, key=lambda step: step.trains)
    families = [step.family for step in steps]
    heads = [step for index, step in enumerate(steps) if step.family not in families[:index]]
    order = [*heads, *(step for step in steps if step not in heads)]

    def turn(step: Technique) -> int:
        if step.trains:
            return 1 if light(Recipe((step,)), context) else 2
        return 0 if step in heads else 2

    return [Recipe((step,)) for step in sorted(order, key=turn)]


def light(recipe: Recipe, context: Context) -> bool:
    """Whether what `recipe` trains has less than `SMALL` of the parameters of the original."""
    try:
        pipeline = _shaped(recipe, context)
    except Exception:  # it is refused, or fails, where it is tried
        return False
    return _size(pipeline) < SMALL * _size(context.original)


def _size(pipeline: Pipeline) -> int:
    return sum(part.numel() for part in as_module(pipeline.main.model).parameters())


def _shaped(recipe: Recipe, context: Context) -> Pipeline:
    """`recipe` of untrained structures, in this process."""
    shapes, pipeline = replace(context, structure_only=True), context.original
    for step in recipe.steps:
        pipeline = applied(step, pipeline, shapes)
    return pipeline


def applies(recipe: Recipe, context: Context) -> bool:
    """Whether every step of `recipe` finds something to work on, tried on untrained structures in this process.

    A refusal that is known from the structure takes milliseconds here, and no row of the study.
    """
    try:
        _shaped(recipe, context)
    except RecfitError:
        return False
    except Exception:  # a defect, of a model of the user's own perhaps: the study records what its own process says
        return True
    return True


def proposals(
    study: Study, budget: Budget, context: Context, first: Sequence[Recipe], spent: Callable[[], float]
) -> Iterator[Proposal]:
    """What the study does not know yet, the most promising first, until nothing is left to try: the singles `first`, then
    chains of their steps.

    It looks at the study again before each proposal, so what was just measured steers what comes next. `spent` is the
    share of the search's limits that is used up; singles of families that were tried stop in time to leave room for chains.
    """
    budget = _steering(budget)
    first = [recipe for recipe in first if applies(recipe, context)]
    for recipe in first:
        tried = {family for found in study.candidates.values() for family in found.families}
        if recipe.id not in study.candidates and (spent() < SINGLES_SHARE or recipe.families[0] not in tried):
            yield Proposal(recipe)
    for recipe in unmeasured(study, first):
        yield Proposal(recipe, gated=False)
    known: dict[str, _Kin] = {}
    refused: set[str] = set()
    turn = 0
    while promises := _promises(study, first, known, refused):
        child = _best(study, budget, promises, broad=turn % BROAD == BROAD - 1)
        if applies(child, context):
            turn += 1
            yield Proposal(child)
        else:
            refused.add(child.id)


def _steering(budget: Budget) -> Budget:
    """`budget`, with a limit on quality where it has none. Else the next chain would be the fastest of all, whatever it gives
    up, and what was measured at the end of no use to a budget that does say something of quality."""
    if any(limit.is_quality for limit in budget.limits):
        return budget
    return replace(budget, limits=(*budget.limits, Limit(budget.quality_metric, KEPT, relative=True)))


def unmeasured(study: Study, singles: Sequence[Recipe]) -> list[Recipe]:
    """The fastest single of every family that the screen kept from being measured: what a family costs in quality is
    worth knowing, for the report, for other budgets, and for the chains that it may yet be good in."""
    known = {family for found in study.done() for family in found.families}
    fallen = [study.candidates[recipe.id] for recipe in singles if recipe.id in study.candidates]
    fallen = [found for found in fallen if found.status == "screened out" and found.families[0] not in known]
    fastest: dict[str, Candidate] = {}
    for found in sorted(fallen, key=lambda found: found.metrics.get("p50_ms", 0.0)):
        fastest.setdefault(found.families[0], found)
    return [Recipe.from_json(found.recipe) for found in fastest.values()]


@dataclass(frozen=True)
class _Kin:
    """Of a recipe: what it grows into, and the ids of each of its steps alone and of what it is without that step."""

    children: Sequence[Child]
    parents: Sequence[tuple[str, str]]


def _kin(recipe: Recipe, first: Sequence[Recipe], study: Study) -> _Kin:
    shorter = [(step, Recipe(tuple(other for other in recipe.steps if other is not step))) for step in recipe.steps]
    original = study.facts["original"]
    parents = [(Recipe((step,)).id, rest.id if rest.steps else original) for step, rest in shorter]
    return _Kin(_children(recipe, first, study), parents)


def _promises(study: Study, first: Sequence[Recipe], known: dict[str, _Kin], refused: Collection[str]) -> list[Promise]:
    """The untried extensions of survivors, none of the `refused`; `known` remembers every survivor's kin.

    A candidate that fell at the structure screen is a survivor too: it is too slow or too big as yet, its quality is
    not known to suffer, and what is missing may come from the next step.
    """
    survivors = [found for found in study.candidates.values() if found.status != "failed" and "p50_ms" in found.metrics]
    for found in survivors:
        if found.recipe and found.id not in known:
            known[found.id] = _kin(Recipe.from_json(found.recipe), first, study)
    factors = _factors(study, known)
    return [
        (child, expected(study, parent, factors.get(single.id, {})))
        for parent in survivors
        if parent.recipe
        for child, single in known[parent.id].children
        if child.id not in study.candidates and child.id not in refused
    ]


def _best(study: Study, budget: Budget, promises: Sequence[Promise], *, broad: bool) -> Recipe:
    """The most promising for the budget; a `broad` one widens the frontier most, for the budgets to come."""
    scale = _scale(study, budget)
    gains = _gains(study, budget, [metrics for _, metrics in promises]) if broad else [0] * len(promises)
    ranks = [
        (-gain, *_rank(scale, budget, metrics), child.id)
        for gain, (child, metrics) in zip(gains, promises, strict=True)
    ]
    return promises[ranks.index(min(ranks))][0]


def _gains(study: Study, budget: Budget, promises: Sequence[Mapping[str, float]]) -> list[int]:
    """What each would add to the hypervolume of quality, median latency and memory as shares of the original's: of some
    random points, how many it would beat that nothing measured beats. Half the quality is where it begins to count."""
    original = study.candidates[study.facts["original"]].metrics
    names = (budget.quality_metric, "p50_ms", "memory_mb")

    def losses(metrics: Mapping[str, float]) -> list[float]:
        quality, *costs = (metrics[name] / max(original[name], 1e-9) for name in names)
        return [-quality, *costs]

    free = np.random.default_rng(0).uniform([-1.1, 0, 0], [-0.5, 1, 1], (POINTS, 3))
    for found in study.done():
        free = free[~np.all(losses(found.metrics) <= free, axis=1)]
    return [int(np.count_nonzero(np.all(losses(metrics) <= free, axis=1))) for metrics in promises]


def _children(recipe: Recipe, first: Sequence[Recipe], study: Study) -> list[Child]:
    """`recipe` with one more step, and that step alone: none that works on what a step of it does, nor one that is known to
    fail on the original; after all that `recipe` trains, which would be trained anew."""
    trained = max((at + 1 for at, step in enumerate(recipe.steps) if step.trains), default=0)
    return [
        (child, single)
        for single in first
        for step in single.steps
        if not any(exclude(step, done) for done in recipe.steps) and not _failed(single, study)
        if (child := recipe.then(step)).steps[:trained] == recipe.steps[:trained]
    ]


def exclude(step: Technique, done: Technique) -> bool:
    """Whether a chain has room for one of both alone: they work on the same thing, as two ways to another model do."""
    return not {*step.works_on}.isdisjoint(done.works_on)


def _failed(single: Recipe, study: Study) -> bool:
    return single.id in study.candidates and study.candidates[single.id].status == "failed"


def expected(study: Study, parent: Candidate, factors: Mapping[str, float]) -> dict[str, float]:
    """What `parent` extended by a step should measure, if the step multiplies each metric by its `factors`.

    What was not measured, of either, counts as the original's.
    """
    original = study.candidates[study.facts["original"]].metrics
    return {metric: parent.metrics.get(metric, value) * factors.get(metric, 1.0) for metric, value in original.items()}


def _factors(study: Study, known: Mapping[str, _Kin]) -> dict[str, dict[str, float]]:
    """By the id of a step alone, its factor on each metric: the median of all pairs of candidates that differ by that step.
    What it did alone to the original is one of them. Where it does something else behind other steps (lists that are looked
    up take the same memory, however small the model has become), the others outvote that."""
    ratios: dict[str, dict[str, list[float]]] = {}
    for id, kin in known.items():
        for step, rest in kin.parents:
            before = study.candidates[rest].metrics if rest in study.candidates else {}
            for metric, value in study.candidates[id].metrics.items():
                if before.get(metric):
                    ratios.setdefault(step, {}).setdefault(metric, []).append(value / before[metric])
    return {step: {metric: median(found) for metric, found in by.items()} for step, by in ratios.items()}


@dataclass(frozen=True)
class _Scale:
    """What promises are held against: the original, and the share of each quality metric that is noise in this data."""

    original: Measured
    noise: Mapping[str, float]


def _scale(study: Study, budget: Budget) -> _Scale:
    original = study.measured(study.candidates[study.facts["original"]])
    floors = [limit.metric for limit in budget.limits if limit.is_quality]
    noise = {name: interval(original.users[name]).half / max(original.metrics[name], 1e-9) for name in floors}
    return _Scale(original, noise)


def _rank(scale: _Scale, budget: Budget, metrics: Mapping[str, float]) -> tuple[float, float, float]:
    """How much quality is missing, beyond half of its noise; how far the other limits are missed, beyond a tenth; and
    the objective, latency by its median: the factors that `expected` multiplies are of a few runs, and a busy moment of the
    machine moves the tail of one by more than most steps do, the median hardly (docs/search.md)."""
    missed, costs = 0.0, 0.0
    for limit in budget.limits:
        gap = shortfall(limit, Measured(metrics, {}, {}), scale.original)
        if limit.is_quality:
            missed = max(missed, gap - scale.noise[limit.metric] / 2)
        else:
            costs = max(costs, gap - 0.1)
    return missed, costs, budget.loss({**metrics, "p99_ms": metrics["p50_ms"]})

"""Which recipe next: single techniques first, one of every family whatever the budget, then chains grown from the survivors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest

from recfit.measure.statistics import interval
from recfit.search.budget import Budget, Measured, shortfall
from recfit.search.recipe import Recipe
from recfit.search.study import Candidate, Study
from recfit.techniques import Context, Technique, available

# The share of the search that goes to single techniques.
SINGLES_SHARE = 0.4
REFUSALS = 2


@dataclass(frozen=True)
class Proposal:
    """A recipe to try; one that is not `gated` is measured in full, whatever limit it breaks."""

    recipe: Recipe
    gated: bool = True


def singles(context: Context, wanted: Sequence[str]) -> list[Recipe]:
    """Every technique alone: what costs no training first, then the variants of each technique in turn."""
    groups = [variants(context) for variants in available(wanted)]
    turns = [step for turn in zip_longest(*groups) for step in turn if step is not None]
    return [Recipe((step,)) for step in sorted(turns, key=lambda step: step.trains)]


def proposals(
    study: Study, budget: Budget, context: Context, wanted: Sequence[str], spent: Callable[[], float]
) -> Iterator[Proposal]:
    """What the study does not know yet, the most promising first, until nothing is left to try.

    It looks at the study again before each proposal, so what was just measured steers what comes next. `spent` is the
    share of the search's limits that is used up; singles stop in time to leave room for chains.
    """
    first = singles(context, wanted)
    for recipe in first:
        if spent() >= SINGLES_SHARE:
            break
        if recipe.id not in study.candidates:
            yield Proposal(recipe)
    for recipe in unmeasured(study, first):
        yield Proposal(recipe, gated=False)
    steps = [recipe.steps[0] for recipe in first]
    while (child := _best_child(study, budget, steps)) is not None:
        yield Proposal(child)


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


def _best_child(study: Study, budget: Budget, steps: Sequence[Technique]) -> Recipe | None:
    """The untried extension of a survivor that promises most.

    A candidate that fell at the structure screen is a survivor too: it is too slow or too big as yet, its quality is
    not known to suffer, and what is missing may come from the next step.
    """
    scale = _scale(study, budget)
    promises: list[tuple[tuple[float, ...], str, Recipe]] = []
    for parent in study.candidates.values():
        if parent.recipe and parent.status != "failed" and "p50_ms" in parent.metrics:
            recipe = Recipe.from_json(parent.recipe)
            for step in _fitting(recipe, steps, study):
                child = recipe.then(step)
                if child.id not in study.candidates:
                    promises.append((_rank(scale, budget, expected(study, parent, step)), child.id, child))
    return min(promises)[2] if promises else None


def _fitting(recipe: Recipe, steps: Sequence[Technique], study: Study) -> list[Technique]:
    """Steps that can follow `recipe`: of a family it does not have yet, not known to fail on the original, and not of a
    family that failed twice on `recipe` (an item-item model has nothing to prune, whatever the axis)."""
    last = max(step.order for step in recipe.steps)
    refused = Counter(
        found.families[-1]
        for found in study.candidates.values()
        if found.status == "failed" and found.recipe[:-1] == recipe.to_json()
    )
    return [
        step
        for step in steps
        if step.order > last
        and step.family not in recipe.families
        and refused[step.family] < REFUSALS
        and not _failed(step, study)
    ]


def _failed(step: Technique, study: Study) -> bool:
    alone = study.candidates.get(Recipe((step,)).id)
    return alone is not None and alone.status == "failed"


def expected(study: Study, parent: Candidate, step: Technique) -> dict[str, float]:
    """What `parent` extended by `step` should measure if `step` does to it what it did to the original.

    What was not measured, of either, counts as the original's.
    """
    original = study.candidates[study.facts["original"]].metrics
    alone = study.candidates.get(Recipe((step,)).id)
    effect = {} if alone is None else alone.metrics
    return {
        metric: parent.metrics.get(metric, value) * (effect.get(metric, value) / value if value else 1.0)
        for metric, value in original.items()
    }


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
    the objective, latency by its median, which a busy moment of the machine moves less than the tail."""
    missed, costs = 0.0, 0.0
    for limit in budget.limits:
        gap = shortfall(limit, Measured(metrics, {}, {}), scale.original)
        if limit.is_quality:
            missed = max(missed, gap - scale.noise[limit.metric] / 2)
        else:
            costs = max(costs, gap - 0.1)
    return missed, costs, budget.loss({**metrics, "p99_ms": metrics["p50_ms"]})

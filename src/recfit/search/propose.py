"""Which recipe next: single techniques first, then pairs and chains grown from the survivors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import zip_longest

from recfit.measure.statistics import interval
from recfit.search.budget import Budget, Measured, shortfall
from recfit.search.recipe import Recipe
from recfit.search.study import Candidate, Study
from recfit.techniques import Context, Technique, available

# How many survivors are extended, and the share of the search that goes to single techniques.
PARENTS = 8
SINGLES_SHARE = 0.6


def singles(context: Context, wanted: Sequence[str]) -> list[Recipe]:
    """Every technique alone: what costs no training first, then the variants of each technique in turn."""
    groups = [variants(context) for variants in available(wanted)]
    turns = [step for turn in zip_longest(*groups) for step in turn if step is not None]
    return [Recipe((step,)) for step in sorted(turns, key=lambda step: step.trains)]


def proposals(
    study: Study, budget: Budget, context: Context, wanted: Sequence[str], spent: Callable[[], float]
) -> Iterator[Recipe]:
    """Recipes the study does not know yet, the most promising first, until nothing is left to try.

    It looks at the study again before each proposal, so what was just measured steers what comes next. `spent` is the
    share of the search's limits that is used up; singles stop in time to leave room for chains.
    """
    first = singles(context, wanted)
    for recipe in first:
        if spent() >= SINGLES_SHARE:
            break
        if recipe.id not in study.candidates:
            yield recipe
    steps = [recipe.steps[0] for recipe in first]
    while (child := _best_child(study, budget, steps)) is not None:
        yield child


def _best_child(study: Study, budget: Budget, steps: Sequence[Technique]) -> Recipe | None:
    """The untried extension of a survivor that promises most."""
    parents = [found for found in ranked(study, budget) if found.recipe][:PARENTS]
    promises: list[tuple[tuple[float, float], str, Recipe]] = []
    for parent in parents:
        recipe = Recipe.from_json(parent.recipe)
        for step in _fitting(recipe, steps, study):
            child = recipe.then(step)
            if child.id not in study.candidates:
                promises.append((_rank(study, budget, expected(study, parent, step)), child.id, child))
    return min(promises)[2] if promises else None


def _fitting(recipe: Recipe, steps: Sequence[Technique], study: Study) -> list[Technique]:
    """Steps that can follow `recipe`: of a family it does not have yet, and not known to fail on the original."""
    last = max(step.order for step in recipe.steps)
    return [
        step for step in steps if step.order > last and step.family not in recipe.families and not _failed(step, study)
    ]


def _failed(step: Technique, study: Study) -> bool:
    alone = study.candidates.get(Recipe((step,)).id)
    return alone is not None and alone.status == "failed"


def expected(study: Study, parent: Candidate, step: Technique) -> dict[str, float]:
    """What `parent` extended by `step` should measure if `step` does to it what it did to the original."""
    original = study.candidates[study.facts["original"]].metrics
    alone = study.candidates.get(Recipe((step,)).id)
    effect = alone.metrics if alone is not None and alone.status == "done" else original
    return {
        metric: value * (effect[metric] / original[metric] if original.get(metric) else 1.0)
        for metric, value in parent.metrics.items()
        if metric in effect
    }


def ranked(study: Study, budget: Budget) -> list[Candidate]:
    """Measured candidates, the most promising parents first."""
    return sorted(study.done(), key=lambda found: _rank(study, budget, found.metrics))


def _rank(study: Study, budget: Budget, metrics: Mapping[str, float]) -> tuple[float, float]:
    """How much quality is missing, beyond the noise of this data; then the objective.

    Speed and memory can still improve down a chain, quality rarely does, so only quality counts as a miss. Latency is
    ranked by its median, which a busy moment of the machine moves less than the tail.
    """
    original = study.measured(study.candidates[study.facts["original"]])
    missed = 0.0
    for limit in budget.limits:
        if limit.is_quality:
            noise = interval(original.users[limit.metric]).half / max(original.metrics[limit.metric], 1e-9)
            missed = max(missed, shortfall(limit, Measured(metrics, {}, {}), original) - noise / 2)
    return max(0.0, missed), budget.loss({**metrics, "p99_ms": metrics["p50_ms"]})

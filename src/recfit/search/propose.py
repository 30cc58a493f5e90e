"""Which recipe next: single techniques first, then pairs and chains grown from the survivors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import zip_longest

from recfit.measure.statistics import interval
from recfit.search.budget import Budget, shortfall
from recfit.search.recipe import Recipe
from recfit.search.study import Candidate, Study
from recfit.techniques import Context, Technique, available

# A survivor is extended by every technique; only the best few are worth more training.
PARENTS = 6
TRAINED_PARENTS = 2
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
    """The first untried extension of the best survivors."""
    parents = ranked(study, budget)
    trainable = [found.id for found in parents if found.recipe][:TRAINED_PARENTS]
    for parent in parents[:PARENTS]:
        recipe = Recipe.from_json(parent.recipe)
        for step in _fitting(recipe, steps, study):
            child = recipe.then(step)
            if child.id not in study.candidates and (not step.trains or parent.id in trainable):
                return child
    return None


def _fitting(recipe: Recipe, steps: Sequence[Technique], study: Study) -> list[Technique]:
    """Steps of families the recipe does not have yet that can follow it; those that cost no training first."""
    last = max((step.order for step in recipe.steps), default=0)
    fits = [
        step for step in steps if step.family not in recipe.families and step.order > last and not _failed(step, study)
    ]
    return sorted(fits, key=lambda step: step.trains)


def _failed(step: Technique, study: Study) -> bool:
    alone = study.candidates.get(Recipe((step,)).id)
    return alone is not None and alone.status == "failed"


def ranked(study: Study, budget: Budget) -> list[Candidate]:
    """Measured candidates, the most promising parents first: limits missed by least, then the objective.

    Speed and memory can still improve down a chain, quality rarely does, so only quality counts as a miss.
    """
    original = study.measured(study.candidates[study.facts["original"]])
    floors = [limit for limit in budget.limits if limit.is_quality]

    def rank(found: Candidate) -> tuple[float, float]:
        measured = study.measured(found)
        missed = max((shortfall(limit, measured, original) for limit in floors), default=0.0)
        noise = interval(original.users[budget.quality_metric]).half / max(
            original.metrics[budget.quality_metric], 1e-9
        )
        return max(0.0, missed - noise / 2), budget.loss(found.metrics)

    return sorted(study.done(), key=rank)

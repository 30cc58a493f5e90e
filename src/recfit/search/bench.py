"""What the steps of one study share."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from recfit import config, data
from recfit.data.splits import parted
from recfit.data.splits import split as split_by
from recfit.measure import Plan
from recfit.options import from_options
from recfit.search.budget import Budget
from recfit.search.build import Workshop
from recfit.search.evaluate import Gates, Limits
from recfit.search.study import Study
from recfit.techniques import available
from recfit.training import VALIDATION_QUERIES, Fit
from recfit.types import IntArray, Interactions, Split

Say = Callable[[str], None]
# Share of the quality limit that a quarter of a training has to reach.
HOPELESS = 0.25
# Share of the validation users whose answers end trainings. The choice is made by the others: a training that stops
# where it is best for some users looks better on them than it is.
STOPPING = 0.3
# Of [model.fit], what any training can have, whatever its batches and epochs count.
ANYONES = ("seed", "threads", "precision", "max_minutes", "data_fraction")


@dataclass(frozen=True)
class Bench:
    """Settings, data, study, budget; `say` takes a line for the person who waits.

    The validation requests of `split` are those that candidates are measured with and chosen by; those of
    `workshop.split` come from other users and end trainings.
    """

    settings: config.Settings
    interactions: Interactions
    split: Split
    study: Study
    workshop: Workshop
    budget: Budget
    plan: Plan
    say: Say

    @property
    def popularity(self) -> IntArray:
        """Training events of every item."""
        return np.bincount(self.split.train.item, minlength=self.split.n_items).astype(np.int64)

    @property
    def minutes_spent(self) -> float:
        """What the candidates of the study took so far, over all runs."""
        return self.minutes_of(self.study.candidates)

    def minutes_of(self, ids: Iterable[str]) -> float:
        """What these candidates took, those among them that the study knows."""
        known = self.study.candidates
        return sum(sum(known[id].seconds.values()) for id in ids if id in known) / 60

    def gates(self) -> Gates:
        """The gates, with the time that is left of `[search] max_minutes` (one minute at least)."""
        search = self.settings.search
        left = max(1.0, search.max_minutes - self.minutes_spent) * 60
        limits = Limits(search.memory_gb, time.monotonic() + left)
        return Gates(
            self.study, self.budget, self._workshop(), limits, self.plan, self.split.validation, self.popularity
        )

    def _workshop(self) -> Workshop:
        """The workshop whose trainings end early where a quarter of them leaves the quality far below every limit on it."""
        floors = [limit for limit in self.budget.limits if limit.metric == "ndcg@10"]
        original = self.study.candidates.get(self.study.facts.get("original", ""))
        if original is None or not floors:
            return self.workshop
        hopeless = HOPELESS * min(limit.absolute(original.metrics) for limit in floors)
        fit = dataclasses.replace(self.workshop.fit, hopeless=hopeless)
        afresh = self.workshop.afresh and dataclasses.replace(self.workshop.afresh, hopeless=hopeless)
        return dataclasses.replace(self.workshop, fit=fit, afresh=afresh)


def prepare(settings: config.Settings | str | Path, say: Say = print) -> Bench:
    """Read the data, split it, open the study."""
    if not isinstance(settings, config.Settings):
        settings = config.load(settings)
    search = settings.search
    budget = budget_of(settings.budget)
    fit = fit_settings(search.threads, model=settings.model.fit, search=search.fit)
    anyones = {name: value for name, value in settings.model.fit.items() if name in ANYONES}
    trained_here = settings.model.path is None  # else [model.fit] can only be for students
    afresh = fit_settings(search.threads, model=anyones, search=search.fit) if trained_here else fit
    available(search.techniques)  # a name that is none is refused now
    interactions = data.from_config(settings.data)
    learning, choosing = views(split_by(interactions, settings.data.split))
    say(
        f"{interactions.name}: {len(interactions):,} events, {choosing.n_users:,} users, {choosing.n_items:,} items; "
        f"{choosing.protocol}; requests: {len(learning.validation):,} to end trainings, "
        f"{len(choosing.validation):,} to choose, {len(choosing.test):,} to test"
    )
    study = Study(Path(search.directory))
    folders = study.path("original"), study.path("models")
    workshop = Workshop(
        learning,
        *folders,
        fit,
        search.threads,
        progress=True,
        keep_histories=settings.serve.histories == "bundle",
        serve_threads=search.serve_threads,
        sessions=settings.serve.session_mb > 0,
        afresh=afresh,
    )
    plan = Plan(requests=search.requests, rate=search.rate)
    return Bench(settings, interactions, choosing, study, workshop, budget, plan, say)


def views(split: Split) -> tuple[Split, Split]:
    """`split` to train with and to choose by: its validation users are parted, the rest is shared."""
    stopping, choosing = parted(split.validation, STOPPING, VALIDATION_QUERIES)
    return dataclasses.replace(split, validation=stopping), dataclasses.replace(split, validation=choosing)


def budget_of(settings: config.Budget) -> Budget:
    """The budget that `[budget]` states."""
    values = asdict(settings)
    return Budget.of(values.pop("limits"), **values)


def fit_settings(threads: int, **tables: Mapping[str, Any]) -> Fit:
    """Training settings out of `model=[model.fit]`, `search=[search.fit]`, later ones first; a wrong one names its table and
    what is allowed."""
    for name, values in tables.items():
        from_options(Fit, values, f"{name}.fit")
    merged = {key: value for values in tables.values() for key, value in values.items()}
    return from_options(Fit, {"threads": threads, **merged}, "fit")

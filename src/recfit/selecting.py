"""Answers from a finished study: another budget, another choice, no training and no measuring."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from recfit.search.budget import Budget, Limit, parse_limit
from recfit.search.select import Choice, choose
from recfit.search.study import LEDGER, Candidate, Study
from recfit.types import ConfigError


def open_study(directory: Path) -> Study:
    """The study in `directory`, which must have its original measured."""
    if not (directory / LEDGER).is_file():
        raise ConfigError(f"{directory} holds no study (no {LEDGER}); `recfit optimize` makes one")
    study = Study(directory)
    if "eager" not in study.facts:
        raise ConfigError(f"the study in {directory} has no measured original yet; run `recfit optimize` again")
    return study


def budget_of(study: Study, limits: Sequence[str], objective: str | None, accept_undecided: bool) -> Budget:
    """The study's own budget; with `limits` (`metric=value` texts) those instead of its own."""
    stored = dict(study.facts["budget"])
    own = Budget.of(stored.pop("limits"), **stored)
    changes = replace(
        own, accept_undecided=own.accept_undecided or accept_undecided, objective=objective or own.objective
    )
    if not limits:
        return changes
    return replace(changes, limits=tuple(_limit(text) for text in limits))


def _limit(text: str) -> Limit:
    metric, sign, value = text.partition("=")
    if not sign:
        raise ConfigError(f"--limit {text!r} is not METRIC=VALUE, such as p99_ms=2 or ndcg@10=99%")
    return parse_limit(metric.strip(), value)


def reselect(
    directory: Path, limits: Sequence[str], objective: str | None, accept_undecided: bool
) -> tuple[Study, Budget, Choice]:
    """The study, the budget asked for, and the choice it leads to."""
    study = open_study(directory)
    budget = budget_of(study, limits, objective, accept_undecided)
    return study, budget, choose(study, budget)


def left_undecided(choice: Choice, budget: Budget) -> str:
    """What was not chosen because these users cannot tell whether it holds the budget, and what can be done; else nothing."""
    found = choice.undecided
    if found is None:
        return ""
    states = choice.verdicts[found.id]
    limits = ", ".join(limit.text() for limit in budget.limits if states[limit.metric] == "undecided")
    return (
        f"better, but these users cannot tell whether it holds {limits}: {line(found, budget)}\n"
        "accept_undecided = true (--accept-undecided) takes it; a limit that is less tight, or more users, may decide it"
    )


def line(found: Candidate, budget: Budget) -> str:
    """One candidate for the terminal."""
    if found.status != "done":
        return f"{found.name}: {found.status} at {found.stage}: {found.reason}"
    metrics = found.metrics
    return (
        f"{found.name}: {budget.quality_metric} {metrics[budget.quality_metric]:.4f}, p99 {metrics['p99_ms']:.3f} ms, "
        f"{metrics['memory_mb']:.0f} MB resident, {metrics['bundle_mb']:.2f} MB on disk{_left_out(metrics)}"
    )


def _left_out(metrics: Mapping[str, float]) -> str:
    """What a first stage or an index keeps from the deciding stage, where it keeps anything from it."""
    texts = {"recall_of_stage_one": "of the targets reach stage two", "overlap_with_exact": "of the exact list served"}
    return "".join(f", {metrics[name]:.1%} {text}" for name, text in texts.items() if name in metrics)

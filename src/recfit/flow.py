"""One `optimize` run, from interactions and a budget to a chosen bundle. Every step can be interrupted and resumed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recfit import config, report
from recfit.report.assemble import assemble
from recfit.search.bench import Bench, Say, prepare
from recfit.search.confirm import confirmed
from recfit.search.final import deliver
from recfit.search.original import compared, known_or_run, measured_original, reachable, yardsticks
from recfit.search.propose import proposals, singles
from recfit.search.select import require
from recfit.search.study import Candidate
from recfit.selecting import left_undecided
from recfit.techniques import Context


@dataclass(frozen=True)
class Outcome:
    """What `optimize` found: the study, the choice, the delivered bundle, the report page and the final table."""

    study: Path
    chosen: Candidate
    bundle: Path
    report: Path
    final: Mapping[str, Any]


def optimize(settings: config.Settings | str | Path, say: Say = print) -> Outcome:
    """Measure every way of paying for the budget and deliver the best. Raises `Infeasible` where none holds it.

    The same call resumes an interrupted run and repeats no finished work. Where nothing is feasible, the study and
    the report are there all the same.
    """
    bench = prepare(settings, say)
    measured_original(bench)
    compared(bench)
    if reachable(bench):
        explore(bench)
    study = bench.study
    choice = confirmed(bench)
    if choice.chosen is not None:
        deliver(bench, choice.chosen)
        if undecided := left_undecided(choice, bench.budget):
            bench.say(undecided)
    page = study.path("report.html")
    report.write(assemble(study, bench.budget, choice), page)
    chosen = require(choice)
    return Outcome(study.directory, chosen, study.path("bundle"), page, study.facts["final"])


def explore(bench: Bench) -> None:
    """Propose, build and measure candidates until a limit of `[search]` is reached or nothing is left to try."""
    search, study = bench.settings.search, bench.study
    original = study.candidates[study.facts["original"]].metrics
    tolerance = bench.budget.tolerance(original)
    context = Context(bench.split, bench.workshop.served(), bench.workshop.fit, tolerance=tolerance)
    before = bench.minutes_of(yardsticks(bench))
    minutes = max(search.max_minutes - before, 1e-9)

    def spent() -> float:
        return max(len(study.candidates) / search.max_candidates, (bench.minutes_spent - before) / minutes)

    for proposal in proposals(study, bench.budget, context, singles(context, search.techniques), spent):
        if spent() >= 1:
            full = len(study.candidates) >= search.max_candidates
            ended = f"max_candidates = {search.max_candidates}" if full else f"max_minutes = {search.max_minutes:g}"
            bench.say(f"search: ended by [search] {ended}")
            break
        known_or_run(bench, proposal.recipe, gated=proposal.gated)

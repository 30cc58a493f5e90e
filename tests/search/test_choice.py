"""One rule of choice, said twice: by the search and by the page of its report, which both have to answer these cases."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from made_study import base_quality, done, step, worse
from playwright.sync_api import Browser, Page

from recfit.report import asset
from recfit.report.assemble import assemble
from recfit.report.schema import check
from recfit.search.budget import OBJECTIVES, Budget
from recfit.search.select import choose, frontier
from recfit.search.study import Study

BASE = base_quality()
# The page's own answer, without the verdicts that the search gave.
ANSWER = """([report, limits]) => {
  const candidates = report.candidates.map(({ verdicts, ...candidate }) => candidate);
  const { objective, accept_undecided: tolerant } = report.budget;
  const { chosen, nearest } = select(candidates, limits ?? startLimits(report), objectiveOf(report, objective), tolerant);
  return (chosen ?? nearest.candidate).id;
}"""


@pytest.fixture(scope="module")
def page(browser: Browser) -> Iterator[Page]:
    page = browser.new_page()
    page.add_script_tag(content="".join(asset(f"{name}.js") for name in ("format", "choice", "limits")))
    yield page
    page.close()


def by_search(study: Study, budget: Budget, _: Page) -> str:
    found = choose(study, budget)
    if found.chosen is not None:
        return found.chosen.id
    assert found.nearest is not None
    return found.nearest.candidate.id


def by_page(study: Study, budget: Budget, page: Page) -> str:
    report = check(assemble(study, budget, choose(study, budget)))
    return page.evaluate(ANSWER, [report, None])


def row(id: str, quality: float, p99: float, *, high: float | None = None, steps: int = 1, **others: float) -> Any:
    """A candidate that keeps this share of the hits; `high` is the upper end of its p99's interval."""
    found, users = done(id, worse(BASE, quality), p99, *[step("prune", keep=at) for at in range(steps)], **others)
    return found if high is None else dataclasses.replace(found, intervals={"p99_ms": (p99 * 0.99, high)}), users


FAST = row("fast", 0.9, 1.0)
SIZES = [row("large", 1.0, 1.0), row("small", 1.0, 1.03, bundle_mb=1.0)]
EXACT = [row("worse", 0.9, 1.0), row("long", 1.0, 1.0, steps=2), row("short", 1.0, 1.0)]
THRIFT = [
    row("lean", 0.9, 2.0, memory=100.0, core_hours_per_million=1.0),
    row("good", 1.0, 2.0, memory=100.9, core_hours_per_million=1.04),
    row("best", 1.0, 1.0, memory=102.0, core_hours_per_million=1.06),
]
LIMIT = [row("inside", 0.97, 1.0, memory=100.0), row("beyond", 1.0, 1.0, memory=100.5)]
CASES: dict[str, tuple[list[Any], Budget, str]] = {
    "equals go to quality, then to the shorter recipe": (EXACT, Budget(), "short"),
    "so they do where quality is the objective": (EXACT, Budget(objective="quality"), "short"),
    "a tie with the fastest goes to quality": ([FAST, row("good", 1.0, 1.04)], Budget(), "good"),
    "beyond the band there is none": ([FAST, row("good", 1.0, 1.06)], Budget(), "fast"),
    "a narrow interval makes a narrow tie": (
        [row("fast", 0.9, 1.0, high=1.01), row("good", 1.0, 1.04)], Budget(), "fast",
    ),
    "an endless interval makes none wider": (
        [row("fast", 0.9, 1.0, high=math.inf), row("good", 0.95, 1.04), row("slow", 1.0, 1.06)], Budget(), "good",
    ),
    "memory has a band": (THRIFT, Budget(objective="memory"), "good"),
    "cost has a band, whatever the price": (THRIFT, Budget(objective="cost", price=7.0), "good"),
    "quality has none, but of one quality the smaller bundle": (THRIFT, Budget(objective="quality"), "good"),
    "of ties of one quality the smaller bundle": (SIZES, Budget(), "small"),
    "of one size the faster": ([*SIZES, row("alike", 1.0, 1.02, bundle_mb=1.005)], Budget(), "alike"),
    "a tie breaks no limit on p99's choice": (LIMIT, Budget.of({"memory_mb": 100.2}), "inside"),
    "a tie breaks no limit on memory's choice": (LIMIT, Budget.of({"memory_mb": 100.2}, objective="memory"), "inside"),
    "a limit that both hold leaves the tie": (LIMIT, Budget.of({"memory_mb": 101}), "beyond"),
    "of two misses alike the better in the objective": (
        [row("slow", 1.0, 1.1), row("fast", 0.9, 1.0)], Budget.of({"bundle_mb": 0.1}), "fast",
    ),
}  # fmt: skip


@pytest.mark.parametrize("asked", [by_search, by_page])
@pytest.mark.parametrize("case", CASES)
def test_the_rule(make: Callable[..., Study], page: Page, case: str, asked: Callable[..., str]) -> None:
    rows, budget, wanted = CASES[case]
    assert asked(make(*rows), budget, page) == wanted


@pytest.fixture
def close(make: Callable[..., Study]) -> Study:
    """Sixty candidates of few qualities, many of them tied in something."""
    draws = np.random.default_rng(0).uniform([1.0, 100.0, 1.0, 0.5], [1.4, 104.0, 1.1, 0.6], (60, 4))
    names = ("memory", "bundle_mb", "core_hours_per_million")
    return make(
        *[
            row(f"c{at}", (0.9, 0.95, 1.0)[at % 3], p99, **dict(zip(names, costs, strict=True)))
            for at, (p99, *costs) in enumerate(draws.tolist())
        ]
    )


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_no_choice_is_dominated(close: Study, objective: str) -> None:
    budget = Budget(objective=objective)
    chosen = choose(close, budget).chosen
    assert chosen in frontier(close.done(), budget)
    if objective != "quality":
        assert chosen != min(close.done(), key=lambda found: budget.loss(found.metrics)), "the draws have no tie"


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("metric", ["p99_ms", "memory_mb"])
def test_a_moved_limit_leads_the_page_to_what_the_search_would_choose(
    close: Study, page: Page, objective: str, metric: str
) -> None:
    free = Budget(objective=objective)
    report = check(assemble(close, free, choose(close, free)))
    values = sorted(found.metrics[metric] for found in close.done())
    for bound in values[5:60:6]:
        limit = {"metric": metric, "op": "<=", "bound": bound, "budget": None, "relative": False}
        wanted = by_search(close, Budget.of({metric: bound}, objective=objective), page)
        assert page.evaluate(ANSWER, [report, [limit]]) == wanted

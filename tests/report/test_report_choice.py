"""The page's rules of choice, called as functions in a browser: verdicts, selection, frontier, ladder, numbers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, Page

from recfit.report import asset

FLOOR = {"metric": "ndcg@10", "op": ">=", "bound": 0.10, "budget": None, "relative": True}
CEILING = {"metric": "p99_ms", "op": "<=", "bound": 2.0, "budget": None, "relative": False}


@pytest.fixture(scope="module")
def page(browser: Browser) -> Iterator[Page]:
    page = browser.new_page()
    page.add_script_tag(content=asset("format.js") + asset("choice.js") + asset("draw.js"))
    yield page
    page.close()


def candidate(name: str, quality: float | None, p99: float | None, **more: Any) -> dict[str, Any]:
    metrics = {"ndcg@10": quality, "p99_ms": p99}
    return {"id": name, "name": name, "steps": [], "status": "done", "frontier": False, "metrics": metrics} | more


def paired(mean: float, low: float | None, high: float | None) -> dict[str, Any]:
    return {"ndcg@10": {"mean": mean, "low": low, "high": high}}


def select(
    page: Page, rows: list[dict[str, Any]], limits: list[dict[str, Any]], metric: str, tolerant: bool = False
) -> Any:
    objective = {"metric": metric, "quality": "ndcg@10", "bands": {"p99_ms": 0.05}}
    return page.evaluate("([a, b, c, d]) => select(a, b, c, d)", [rows, limits, objective, tolerant])


@pytest.mark.parametrize(
    ("row", "limit", "answer"),
    [
        (candidate("a", 0.11, 1.0), FLOOR, "held"),
        (candidate("a", 0.09, 1.0), FLOOR, "broken"),
        (candidate("a", 0.10, 2.0), FLOOR, "held"),
        (candidate("a", 0.10, 2.0), CEILING, "held"),
        (candidate("a", 0.10, 2.01), CEILING, "broken"),
        (candidate("a", None, 1.0), FLOOR, "missing"),
        (candidate("a", 0.105, 1.0, difference=paired(-0.005, -0.011, 0.001)), FLOOR, "undecided"),
        (candidate("a", 0.105, 1.0, difference=paired(-0.005, -0.009, -0.001)), FLOOR, "held"),
        (candidate("a", 0.098, 1.0, difference=paired(-0.005, -0.006, -0.004)), FLOOR, "broken"),
        (candidate("a", 0.105, 1.0, difference=paired(-0.005, None, None)), FLOOR, "undecided"),
        (candidate("a", 0.1, 1.9, intervals={"p99_ms": [1.8, 2.2]}), CEILING, "undecided"),
        (candidate("a", 0.105, 1.0, intervals={"ndcg@10": [0.09, 0.12]}), FLOOR | {"relative": False}, "undecided"),
        (candidate("a", 0.09, 1.0, verdicts={"ndcg@10": "held"}), FLOOR | {"budget": 0.10}, "held"),
        (candidate("a", 0.09, 1.0, verdicts={"ndcg@10": "held"}), FLOOR | {"budget": 0.08}, "broken"),
    ],
)
def test_verdict(page: Page, row: dict[str, Any], limit: dict[str, Any], answer: str) -> None:
    assert page.evaluate("([row, limit]) => verdict(row, limit)", [row, limit]) == answer


def test_select_takes_the_best_feasible(page: Page) -> None:
    rows = [
        candidate("slow", 0.13, 3.0),
        candidate("good", 0.12, 1.9),
        candidate("fast", 0.11, 0.5),
        candidate("bad", 0.09, 0.1),
    ]
    assert select(page, rows, [FLOOR, CEILING], "ndcg@10")["chosen"]["id"] == "good"
    assert select(page, rows, [FLOOR, CEILING], "p99_ms")["chosen"]["id"] == "fast"
    assert select(page, rows, [FLOOR | {"bound": None}, CEILING], "p99_ms")["chosen"]["id"] == "bad"
    assert select(page, rows, [FLOOR, CEILING], "p99_ms")["feasible"] == 2


def test_select_never_takes_what_was_not_measured_to_the_end(page: Page) -> None:
    fallen = [candidate("s", 0.2, 0.1, status="screened out"), candidate("f", 0.2, 0.1, status="failed")]
    assert select(page, fallen, [], "ndcg@10") == {"chosen": None, "feasible": 0, "nearest": None}


def test_undecided_counts_only_when_tolerant(page: Page) -> None:
    rows = [candidate("maybe", 0.105, 1.0, difference=paired(-0.005, -0.011, 0.001))]
    assert select(page, rows, [FLOOR], "ndcg@10")["chosen"] is None
    assert select(page, rows, [FLOOR], "ndcg@10", tolerant=True)["chosen"]["id"] == "maybe"


def test_the_nearest_miss_has_the_smallest_worst_shortfall(page: Page) -> None:
    rows = [
        candidate("far", 0.05, 1.0),
        candidate("near", 0.099, 2.2),
        candidate("slow", 0.12, 2.5),
        candidate("none", None, 1.0),
    ]
    nearest = select(page, rows, [FLOOR, CEILING], "ndcg@10")["nearest"]
    assert nearest["candidate"]["id"] == "near"
    assert [miss["limit"]["metric"] for miss in nearest["misses"]] == ["p99_ms", "ndcg@10"]
    assert nearest["misses"][0]["share"] == pytest.approx(0.1)


def test_the_frontier_line_only_climbs(page: Page) -> None:
    points = [("a", 0.10, 1.0), ("b", 0.09, 2.0), ("c", 0.12, 3.0), ("d", 0.12, 4.0), ("e", 0.08, 0.5)]
    rows = [candidate(*point) for point in points]
    line = page.evaluate("rows => frontierLine(rows, 'ndcg@10').map((row) => row.id)", rows)
    assert line == ["e", "a", "c"]


def test_a_ladder_takes_settings_in_any_order_and_no_sampled_quality(page: Page) -> None:
    first, second = {"technique": "a", "settings": {"x": 1, "y": 2}}, {"technique": "b", "settings": {}}
    turned = {"technique": "a", "settings": {"y": 2, "x": 1}}
    rows = [
        candidate("root", 0.12, 4.0),
        candidate("one", 0.01, 2.0, steps=[turned], status="screened out"),
        candidate("two", 0.11, 1.0, steps=[first, second]),
    ]
    rungs = "([rows, metric]) => ladder(rows, rows[2], metric).map((rung) => [rung.candidate.id, rung.steps.length])"
    assert page.evaluate(rungs, [rows, "p99_ms"]) == [["root", 0], ["one", 1], ["two", 1]]
    assert page.evaluate(rungs, [rows, "ndcg@10"]) == [["root", 0], ["two", 2]]


@pytest.mark.parametrize(
    ("call", "text"),
    [
        ("formatValue('p99_ms', 0.31847)", "0.318 ms"),
        ("formatValue('p99_ms', 12)", "12.0 ms"),
        ("formatValue('memory_mb', 1234.5)", "1,230 MB"),
        ("formatValue('ndcg@10', 0.113249)", "0.1132"),
        ("formatValue('qps_batch', 32)", "32"),
        ("formatValue('pss_mb', 61.234)", "61.2 MB"),
        ("formatValue('core_hours_per_million', 0.0137)", "0.0137 h"),
        ("formatValue('p99_ms', null)", "–"),
        ("formatGain('p99_ms', 1, 12.34)", "12.3× faster"),
        ("formatGain('memory_mb', 130, 100)", "1.30× larger"),
        ("formatGain('qps', 200, 100)", "2.00× more"),
        ("formatGain('ndcg@10', 0.0992, 0.1)", "99.2 %"),
        ("formatGain('p99_ms', 1, null)", "–"),
        ("formatSigned('ndcg@10', -0.00123)", "−0.0012"),
        ("formatSigned('ndcg@10', 0.00001)", "0.0000"),
        ("formatSigned('ndcg@10', null)", "–"),
        ("formatSeconds(3.21)", "3.2 s"),
        ("formatSeconds(59.9)", "59.9 s"),
        ("formatSeconds(934)", "15 min 34 s"),
        ("formatSeconds(3725)", "1 h 02 min"),
        ("metricInfo('ndcg@10').label", "NDCG@10"),
        ("metricInfo('recall@20').label", "Recall@20"),
        ("metricInfo('toString').label", "ToString"),
    ],
)
def test_numbers_read_well(page: Page, call: str, text: str) -> None:
    assert page.evaluate(call) == text


@pytest.mark.parametrize(
    ("call", "ticks"),
    [
        ("logTicks(0.3, 12)", [0.5, 1, 2, 5, 10]),
        ("logTicks(0.01, 90)", [0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30]),
        ("linearTicks(0, 1)", [0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        ("linearTicks(5, 5)", [5]),
    ],
)
def test_ticks_are_round(page: Page, call: str, ticks: list[float]) -> None:
    assert page.evaluate(call) == pytest.approx(ticks)

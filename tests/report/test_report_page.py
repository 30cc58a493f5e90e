"""The page in a real browser: sliders, choice, table, charts; no console message, no request but the file itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page
from report_example import CHOSEN, MEASURED, QUALITY, id_of

from recfit.report import write

HOSTILE = "</script><img src=x onerror='window.hacked=1'> <b>bold</b>"
Open = Callable[..., Page]


@pytest.fixture
def opened(browser: Browser, tmp_path: Path) -> Iterator[Open]:
    """Opens a report as a page; at the end nothing may have been said on the console or asked of the network."""
    said: list[str] = []
    asked: list[str] = []
    contexts = []

    def open_page(report: dict[str, Any], width: int = 1400, **options: Any) -> Page:
        path = tmp_path / "report.html"
        write(report, path)
        contexts.append(browser.new_context(viewport={"width": width, "height": 900}, offline=True, **options))
        page = contexts[-1].new_page()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(path.as_uri())
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert said == []
    assert {url for url in asked if not url.startswith("data:")} == {(tmp_path / "report.html").as_uri()}


def chosen(page: Page) -> list[str | None]:
    """The chosen candidate according to the table and according to the scatter."""
    row = page.locator("tr.candidate[aria-current=true]")
    point = page.locator(".point.chosen")
    return [found.get_attribute("data-id") if found.count() else None for found in (row, point)]


def slide(page: Page, metric: str, position: int) -> None:
    page.locator(f"[id='limit-{metric}']").evaluate(
        "(input, at) => { input.value = at; input.dispatchEvent(new Event('input', { bubbles: true })); }", position
    )


def feasible(page: Page) -> int:
    return int(page.locator(".choice .note").inner_text().split()[0])


def names(page: Page) -> list[str | None]:
    return [row.get_attribute("data-id") for row in page.locator("tr.candidate").all()]


def test_the_page_opens_with_the_choice_of_the_search(report: dict[str, Any], opened: Open) -> None:
    page = opened(report)
    assert chosen(page) == [id_of(CHOSEN)] * 2
    assert page.locator("h1").inner_text() == (
        "distill → prune → quantize: 17.0× faster at p99 and 3.20× smaller in memory than PyTorch eager, NDCG@10 2.9 % lower"
    )
    assert "5.54× faster than B" in page.locator(".tile").nth(1).inner_text()
    assert "2 of 24 measured candidates hold every limit" in page.locator(".choice").inner_text()


def test_the_page_agrees_with_the_search_without_being_told(report: dict[str, Any], opened: Open) -> None:
    page = opened(report)
    for candidate in report["candidates"]:
        candidate.pop("verdicts", None)
    found = page.evaluate(
        "report => select(report.candidates, startLimits(report), objectiveOf(report, 'quality')).chosen.id", report
    )
    assert found == report["chosen"]


def test_moving_a_slider_changes_the_chosen_row_and_back(report: dict[str, Any], opened: Open) -> None:
    page = opened(report)
    slider = page.get_by_role("slider", name="p99 latency")
    slider.focus()
    for _ in range(30):
        page.keyboard.press("ArrowRight")
    assert chosen(page) == [id_of("distill int8")] * 2
    assert "Would be chosen" in page.locator(".choice").inner_text()
    assert slider.get_attribute("aria-valuetext") == page.locator("output[for=limit-p99_ms]").inner_text()
    page.get_by_role("button", name="Back to the budget").click()
    assert chosen(page) == [id_of(CHOSEN)] * 2
    assert page.locator("output[for=limit-p99_ms]").inner_text() == "≤ 0.590 ms"


def test_the_loose_end_of_a_slider_means_no_limit(report: dict[str, Any], opened: Open) -> None:
    page = opened(report)
    for metric, end in [(QUALITY, 0), ("p99_ms", 200), ("memory_mb", 200)]:
        slide(page, metric, end)
    assert page.locator("output[for=limit-p99_ms]").inner_text() == "no limit"
    assert f"{len(MEASURED)} of {len(MEASURED)}" in page.locator(".choice").inner_text()
    metrics = {row["id"]: row["metrics"] for row in report["candidates"] if row["status"] == "done"}
    best = max(metrics, key=lambda id: (metrics[id][QUALITY], -metrics[id]["p99_ms"]))
    assert chosen(page)[0] == best


def test_a_limit_that_the_budget_does_not_have_can_be_set(report: dict[str, Any], opened: Open) -> None:
    page = opened(report)
    for metric, end in [(QUALITY, 0), ("p99_ms", 200), ("memory_mb", 200)]:
        slide(page, metric, end)
    slide(page, "bundle_mb", 20)
    assert chosen(page)[0] == id_of("simplify reduce32 int8")


def test_nothing_feasible_is_said_with_the_nearest_miss(report: dict[str, Any], opened: Open) -> None:
    page = opened(report)
    slide(page, "memory_mb", 0)
    text = page.locator(".choice").inner_text()
    assert "Nothing feasible" in text
    assert "Nearest miss: simplify(layers=1)" in text
    assert "NDCG@10 is 0.1010, broken against ≥ 0.1075" in text
    assert chosen(page) == [None, None]
    assert page.locator(".ring.miss").count() == 1


def test_another_objective_makes_another_choice(report: dict[str, Any], opened: Open) -> None:
    page = opened(report)
    page.get_by_label("Best means").select_option("latency")
    assert chosen(page) == [id_of(f"{CHOSEN} cache")] * 2


def test_undecided_limits_count_only_when_accepted(report: dict[str, Any], opened: Open) -> None:
    page = opened(report)
    slide(page, "p99_ms", 90)
    slide(page, QUALITY, 199)
    assert "Nothing feasible" in page.locator(".choice").inner_text()
    slide(page, QUALITY, 150)
    before = feasible(page)
    page.get_by_label("Accept limits that are undecided").check()
    assert feasible(page) > before


def test_an_infeasible_search_is_reported_as_such(report: dict[str, Any], opened: Open) -> None:
    text = "p99_ms <= 0.1, the nearest has 0.579 (broken)"
    report |= {"chosen": None, "final": None, "nearest": {"id": id_of(CHOSEN), "binding": "p99_ms", "text": text}}
    report["budget"]["limits"][1]["bound"] = 0.1
    for candidate in report["candidates"]:
        candidate.get("verdicts", {})["p99_ms"] = "broken"
    page = opened(report)
    assert page.locator("h1").inner_text() == "Nothing measured holds the whole budget"
    assert page.locator("header .lead").inner_text() == f"The nearest is {nearest_name(report)}. What binds: {text}."
    assert text in page.locator(".choice").inner_text()
    assert page.locator(".chosen-label").text_content() == "nearest miss: distill → prune → quantize"


def nearest_name(report: dict[str, Any]) -> str:
    return next(row["name"] for row in report["candidates"] if row["id"] == report["nearest"]["id"])


def test_a_choice_that_breaks_its_limit_in_the_last_run_shows_it(report: dict[str, Any], opened: Open) -> None:
    report["final"] |= {"verdicts": {"p99_ms": "broken"}, "bounds": {"p99_ms": 0.6}}
    report["final"]["rows"][2]["metrics"]["p99_ms"] = 0.61
    page = opened(report)
    assert page.locator(".tile").nth(1).locator(".badge").inner_text() == "broken"
    assert "budget ≤ 0.600 ms" in page.locator(".tile").nth(1).inner_text()
    assert page.locator(".tile").nth(2).locator(".badge").inner_text() == "held"


def test_a_simple_model_that_beats_the_original_is_said_first(report: dict[str, Any], opened: Open) -> None:
    assert opened(report).locator(".warning").count() == 0
    report["baselines"][0]["metrics"][QUALITY] = 0.12
    assert "does not beat ease (0.1200): its NDCG@10 is 0.1132" in opened(report).locator(".warning").inner_text()


def test_columns_sort_both_ways_with_missing_values_last(report: dict[str, Any], opened: Open) -> None:
    del report["candidates"][5]["metrics"]["p99_ms"]
    page = opened(report)
    head = page.get_by_role("button", name="p99 (ms)")
    values = {row["id"]: row["metrics"].get("p99_ms") for row in report["candidates"]}
    for direction, reverse in [("ascending", False), ("descending", True)]:
        head.click()
        found = [values[name] for name in names(page)]
        assert found == [*sorted((value for value in found if value is not None), reverse=reverse), None]
        assert head.locator("xpath=..").get_attribute("aria-sort") == direction


def test_a_click_on_a_point_selects_its_row(report: dict[str, Any], opened: Open) -> None:
    page = opened(report)
    name = id_of("two_stage")
    page.locator(f".point[data-id='{name}'] .disc").click()
    assert page.locator("tr.candidate.selected").get_attribute("data-id") == name
    assert "two_stage(retriever='als', candidates=200)" in page.locator("tr.detail:visible").inner_text()
    assert page.locator("#waterfall-recipe").input_value() == name
    page.get_by_role("button", name="Show it in the table").click()
    assert page.evaluate("document.activeElement.closest('tr').dataset.id") == name


def test_what_a_cache_answered_and_how_old_it_was_is_said(opened: Open, report: dict[str, Any]) -> None:
    page = opened(report)
    for name, said in (("cache", 1), ("two_stage", 0)):
        page.locator(f".point[data-id='{id_of(name)}'] .disc").click()
        detail = page.locator("tr.detail:visible")
        assert detail.get_by_text("25.0 % of the requests were answered from lists computed ahead").count() == said
    assert page.get_by_role("button", name="From cache").count() == 1


def test_points_are_walked_with_the_keyboard(report: dict[str, Any], opened: Open) -> None:
    page = opened(report)
    page.locator(".point[tabindex='0']").focus()
    page.keyboard.press("ArrowRight")
    following = sorted(MEASURED, key=lambda recipe: row_of(report, recipe)["metrics"]["p99_ms"])
    expected = id_of(following[following.index(CHOSEN) + 1])
    assert page.evaluate("document.activeElement.dataset.id") == expected
    assert page.locator("#tip").is_visible()
    page.keyboard.press("Enter")
    assert page.locator("tr.candidate.selected").get_attribute("data-id") == expected


def row_of(report: dict[str, Any], recipe: str) -> dict[str, Any]:
    return next(row for row in report["candidates"] if row["id"] == id_of(recipe))


def test_the_fallen_are_told_with_reasons_and_can_be_filtered(report: dict[str, Any], opened: Open) -> None:
    page = opened(report)
    rows = page.locator("#fallen-table tbody tr")
    assert not rows.first.is_visible()
    page.get_by_text("The fallen: 7 candidates").click()
    assert "bundle_mb is 13.1, over the limit of 12" in rows.first.inner_text()
    page.get_by_label("Status").select_option("failed")
    assert [row.get_attribute("data-id") for row in rows.all()] == [id_of("reduce two_stage int8")]
    page.get_by_label("Status").select_option("")
    page.get_by_label("Filter by recipe or reason").fill("3.2 UNTRAINED")
    assert [row.get_attribute("data-id") for row in rows.all()] == [id_of("cache rows")]


def test_the_waterfall_tells_each_measured_step(report: dict[str, Any], opened: Open) -> None:
    page = opened(report)
    rows = page.locator("#waterfall-table tbody tr")
    assert [cells(row)[0] for row in rows.all()] == ["3.21", "1.32", "0.934", "0.579"]
    assert cells(rows.last) == ["0.579", "1.61× faster", "5.54× faster"]
    page.get_by_label("Metric").select_option(QUALITY)
    assert cells(rows.last) == ["0.1099", "−0.0004", "−0.0033"]


def test_steps_whose_prefix_was_not_measured_are_told_together(report: dict[str, Any], opened: Open) -> None:
    report["candidates"] = [row for row in report["candidates"] if row["id"] != id_of("distill prune")]
    rows = opened(report).locator("#waterfall-table tbody tr")
    assert [cells(row)[0] for row in rows.all()] == ["3.21", "1.32", "0.579"]
    assert "prune(axis='ffn', keep=0.5)quantize(weights='int8')not measured apart" in rows.last.text_content()


def cells(row: Any) -> list[str]:
    return [cell for cell in row.locator("td.number").all_inner_texts() if cell]


def test_strategies_are_shares_of_the_first(report: dict[str, Any], opened: Open) -> None:
    page = opened(report)
    chart = page.locator("#strategies svg")
    assert "p99 latency: original (A) 100.0 %, original (B) 32.7 %" in (chart.get_attribute("aria-label") or "")
    assert chart.locator("path").count() == 3
    page.get_by_role("button", name="Memory", exact=True).click()
    assert chart.locator("path").count() == 2
    before = chart.locator("path").last.get_attribute("d")
    page.get_by_label("log scale").uncheck()
    assert chart.locator("path").last.get_attribute("d") != before


def test_the_foot_has_protocol_machine_and_search(report: dict[str, Any], opened: Open) -> None:
    page = opened(report)
    foot = page.locator("footer").inner_text()
    for text in ("leave_last(5)", "9f2c1d0e7a44b1c7", "AMD EPYC 7B13", "1 while measuring", "onnxruntime 1.22.0"):
        assert text in foot
    latency = page.locator("#stage-table tbody tr").nth(1)
    assert latency.locator("td").all_inner_texts()[:4] == ["30", "3", "0", "1 min 01 s"]
    assert "slowest" in page.locator("#stage-table tr.slowest").inner_text()
    assert page.locator("#baseline-table tbody th").all_inner_texts()[2:] == ["ease", "als", "popularity"]


def test_hostile_names_are_shown_as_text(report: dict[str, Any], opened: Open) -> None:
    for row in report["candidates"]:
        row |= {"name": HOSTILE + row["id"], "reason": HOSTILE, "families": [HOSTILE]}
        for step in row["steps"]:
            step |= {"text": HOSTILE, "technique": HOSTILE}
    report["data"]["name"] = report["machine"]["cpu"] = report["final"]["text"] = HOSTILE
    page = opened(report)
    page.locator("tr.candidate button").first.click()
    assert page.evaluate("[window.hacked, document.images.length, document.querySelectorAll('b').length]") == [
        None,
        0,
        0,
    ]
    assert page.locator("header .lead").inner_text() == HOSTILE


@pytest.mark.parametrize("keep", [0, 1])
def test_a_report_with_next_to_nothing_still_opens(report: dict[str, Any], opened: Open, keep: int) -> None:
    report["candidates"] = report["candidates"][:keep] + report["candidates"][-1:]
    report |= {"chosen": None, "final": None, "strategies": [], "baselines": [], "smallest_detectable_drop": None}
    report["originals"] = {}
    report["budget"]["limits"] = report["budget"]["limits"] if keep else []
    page = opened(report)
    assert page.locator("h1").inner_text() == "Nothing measured holds the whole budget"
    assert page.locator("tr.candidate").count() == keep


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_contrast(report: dict[str, Any], opened: Open, scheme: str) -> None:
    """WCAG AA: 4.5 for every text colour on both backgrounds."""
    ratios = opened(report, color_scheme=scheme).evaluate(CONTRAST)
    assert min(ratios.values()) >= 4.5, ratios


CONTRAST = """() => {
  const style = getComputedStyle(document.documentElement);
  const linear = (part) => (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4);
  const luminance = (name) => {
    const hex = style.getPropertyValue(name).trim();
    const [r, g, b] = [1, 3, 5].map((at) => linear(parseInt(hex.slice(at, at + 2), 16) / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ratios = {};
  for (const ground of ["--page", "--surface"])
    for (const ink of ["--ink", "--muted", "--accent", "--good", "--bad", "--warn", "--reference", "--orange"]) {
      const [light, dark] = [luminance(ground), luminance(ink)].sort((a, b) => b - a);
      ratios[ink + ground] = (light + 0.05) / (dark + 0.05);
    }
  return ratios;
}"""


@pytest.mark.parametrize("width", [1000, 1300, 1600])
def test_the_page_fits_its_window(report: dict[str, Any], opened: Open, width: int) -> None:
    page = opened(report, width=width)
    assert page.evaluate("document.documentElement.scrollWidth") == width
    assert page.locator("#scatter svg").evaluate("svg => svg.viewBox.baseVal.width === svg.parentNode.clientWidth")


def test_every_control_has_a_name(report: dict[str, Any], opened: Open) -> None:
    page = opened(report)
    unnamed = page.evaluate(
        "[...document.querySelectorAll('input, select, button')]"
        ".filter((node) => !(node.labels?.length || node.textContent.trim() || node.getAttribute('aria-label')))"
        ".map((node) => node.outerHTML)"
    )
    assert unnamed == []

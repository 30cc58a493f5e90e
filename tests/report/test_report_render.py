"""Rendering: one valid, self-contained file; hostile text stays text; what is no report is refused by name."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recfit.report import SCRIPTS, ReportError, render, write

VOID = {"meta", "link"}
HOSTILE = "</script><script>window.hacked = 1</script><!-- {{script}} & \" ' \u2028 <img src=x onerror=hacked()>"


class Page(HTMLParser):
    """Collects the elements and refuses tags that are closed in the wrong order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: dict[str, str] = {}
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open:
            kind = self.elements[-1][1].get("type") or self.open[-1]
            self.text[kind] = self.text.get(kind, "") + data


def test_the_page_is_one_balanced_document(report: dict[str, Any]) -> None:
    text = render(report)
    page = Page(text)
    assert text.startswith("<!doctype html>")
    assert page.open == []
    assert [tag for tag, _ in page.elements].count("script") == 2
    assert page.text["title"] == "Movie night"


def test_nothing_is_loaded_from_anywhere(report: dict[str, Any]) -> None:
    text = render(report)
    links = [
        value for _, attributes in Page(text).elements for name, value in attributes.items() if name in {"src", "href"}
    ]
    assert links == ["data:,"]
    assert set(re.findall(r"https?://[^\s\"']+", text)) == {"http://www.w3.org/2000/svg"}


def test_the_policy_allows_this_script_and_this_style_only(report: dict[str, Any]) -> None:
    page = Page(render(report))
    policy = next(a["content"] for tag, a in page.elements if a.get("http-equiv") == "Content-Security-Policy")
    for kind in ("script", "style"):
        digest = base64.b64encode(hashlib.sha256(page.text[kind].encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in (policy or "")
    assert (policy or "").startswith("default-src 'none';")


def test_the_data_survives_the_page(report: dict[str, Any]) -> None:
    assert json.loads(Page(render(report)).text["application/json"]) == json.loads(json.dumps(report))


def test_hostile_text_stays_data(report: dict[str, Any]) -> None:
    report["title"] = report["candidates"][0]["name"] = report["candidates"][0]["reason"] = HOSTILE
    page = Page(render(report))
    data = json.loads(page.text["application/json"])
    assert data["candidates"][0]["name"] == data["candidates"][0]["reason"] == page.text["title"] == HOSTILE
    assert [tag for tag, _ in page.elements].count("script") == 2
    assert "img" not in {tag for tag, _ in page.elements}


def test_numpy_numbers_are_numbers_and_what_is_not_finite_is_missing(report: dict[str, Any]) -> None:
    report["candidates"][0]["metrics"] |= {"p99_ms": np.float32(2.5), "qps": np.int64(7), "load_s": float("nan")}
    report["candidates"][0]["difference"]["ndcg@10"]["low"] = -float("inf")
    found = json.loads(Page(render(report)).text["application/json"])["candidates"][0]
    assert [found["metrics"][name] for name in ("p99_ms", "qps", "load_s")] == [2.5, 7, None]
    assert found["difference"]["ndcg@10"]["low"] is None


def test_write_leaves_the_page_at_the_path(report: dict[str, Any], tmp_path: Path) -> None:
    report["title"] = "Größe → 測試"
    write(report, tmp_path / "report.html")
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == render(report)


def test_every_script_file_is_part_of_the_page() -> None:
    names = {path.name for path in resources.files("recfit.report").joinpath("page").iterdir()}
    assert {f"{name}.js" for name in SCRIPTS} == {name for name in names if name.endswith(".js")}


@pytest.mark.parametrize(
    ("break_it", "told"),
    [
        (lambda report: report.pop("budget"), "missing required field `budget`"),
        (lambda report: report["machine"].update(cores="two"), r"Expected `int`, got `str` - at `\$.machine.cores`"),
        (lambda report: report["candidates"][0].update(status="lost"), "'lost'.*candidates"),
        (lambda report: report["candidates"][0]["metrics"].update(p99_ms="fast"), "Expected `float.*candidates"),
        (lambda report: report.update(title=object()), "object is no JSON value"),
        (lambda report: report.update(chosen="nobody"), "chosen is 'nobody', which is no candidate; there are: "),
        (lambda report: report["strategies"][2].update(id="x"), r"strategies\[2\] is 'x', which is no candidate"),
        (lambda report: report["originals"]["A"].update(id="x"), r"originals\['A'\] is 'x', which is no candidate"),
        (lambda report: report.update(nearest={"id": "x", "binding": "", "text": ""}), "nearest is 'x'"),
        (lambda report: report["candidates"].append(report["candidates"][0]), "occur more than once"),
    ],
)  # fmt: skip
def test_what_is_no_report_is_refused(report: dict[str, Any], break_it: Any, told: str) -> None:
    break_it(report)
    with pytest.raises(ReportError, match=told):
        render(report)

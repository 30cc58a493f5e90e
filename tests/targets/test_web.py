"""The exported folder in a real browser: the engine's answers, its rules, a page that shows them and asks nobody else."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Error, Page
from target_cases import CASES, Exported, assert_answers_as_the_engine, best, histories, pipeline_of, rows_of

import toys
from recfit.engine import open_bundle
from recfit.targets import export_bundle, web
from recfit.types import ConfigError

ASK = """async (asked) => {
  const { open } = await import("./recommend.js");
  const recommender = await open();
  const answers = [];
  for (const [history, ...more] of asked) answers.push(await recommender.recommend(history, ...more));
  return answers;
}"""


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, exported: Exported) -> Path:
    """Every case exported, side by side."""
    root = tmp_path_factory.mktemp("web")
    for name, case in CASES.items():
        export_bundle(exported(pipeline_of(*case)), "web", root / name)
    return root


@pytest.fixture(scope="module")
def address(folder: Path) -> Iterator[str]:
    """A plain file server."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=folder)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture
def page(browser: Browser, address: str) -> Iterator[Page]:
    """A page; at the end nothing may have been said on the console or asked of another host."""
    said: list[str] = []
    urls: list[str] = []
    context = browser.new_context()
    context.route("**/favicon.ico", lambda route: route.fulfill(status=204))  # asked for where a file is no page
    page = context.new_page()
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: urls.append(request.url))
    yield page
    context.close()
    assert said == []
    assert all(url.startswith((f"{address}/", "data:")) for url in urls)


def asked(page: Page, url: str, questions: Sequence[Any]) -> list[Any]:
    """The module's answers, without the page that comes with it."""
    page.goto(f"{url}/source.json")
    answers: list[Any] = page.evaluate(ASK, questions)
    return answers


@pytest.mark.parametrize("case", CASES)
def test_the_browser_answers_as_the_engine_does(case: str, page: Page, address: str, exported: Exported) -> None:
    answers = asked(page, f"{address}/{case}", [[history] for history in histories()])
    assert {answer["source"] for answer in answers} == {"model"}
    found = iter([([item["id"] for item in a["items"]], [item["score"] for item in a["items"]]) for a in answers])
    assert_answers_as_the_engine(lambda history: next(found), exported(pipeline_of(*CASES[case])), case)


def test_the_rules_are_the_engines(page: Page, address: str) -> None:
    ids, titles = toys.around().item_ids, toys.around().titles
    popular = [ids[row] for row in toys.around().fallback]
    questions = [[[]], [["nobody's"], 3], [[], 3, popular[:1]], [ids[:35]], [ids], [[ids[0]], 99]]
    empty, unknown, excluding, few, none, every = asked(page, f"{address}/sasrec", questions)
    assert [item["id"] for item in empty["items"]] == popular[:10]
    assert [item["id"] for item in unknown["items"]] == popular[:3]
    assert [item["id"] for item in excluding["items"]] == popular[1:4]
    assert {answer["source"] for answer in (empty, unknown, excluding)} == {"fallback"}
    assert titles is not None
    assert empty["items"][0]["title"] == titles[ids.index(popular[0])]
    assert {item["id"] for item in few["items"]} == set(ids[35:])
    assert none["items"] == []
    assert {item["id"] for item in every["items"]} == set(ids[1:])


def test_requests_may_be_asked_side_by_side(page: Page, address: str) -> None:
    one_by_one = asked(page, f"{address}/sasrec", [[history] for history in histories()[:20]])
    together = page.evaluate(
        """async (histories) => {
          const recommender = await (await import("./recommend.js")).open();
          return Promise.all(histories.map((history) => recommender.recommend(history)));
        }""",
        histories()[:20],
    )
    assert together == one_by_one


def test_what_is_excluded_is_not_shown_and_teaches_nothing(page: Page, address: str, exported: Exported) -> None:
    engine = open_bundle(exported(pipeline_of(*CASES["sasrec"])))
    history = histories()[0]
    wanted = best(engine, history, 12)
    [answer] = asked(page, f"{address}/sasrec", [[history, 10, wanted[:2]]])
    assert [item["id"] for item in answer["items"]] == wanted[2:]


@pytest.mark.parametrize("k", [0, 2.5])
def test_a_number_of_items_that_is_none_is_refused(k: float, page: Page, address: str) -> None:
    with pytest.raises(Error, match=f"RangeError: k = {k}; ask for at least 1 item"):
        asked(page, f"{address}/sasrec", [[["a"], k]])


def test_the_page_shows_history_list_and_latency_and_remembers(page: Page, address: str, exported: Exported) -> None:
    engine = open_bundle(exported(pipeline_of(*CASES["sasrec"])))
    ids, titles = toys.around().item_ids, toys.around().titles
    assert titles is not None
    page.goto(f"{address}/sasrec/index.html")
    page.locator("#add").wait_for()
    assert page.locator("#source").inner_text() == "Popular, as nothing is known yet"
    for typed in (titles[3], ids[5]):
        page.fill("#item", typed)
        page.click("#add button")
    page.locator("#history li").nth(1).wait_for()
    shown = [titles[row] for row in rows_of(best(engine, [ids[3], ids[5]]))]
    for _ in range(2):
        assert page.locator("#history li").all_inner_texts() == [titles[3], titles[5]]
        assert page.locator("#answer li").all_inner_texts() == shown
        assert float(page.locator("#latency").inner_text().removesuffix(" ms")) > 0
        page.reload()
        page.locator("#add").wait_for()
    page.fill("#item", "no such title")
    page.click("#add button")
    assert page.locator("#item").evaluate("input => input.validationMessage") == "No such item"
    page.click("#forget")
    page.locator("#history li").first.wait_for(state="detached")
    assert page.locator("#source").inner_text() == "Popular, as nothing is known yet"


def test_a_page_without_its_files_says_so(browser: Browser, address: str, folder: Path) -> None:
    (folder / "sasrec" / "catalogue.json").rename(folder / "sasrec" / "gone.json")
    page = browser.new_page()
    page.goto(f"{address}/sasrec/index.html")
    page.get_by_text("This page could not start: catalogue.json: 404").wait_for()
    page.close()
    (folder / "sasrec" / "gone.json").rename(folder / "sasrec" / "catalogue.json")


def test_the_folder_says_where_it_comes_from(folder: Path, exported: Exported) -> None:
    source = json.loads((folder / "sasrec" / "source.json").read_text(encoding="utf-8"))
    assert source["bundle_id"] == open_bundle(exported(pipeline_of(*CASES["sasrec"]))).bundle.id
    assert source["target"] == "web"


def test_the_runtime_may_come_from_a_folder(tmp_path: Path, folder: Path, exported: Exported) -> None:
    bundle = exported(pipeline_of(*CASES["sasrec"]))
    (tmp_path / "package").mkdir()
    with pytest.raises(ConfigError, match=r"package lacks ort\.wasm.*; pass the unpacked npm package onnxruntime-web"):
        export_bundle(bundle, "web", tmp_path / "out", ort_web=tmp_path / "package")
    assert not (tmp_path / "out").exists()
    made = export_bundle(bundle, "web", tmp_path / "out", ort_web=folder / "sasrec" / "ort")
    assert {path.name for path in (made / "ort").iterdir()} == set(web.RUNTIME)


def test_an_npm_that_is_not_there_is_a_sentence(
    tmp_path: Path, exported: Exported, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RECFIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match=r"npm can't fetch onnxruntime-web .*No such file.*--ort-web"):
        export_bundle(exported(pipeline_of(*CASES["sasrec"])), "web", tmp_path / "out")

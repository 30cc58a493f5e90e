"""The console in a real browser, against a real server."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Browser, Dialog, Page, expect

KEYS = f'[[key]]\nname = "shop"\nsha256 = "{hashlib.sha256(b"s3cret").hexdigest()}"\n'
PLAN = """
[[experiment]]
name = "trial"
arms = { default = 1, red = 1 }
[[shadow]]
model = "default"
to = "red"
share = 0.5
"""


@pytest.fixture
def url(bundle: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[str]:
    """A server of two models, one of them a ladder; the parameter is whether it asks for a key."""
    (tmp_path / "keys.toml").write_text(KEYS)
    (tmp_path / "plan.toml").write_text(PLAN)
    shutil.copytree(bundle, tmp_path / "study" / "bundle")
    config = '[data]\nsource = "x.csv"\n[search]\ndirectory = "study"\n[serve]\n' + f'models = {{ red = "{bundle}" }}\n'
    (tmp_path / "recfit.toml").write_text(config + f'cheaper = ["{bundle}"]\nexperiments = "plan.toml"\nport = 0\n')
    given = ["--keys", str(tmp_path / "keys.toml")] if request.param else []
    command = [sys.executable, "-m", "recfit.cli", "serve", str(tmp_path / "recfit.toml"), *given]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield process.stdout.readline().strip().rsplit(" ", 1)[1]
        process.terminate()


@pytest.fixture
def page(browser: Browser, url: str) -> Iterator[Page]:
    """The console; at the end the browser may have complained of nothing and asked nobody else."""
    said: list[str] = []
    asked: set[str] = set()
    context = browser.new_context(viewport={"width": 1100, "height": 1000})
    page = context.new_page()
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.add(request.url))
    page.on("dialog", lambda dialog: dialog.accept("s3cret"))
    page.goto(url)
    yield page
    context.close()
    assert said == []
    assert all(one.startswith((url, "data:")) for one in asked)


@pytest.mark.parametrize("url", [False, True], indirect=True, ids=["open", "with a key"])
def test_somebody_asks_and_sees_what_the_server_does(page: Page, url: str) -> None:
    expect(page.locator("#state")).to_have_text("live")
    expect(page.locator("#bundles tr")).to_have_count(3)
    expect(page.locator("#bundles")).to_contain_text("not loaded")
    expect(page.locator("#quality")).to_contain_text("default: ladder at 0.00, expected NDCG@10 unknown")
    expect(page.locator("#experiments")).to_contain_text("experiment trial of default: default 1, red 1")
    expect(page.locator("#experiments")).to_contain_text("shadow of default: red, 50 % of requests")
    page.get_by_label("User").fill("1")
    page.get_by_label("Items").fill("4")
    page.get_by_role("button", name="Recommend").click()
    expect(page.locator("#items tbody tr")).to_have_count(4)
    headers = {"authorization": "Bearer s3cret"}
    body = {"user_id": "1", "k": 4, "variant": "default"}
    wanted = httpx.post(f"{url}/v1/recommend", json=body, headers=headers).json()["items"]
    shown = [row.locator("td").all_inner_texts() for row in page.locator("#items tbody tr").all()]
    assert [row[1:3] for row in shown] == [[item["item_id"], item["title"]] for item in wanted]
    expect(page.locator("#told")).to_contain_text("From the model of bundle")
    expect(page.locator("#told")).to_contain_text("retrieve")
    page.get_by_label("User").fill("")
    page.get_by_label("or history").fill("i1 i2")
    page.locator("#model").select_option("red")
    page.get_by_role("button", name="Recommend").click()
    expect(page.locator("#bundles")).not_to_contain_text("not loaded")
    expect(page.locator("#rate")).not_to_have_text("0.0")
    expect(page.locator("#p99")).to_contain_text("ms")
    page.get_by_label("Items").fill("")
    page.get_by_role("button", name="Recommend").click()
    expect(page.locator("#told.bad")).to_contain_text("k: expected `int` >= 1")


@pytest.mark.parametrize("url", [True], indirect=True)
@pytest.mark.parametrize("given", ["", "wrong"], ids=["cancelled", "a wrong one"])
def test_a_key_is_asked_for_once_and_then_by_a_button(browser: Browser, url: str, given: str) -> None:
    page, answers = browser.new_page(), [given, "s3cret"]
    asked: list[str] = []

    def answer(dialog: Dialog) -> None:
        asked.append(dialog.message)
        word = answers[len(asked) - 1]
        dialog.accept(word) if word else dialog.dismiss()

    page.on("dialog", answer)
    page.goto(url)
    expect(page.locator("#state.bad")).to_contain_text("the key is missing or not known")
    with page.expect_response("**/v1/status"):  # it goes on looking, and nobody is asked
        pass
    page.get_by_label("User").fill("1")
    page.get_by_role("button", name="Recommend").click()
    expect(page.locator("#told.bad")).to_contain_text("the key is missing or not known")
    assert len(asked) == 1
    page.get_by_role("button", name="Give a key").click()
    expect(page.locator("#state")).to_have_text("live")
    expect(page.locator("#key")).to_be_hidden()
    assert len(asked) == 2
    page.close()


@pytest.mark.parametrize("url", [False], indirect=True)
def test_a_server_that_is_gone_is_said(page: Page, url: str) -> None:
    expect(page.locator("#state")).to_have_text("live")
    page.route("**/v1/status", lambda route: route.abort())
    expect(page.locator("#state.bad")).to_contain_text("no answer", timeout=10_000)

"""A bundle made by `export`, opened by the engine, served by a process."""

from __future__ import annotations

import asyncio
import gc
import hashlib
import json
import os
import re
import shutil
import signal
import ssl
import subprocess
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from recfit.engine import open_bundle
from recfit.serve.fleet import DEFAULT, Fleet, opened
from recfit.types import Request

HISTORIES = ([0, 1, 2], [3, 4], [5])  # of the bundle


@pytest.fixture(scope="module")
def client(bundle: Path) -> Iterator[httpx.Client]:
    process = subprocess.Popen(
        [sys.executable, "-m", "recfit.cli", "serve", str(bundle), "--port", "0", "--drain-s", "0"],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    found = re.fullmatch(r"serving tiny at (\S+)\n", process.stdout.readline())
    assert found
    with httpx.Client(base_url=found[1]) as client:
        yield client
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=10)
    assert process.returncode == 0


@pytest.mark.parametrize(
    ("body", "request_"),
    [
        ({"user_id": 1}, Request("1")),
        ({"history": ["i7", "i8"], "exclude": ["i0"]}, Request(None, ("i7", "i8"), ("i0",))),
        ({"user_id": "stranger"}, Request("stranger")),
    ],
)
def test_the_server_answers_what_the_engine_answers(bundle, client, body, request_) -> None:
    expected = open_bundle(bundle).recommend([request_], 4)[0]
    answer = client.post("/v1/recommend", json={**body, "k": 4}).json()
    assert tuple(item["item_id"] for item in answer["items"]) == expected.items
    assert [item["score"] for item in answer["items"]] == pytest.approx(expected.scores)
    assert [item["title"] for item in answer["items"]] == [f"Title {item[1:]}" for item in expected.items]
    assert answer["source"] == expected.source


def test_a_bundle_that_left_is_gone_without_the_collector(bundle: Path) -> None:
    """What is frozen is not collected: nothing in a served bundle may point back to it."""

    async def run() -> list[bool]:
        fleet = Fleet([opened(bundle)])
        model = await fleet.get(None)
        await model.batcher.ask(Request("1"), 3)
        served = [weakref.ref(one) for one in (model, model.batcher, model.best, model.best.engine)]
        del model
        for _ in range(2):  # the one before is kept for the rollback
            await fleet.swap(DEFAULT, [bundle])
        return [one() is None for one in served]

    gc.disable()
    try:
        assert all(asyncio.run(run()))
    finally:
        gc.enable()
        gc.unfreeze()


def test_the_bundle_is_ready_and_described(bundle, client) -> None:
    assert client.get("/readyz").status_code == 200
    described = client.get("/v1/bundle").json()
    assert described["bundle"] == open_bundle(bundle).manifest["bundle_id"]
    assert (described["recipe"], described["promise"]) == ({"id": "r0", "steps": []}, None)
    assert described["catalogue"] == {"users": 3, "items": 12}


TLS = Path(__file__).parent / "tls"  # made for these tests, of no use elsewhere
KEYS = f'[[key]]\nname = "ops"\nsha256 = "{hashlib.sha256(b"s3cret").hexdigest()}"\nadmin = true\n'


def test_tls_keys_events_and_operators_of_a_running_server(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "keys.toml").write_text(KEYS)
    files = [
        "--certificate",
        TLS / "certificate.pem",
        "--private-key",
        TLS / "key.pem",
        "--keys",
        tmp_path / "keys.toml",
    ]
    command = [sys.executable, "-m", "recfit.cli", "serve", bundle, "--port", "0", "--admin-port", "0", *files]
    for restart in (False, True):
        with subprocess.Popen(
            [*map(str, command), "--events", str(tmp_path / "events.db"), "--json"], stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None
            told = json.loads(process.stdout.readline())
            assert told["url"].startswith("https://127.0.0.1:")
            trust = ssl.create_default_context(cafile=TLS / "certificate.pem")
            with httpx.Client(verify=trust, headers={"authorization": "Bearer s3cret"}) as client:
                assert httpx.post(told["url"] + "/v1/recommend", json={"user_id": "1"}, verify=trust).status_code == 401
                answer = client.post(told["url"] + "/v1/recommend", json={"user_id": "1", "k": 12}).json()
                seen = {item["item_id"] for item in answer["items"]}
                assert ("i9" in seen) == (not restart)
                client.post(told["url"] + "/v1/events", json={"events": [{"user_id": "1", "item_id": "i9"}]})
                swapped = client.put(told["admin"] + "/admin/models/default", json={"bundles": [str(bundle)]})
                assert swapped.json()["bundles"] == [answer["bundle"]]
                refused = client.put(told["admin"] + "/admin/models/default", json={"bundles": [str(tmp_path)]})
                assert refused.status_code == 422
                assert "is not a bundle" in refused.json()["error"]["message"]
                assert client.put(told["url"] + "/admin/models/default", json={"bundles": ["x"]}).status_code == 404
            process.send_signal(signal.SIGINT)
            assert process.wait(30) == 0


def test_a_certificate_without_its_key_is_told_in_a_line(bundle: Path) -> None:
    command = [sys.executable, "-m", "recfit.cli", "serve", str(bundle), "--port", "0", "--events", ":memory:"]
    for given, words in (
        (["--certificate", str(TLS / "certificate.pem")], "go together; give both, or neither"),
        (
            ["--certificate", str(TLS / "certificate.pem"), "--private-key", str(bundle / "manifest.json")],
            "no certificate",
        ),
    ):
        done = subprocess.run([*command, *given], capture_output=True, text=True, check=False)
        assert done.returncode == 2
        assert words in done.stderr
        assert done.stderr.count("\n") == 1


def test_nothing_is_written_beside_what_is_no_bundle(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "recfit.cli", "serve", str(tmp_path / "nowhere"), "--port", "0"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert [*tmp_path.iterdir()] == []


def served_once(bundle: Path, event: str | None) -> tuple[list[str], str]:
    """Start, record an event of user 1, ask for them, end: the items, and what was logged."""
    command = [sys.executable, "-m", "recfit.cli", "serve", str(bundle), "--port", "0", "--drain-s", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        base = process.stdout.readline().split()[-1]
        if event is not None:
            body = {"events": [{"user_id": "1", "item_id": event}]}
            assert httpx.post(f"{base}/v1/events", json=body).json()["kept"] == 1
        found = httpx.post(f"{base}/v1/recommend", json={"user_id": "1", "k": 12}).json()["items"]
        process.send_signal(signal.SIGTERM)
        _, log = process.communicate(timeout=30)
    return [item["item_id"] for item in found], log


LINE = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} "


def test_events_are_kept_beside_the_bundle_where_no_file_is_named(bundle: Path, tmp_path: Path) -> None:
    own = Path(shutil.copytree(bundle, tmp_path / "own"))
    before, log = served_once(own, "i7")
    assert "i7" not in before
    assert re.fullmatch(rf"{LINE}INFO recfit\.serve: what users do is kept in {own}\.events\.db\n", log)
    assert served_once(own, None)[0] == before


def test_where_nothing_can_be_written_it_starts_and_says_that_events_are_forgotten(
    bundle: Path, tmp_path: Path
) -> None:
    own = Path(shutil.copytree(bundle, tmp_path / "own"))
    (tmp_path / "own.events.db").mkdir()  # as good as a file system that takes no writes
    before, log = served_once(own, "i7")
    assert "i7" not in before
    assert re.fullmatch(rf"{LINE}WARNING recfit\.serve: what users do is forgotten at the end, since .*\n", log)
    assert "i7" in served_once(own, None)[0]

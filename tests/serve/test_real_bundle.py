"""A bundle made by `export`, opened by the engine, served by a process."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest

from recfit.engine import open_bundle
from recfit.types import Ragged, Request

HISTORIES = ([0, 1, 2], [3, 4], [5])


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Path:
    from recfit.export import Surroundings, export
    from recfit.models import Catalogue, sasrec
    from recfit.pipeline import Pipeline, Stage

    items = tuple(f"i{n}" for n in range(12))
    around = Surroundings(
        user_ids=("1", "2", "3"),
        item_ids=items,
        titles=tuple(f"Title {n}" for n in range(12)),
        user_features=None,
        histories=Ragged.from_lists(HISTORIES),
        fallback=np.arange(12, dtype=np.int32),
    )
    model = sasrec.build(sasrec.Config(layers=1, embedding_dim=8), Catalogue(3, 12))
    directory = tmp_path_factory.mktemp("bundles") / "tiny"
    return export(Pipeline(Stage(model)), around, directory, name="tiny", recipe={"id": "r0", "steps": []})


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


def test_the_bundle_is_ready_and_described(bundle, client) -> None:
    assert client.get("/readyz").status_code == 200
    described = client.get("/v1/bundle").json()
    assert described["bundle"] == open_bundle(bundle).manifest["bundle_id"]
    assert (described["recipe"], described["promise"]) == ({"id": "r0", "steps": []}, None)
    assert described["catalogue"] == {"users": 3, "items": 12}

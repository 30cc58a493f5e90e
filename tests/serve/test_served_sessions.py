"""A server that goes on from the sessions of its users."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
import torch

import toys
from recfit.config import Serve
from recfit.engine import open_bundle
from recfit.export import export
from recfit.models import as_module
from recfit.pipeline import Pipeline, RuntimePlan, Stage
from recfit.serve.fleet import DEFAULT, Fleet, opened
from recfit.serve.run import app_of, engines_of
from recfit.types import Request

OPTIONS = {"layers": 2, "embedding_dim": 16, "heads": 2, "ffn": 24, "max_history": 60}


@pytest.fixture(scope="module")
def going_on(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = toys.untrained("sasrec", OPTIONS)
    with torch.no_grad():
        for weight in as_module(model).parameters():
            weight.add_(0.2 * torch.randn_like(weight))
    pipeline = Pipeline(Stage(model), runtime=RuntimePlan("fused", sessions=True))
    return export(pipeline, toys.around(), tmp_path_factory.mktemp("bundles") / "b", name="toy", recipe={"id": "r0"})


@contextmanager
def client_of(bundle: Path, settings: Serve) -> Iterator[httpx.AsyncClient]:
    with app_of(engines_of(bundle, settings), settings) as app:
        yield httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://server")


async def _metric(client: httpx.AsyncClient, name: str) -> float:
    lines = (await client.get("/metrics")).text.splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name))


def test_a_user_whose_events_come_in_one_by_one(going_on: Path) -> None:
    """Every answer is that of the engine without sessions, and the server says that it went on."""
    plain, items = open_bundle(going_on), toys.around().item_ids
    user, seen = toys.around().user_ids[0], list[str]()

    async def run() -> None:
        with client_of(going_on, Serve(session_mb=1.0, results_mb=0.0)) as client:
            for at in range(30):
                answer = (await client.post("/v1/recommend", json={"user_id": user, "k": 5})).json()
                expected = plain.recommend([Request(user, recent=tuple(seen))], 5)[0]
                assert tuple(item["item_id"] for item in answer["items"]) == expected.items
                assert [item["score"] for item in answer["items"]] == pytest.approx(expected.scores, abs=1e-3)
                seen.append(items[7 * at % len(items)])
                event = {"user_id": user, "item_id": seen[-1]}
                assert (await client.post("/v1/events", json={"events": [event]})).status_code == 200
            assert await _metric(client, 'recfit_sessions_total{model="default",outcome="hit",rung="0"}') > 15
            assert 0 < await _metric(client, "recfit_session_bytes") < 2**20

    asyncio.run(run())


def test_sessions_are_off_unless_asked_for(going_on: Path) -> None:
    async def run() -> None:
        body = {"history": toys.around().item_ids[:20], "k": 5}
        with client_of(going_on, Serve(results_mb=0.0)) as client:
            for _ in range(3):
                assert (await client.post("/v1/recommend", json=body)).status_code == 200
            assert await _metric(client, "recfit_session") == 0

    asyncio.run(run())


def test_a_bundle_that_cannot_go_on_is_served_with_a_warning(bundle: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "recfit.serve"):
        engines = engines_of(bundle, Serve(session_mb=1.0))
    assert not engines[0].sessions
    assert f"session_mb = 1 is of no use: {bundle} goes on from no session" in caplog.text


def test_what_is_swapped_in_goes_on_and_what_left_keeps_nothing(going_on: Path) -> None:
    request = Request(history=toys.around().item_ids[:20])

    async def run() -> None:
        fleet = Fleet([opened(going_on)], session_mb=1.0)
        first = (await fleet.get(None)).best.engine
        await (await fleet.get(None)).batcher.ask(request, 5)
        assert first.sessions[0].bytes > 0
        await fleet.swap(DEFAULT, [going_on])
        second = (await fleet.get(None)).best.engine
        await (await fleet.get(None)).batcher.ask(request, 5)
        assert second.sessions[0].bytes > 0 == first.sessions[0].bytes
        await fleet.rollback(DEFAULT)
        await (await fleet.get(None)).batcher.ask(request, 5)
        assert first.sessions[0].bytes > 0 == second.sessions[0].bytes

    asyncio.run(run())


def test_further_models_go_on_too(going_on: Path) -> None:
    settings = replace(Serve(session_mb=1.0), models={"other": str(going_on)})

    async def run() -> None:
        body = {"history": toys.around().item_ids[:20], "variant": "other"}
        with client_of(going_on, settings) as client:
            assert (await client.post("/v1/recommend", json=body)).status_code == 200
            assert await _metric(client, 'recfit_session_bytes{model="other"') > 0

    asyncio.run(run())

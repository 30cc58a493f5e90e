"""What is counted: every request for an answer, by the model that gave it, and counters that never fall."""

from __future__ import annotations

import asyncio
import hashlib
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from fake_engine import FakeEngine, app_of
from test_ops_routes import samples

from recfit.serve import status as module
from recfit.serve.app import make_app
from recfit.serve.batcher import Batcher, LateError, OverloadError
from recfit.serve.exposures import Exposures
from recfit.serve.fleet import DEFAULT, Fleet
from recfit.serve.guard import Key
from recfit.serve.results import Known, Results
from recfit.serve.status import Recent
from recfit.types import Request

PATH = "/v1/recommend"
TENSOR = {"name": "user_id", "shape": [1], "datatype": "BYTES", "data": ["u1"]}


def labels(found: dict[Any, float], name: str, *kinds: str) -> dict[tuple[str, ...], float]:
    """The values of a metric by these of its labels."""
    sums: dict[tuple[str, ...], float] = {}
    for (metric, pairs), value in found.items():
        if metric == name:
            key = tuple(dict(pairs)[kind] for kind in kinds)
            sums[key] = sums.get(key, 0.0) + value
    return sums


def shown(call, app: Any, **options: Any) -> dict[Any, float]:
    return samples(call(app, "GET", "/metrics", **options).text)


def test_what_hangs_in_one_of_several_threads_is_seen_while_nobody_waits(call) -> None:
    """Of the bundle that answers, and of the one before."""
    seen: list[float] = []

    def during(request: Request) -> None:
        if request.user_id == "u1":
            time.sleep(0.02)
            found = shown(call, app)
            assert found["recfit_oldest_queued_seconds", ()] == 0
            seen.append(found["recfit_oldest_running_seconds", ()])

    fleet = Fleet([FakeEngine(during)], threads=2, open_engine=lambda path: FakeEngine())
    app = make_app(fleet)

    async def run() -> None:
        model = fleet.loaded[DEFAULT]
        await model.batcher.ask(Request("u1"), 3)
        asked = asyncio.create_task(model.batcher.ask(Request("u1"), 3))
        await fleet.swap(DEFAULT, [Path("new")])
        await asked

    asyncio.run(run())
    assert [value >= 0.02 for value in seen] == [True, True]
    assert shown(call, app)["recfit_oldest_running_seconds", ()] == 0


def test_every_route_that_answers_is_counted_and_no_other(call) -> None:
    app = app_of(FakeEngine())
    for path in ("/v1/similar/i1?k=3", "/v1/similar/a/b", "/v1/similar/i1?k=x", "/healthz", "/readyz", "/nowhere", "/"):
        call(app, "GET", path)
    for name in ("default", "secret"):
        call(app, "POST", f"/v2/models/{name}/infer", json={"inputs": [TENSOR]})
    found = shown(call, app)
    requests = labels(found, "recfit_requests_total", "route", "source", "status", "model")
    similar, infer = "/v1/similar/{item_id}", "/v2/models/{name}/infer"
    assert requests == {
        (similar, "model", "200", "default"): 1,
        (similar, "none", "404", "default"): 1,
        (similar, "none", "422", "none"): 1,
        (infer, "model", "200", "default"): 1,
        (infer, "none", "404", "none"): 1,
    }
    counts = labels(found, "recfit_request_seconds_count", "route", "source")
    assert counts == {(similar, "model"): 1, (similar, "none"): 2, (infer, "model"): 1, (infer, "none"): 1}
    assert found["recfit_requests_in_flight", ()] == 0


def test_an_engine_that_fails_is_counted_on_every_route(call) -> None:
    broken: list[int] = []
    app = app_of(FakeEngine(lambda request: 1 // 0 if broken else None))
    broken.append(1)
    assert call(app, "GET", "/v1/similar/i1").status_code == 500
    assert call(app, "POST", "/v2/models/default/infer", json={"inputs": [TENSOR]}).status_code == 500
    assert call(app, "POST", PATH, json={"user_id": "u1"}).status_code == 500
    requests = labels(shown(call, app), "recfit_requests_total", "status", "model")
    assert requests == {("500", "default"): 3}


def test_every_request_of_a_batch_is_counted_by_what_became_of_it(call, monkeypatch: pytest.MonkeyPatch) -> None:
    app = app_of(FakeEngine(lambda request: 1 // 0 if request.history == ("bad",) else None))

    async def late(*_: object) -> None:
        raise LateError

    async def busy(*_: object) -> None:
        raise OverloadError

    good, bad = {"user_id": "u1"}, {"history": ["bad"]}
    asked = [good, good, {"history": []}, bad, {"k": 3}, {**good, "model": "secret"}]
    assert call(app, "POST", f"{PATH}/batch", json={"requests": asked}).status_code == 200
    for error in (late, busy):
        monkeypatch.setattr(Batcher, "ask", error)
        assert call(app, "POST", f"{PATH}/batch", json={"requests": [{**good, "k": 7}]}).status_code == 200
    requests = labels(shown(call, app), "recfit_requests_total", "route", "source", "status", "model")
    assert requests == {
        (f"{PATH}/batch", "none", "200", "none"): 3,
        (f"{PATH}/batch/part", "model", "200", "default"): 2,
        (f"{PATH}/batch/part", "fallback", "200", "default"): 1,
        (f"{PATH}/batch/part", "none", "500", "default"): 1,
        (f"{PATH}/batch/part", "none", "422", "none"): 1,
        (f"{PATH}/batch/part", "none", "404", "none"): 1,
        (f"{PATH}/batch/part", "none", "504", "default"): 1,
        (f"{PATH}/batch/part", "none", "503", "default"): 1,
    }


def test_who_is_not_let_in_is_counted(call) -> None:
    key = {"x-api-key": "k"}
    keys = [Key("shop", hashlib.sha256(b"k").hexdigest(), rate=2.0)]
    app = app_of(FakeEngine(), keys=keys)
    assert call(app, "POST", PATH, json={"user_id": "u1"}).status_code == 401
    assert call(app, "GET", "/v1/similar/secret").status_code == 401
    assert call(app, "GET", "/secret").status_code == 401
    statuses = [call(app, "POST", PATH, json={"user_id": "u1"}, headers=key).status_code for _ in range(12)]
    assert statuses[:2] == [200, 200]
    open_app = app._app  # a scrape would need the key, which has no request left
    requests = labels(shown(call, open_app), "recfit_requests_total", "route", "status")
    assert requests[PATH, "401"] == requests["/v1/similar/{item_id}", "401"] == requests["other", "401"] == 1
    assert requests[PATH, "429"] == statuses.count(429) > 0


def test_latencies_are_those_of_a_model_and_a_request_leaves_none_behind() -> None:
    async def run() -> dict[Any, float]:
        fleet = Fleet([FakeEngine()], paths={"red": [Path("red")]}, open_engine=lambda path: FakeEngine())
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(make_app(fleet)), base_url="http://recfit"
        ) as client:
            for body in ({}, {"model": "red"}, {"variant": "red"}, {"model": "secret"}, {"k": 0}):
                await client.post(PATH, json={"user_id": "u1", **body})
            await client.post("/v1/score", json={"user_id": "u1", "items": ["i1"], "model": "red"})
            await client.post("/v1/recommend/batch", json={"requests": [{"user_id": "u1", "model": "red"}]})
            return samples((await client.get("/metrics")).text)

    found = asyncio.run(run())
    assert labels(found, "recfit_request_seconds_count", "route", "model") == {
        (PATH, "default"): 1,
        (PATH, "red"): 2,
        (PATH, "none"): 2,
        ("/v1/score", "red"): 1,
        ("/v1/recommend/batch", "none"): 1,
    }


class Session:
    """A cache of sessions, as far as it is counted."""

    bytes = 5

    def __init__(self) -> None:
        self.hits = self.misses = 0


def test_counters_of_bundles_that_come_and_go_only_grow() -> None:
    def opened(path: Path) -> FakeEngine:
        engine = FakeEngine()
        engine.sessions = (Session(),)
        return engine

    async def run() -> None:
        fleet = Fleet([opened(Path("first"))], open_engine=opened)
        app = make_app(fleet, results=Results(0))

        async def ask(times: int) -> list[float]:
            async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://recfit") as client:
                for _ in range(times):
                    await client.post(PATH, json={"user_id": "u1"})
                    fleet.loaded["default"].best.engine.sessions[0].hits += 1
                found = samples((await client.get("/metrics")).text)
            hits = labels(found, "recfit_sessions_total", "outcome")[("hit",)]
            return [found["recfit_rung_requests_total", (("model", "default"), ("rung", "0"))], hits]

        assert await ask(5) == [5, 5]
        await fleet.swap("default", [Path("second")])
        assert await ask(0) == [5, 5]
        assert await ask(2) == [7, 7]
        await fleet.rollback("default")
        assert await ask(0) == [7, 7]
        assert await ask(1) == [8, 8]

    asyncio.run(run())


def test_a_miss_is_counted_once_it_is_one() -> None:
    class Second:
        def __init__(self) -> None:
            self.known: Known | None = None
            self.misses = -1

        async def find(self, key: bytes) -> Known | None:
            self.misses = results.misses
            return self.known

        async def put(self, key: bytes, known: Known) -> None: ...

    async def make() -> Known:
        return Known(b"[]", "model", "b")

    async def run() -> None:
        for number, second.known in enumerate((None, Known(b"[]", "model", "b"))):
            await results.get(bytes([number]), make)
            assert second.misses == number
            assert (results.misses, results.second_hits) == (1, number)
        assert results.asked == 2

    second = Second()
    results = Results(second=second)
    asyncio.run(run())


def test_rows_that_the_exposure_log_lost_are_counted(call, tmp_path: Path) -> None:
    exposures = Exposures(tmp_path / "log.db")
    app = app_of(FakeEngine(), exposures=exposures)
    assert shown(call, app)["recfit_exposures_dropped_total", ()] == 0
    exposures.dropped = 3
    assert shown(call, app)["recfit_exposures_dropped_total", ()] == 3
    exposures.close()


def test_the_share_from_the_result_cache_is_that_of_the_last_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(module, "MOST", 50)
    results = Results()
    recent = Recent(results)
    assert recent.hit_share() is None

    def ask(hits: int, misses: int) -> None:
        for number in range(hits + misses):
            results.hits += number < hits
            results.misses += number >= hits
            recent.add(0.001)

    ask(3, 1)
    assert recent.hit_share() == 0.75
    now[0] += 8
    ask(0, 4)
    assert recent.hit_share() == 3 / 8
    now[0] += 8
    assert recent.hit_share() == 0
    ask(4, 0)
    assert recent.hit_share() == 0.5
    now[0] += 11
    assert recent.hit_share() is None
    ask(100, 0)
    ask(0, 49)  # with one hit the last that are remembered
    assert recent.hit_share() == 0

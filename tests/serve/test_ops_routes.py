from __future__ import annotations

import asyncio
import json
import re
import threading
import time
from typing import Any

import httpx
import pytest
from fake_engine import FakeEngine, app_of
from prometheus_client.parser import text_string_to_metric_families

from recfit.serve import caller, ready
from recfit.serve.app import make_app
from recfit.serve.exposures import Exposures
from recfit.serve.fleet import DEFAULT, Fleet
from recfit.serve.metrics import BUCKETS
from recfit.types import Recommendation, Request

PATH = "/v1/recommend"


def test_healthz_says_that_the_process_is_alive(call) -> None:
    answer = call(app_of(FakeEngine()), "GET", "/healthz")
    assert (answer.status_code, answer.json()) == (200, {"status": "ok"})


@pytest.mark.parametrize("threads", [0, 1])
def test_readyz_asks_the_engine_what_needs_the_model(call, threads: int) -> None:
    asked: list[Request] = []
    app = app_of(FakeEngine(asked.append), threads=threads)
    asked.clear()
    answer = call(app, "GET", "/readyz")
    assert (answer.status_code, answer.json()) == (200, {"status": "ready"})
    assert asked == [Request(None, ("i0", "i1", "i2", "i3", "i4"))]


@pytest.mark.parametrize("threads", [0, 1])
def test_readyz_is_503_while_the_engine_fails_and_200_once_it_recovers(
    call, caplog, monkeypatch: pytest.MonkeyPatch, threads: int
) -> None:
    monkeypatch.setattr(ready, "KEPT_S", 0.0)
    broken = threading.Event()

    def during(request: Request) -> None:
        if broken.is_set():
            raise RuntimeError("the model is gone")

    app = app_of(FakeEngine(during), threads=threads)
    broken.set()
    answer = call(app, "GET", "/readyz")
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "not_ready")
    assert "the model is gone" in caplog.text
    assert call(app, "GET", "/healthz").status_code == 200
    broken.clear()
    assert call(app, "GET", "/readyz").status_code == 200


@pytest.mark.parametrize("path", ["/readyz", "/v2/health/ready"])
def test_a_flood_of_probes_costs_one_canary(monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    asked: list[Request] = []
    app = app_of(FakeEngine(asked.append))
    asked.clear()

    async def run() -> list[int]:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://recfit") as client:
            seen = []
            for _ in range(3):
                found = await asyncio.gather(*(client.get(path) for _ in range(50)))
                assert {answer.status_code for answer in found} == {200}
                seen.append(len(asked))
                if len(seen) == 2:
                    await asyncio.sleep(0.2)
            return seen

    monkeypatch.setattr(ready, "KEPT_S", 0.2)
    assert asyncio.run(run()) == [1, 1, 2]


def test_a_probe_that_leaves_takes_the_answer_from_nobody() -> None:
    async def run() -> str:
        readiness = Fleet([FakeEngine()]).loaded[DEFAULT].ready
        caller.left.set(lambda: True)
        first = asyncio.create_task(readiness.refusal())
        second = asyncio.create_task(readiness.refusal())
        await asyncio.sleep(0)
        first.cancel()
        return await second

    assert asyncio.run(run()) == ""


def test_readyz_is_503_when_the_engine_hangs(call, monkeypatch, caplog) -> None:
    monkeypatch.setattr(ready, "TIMEOUT_S", 0.05)
    hanging, release = threading.Event(), threading.Event()

    def during(request: Request) -> None:
        if hanging.is_set():
            release.wait(10)

    app = app_of(FakeEngine(during), threads=1)
    hanging.set()
    answer = call(app, "GET", "/readyz")
    release.set()
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "not_ready")
    assert [record.exc_info for record in caplog.records] == [None]  # what happened is said, in one line
    assert "took longer than 0.05 s" in caplog.text


def test_an_engine_that_never_answers_well_is_not_served() -> None:
    def during(request: Request) -> None:
        raise RuntimeError("no model")

    with pytest.raises(RuntimeError, match="no model"):
        app_of(FakeEngine(during))


def test_a_catalogue_of_one_item_is_ready(call) -> None:
    class OneItem(FakeEngine):
        def recommend(self, requests, k=10):
            return [Recommendation(*((), ()) if r.history else (("i0",), (1.0,)), source="model") for r in requests]

    assert call(app_of(OneItem()), "GET", "/readyz").status_code == 200


def test_draining_flips_readyz_alone(call) -> None:
    draining = threading.Event()
    app = app_of(FakeEngine(), draining=draining)
    draining.set()
    ready = call(app, "GET", "/readyz")
    assert (ready.status_code, ready.json()["error"]["code"]) == (503, "draining")
    assert call(app, "GET", "/v2/health/ready").status_code == 503
    assert call(app, "GET", "/healthz").status_code == 200
    assert call(app, "POST", PATH, json={"user_id": "u1"}).status_code == 200


@pytest.mark.parametrize("threads", [0, 1])
def test_a_busy_server_is_ready(caplog, threads: int) -> None:
    """The line is full, so that requests are sent away; a load balancer must not take the server for a broken one."""
    app = make_app(Fleet([FakeEngine(lambda request: time.sleep(0.005))], threads=threads, shed_s=0.02))

    async def run() -> tuple[set[int], list[int]]:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://recfit") as client:
            asked = [asyncio.create_task(client.post(PATH, json={"user_id": f"{n}"})) for n in range(60)]
            ready = [(await client.get(path)).status_code for path in ("/readyz", "/v2/health/ready")]
            return {(await one).status_code for one in asked}, ready

    assert asyncio.run(run()) == ({200, 503}, [200, 200])
    assert caplog.text == ""


def test_bundle_shows_recipe_and_promise(call) -> None:
    assert call(app_of(FakeEngine()), "GET", "/v1/bundle").json() == {
        "name": "toy",
        "bundle": "b0c1",
        "created": "2024-05-06T07:08:09+00:00",
        "recipe": {"id": "r9", "steps": [{"name": "int8_rows"}]},
        "catalogue": {"users": 2, "items": 50},
        "promise": {"p99_ms": 1.5},
    }


def test_a_bundle_that_was_never_measured_has_no_promise(call) -> None:
    engine = FakeEngine()
    engine.manifest = {**engine.manifest, "promise": None}
    assert call(app_of(engine), "GET", "/v1/bundle").json()["promise"] is None


def samples(text: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Value by name and labels; fails on what is not in the exposition format."""
    families = text_string_to_metric_families(text)
    return {(s.name, tuple(sorted(s.labels.items()))): s.value for family in families for s in family.samples}


def test_metrics_count_requests_by_source_and_status(call) -> None:
    app = app_of(FakeEngine())
    bodies: list[dict[str, Any]] = [
        {"user_id": "u1"},
        {"user_id": "u1"},
        {"user_id": "secret"},
        {"user_id": "u1", "k": 0},
    ]
    for body in bodies:
        call(app, "POST", PATH, json=body)
    answer = call(app, "GET", "/metrics")
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    found = samples(answer.text)
    requests = {labels: value for (name, labels), value in found.items() if name == "recfit_requests_total"}
    assert requests == {
        (("model", "default"), ("route", PATH), ("source", "model"), ("status", "200")): 2,
        (("model", "default"), ("route", PATH), ("source", "fallback"), ("status", "200")): 1,
        (("model", "none"), ("route", PATH), ("source", "none"), ("status", "422")): 1,
    }
    asked = (("model", "default"), ("route", PATH), ("source", "model"))
    assert found["recfit_request_seconds_count", asked] == 2
    assert found["recfit_requests_in_flight", ()] == 0
    assert (
        found[
            "recfit_bundle_info",
            (("id", "b0c1"), ("model", "default"), ("name", "toy"), ("recipe", "r9"), ("rung", "0")),
        ]
        == 1
    )
    assert found["process_resident_memory_bytes", ()] > 1e6
    assert "secret" not in answer.text
    assert "u1" not in answer.text


def test_latency_buckets_are_half_a_millisecond_to_a_quarter_second(call) -> None:
    app = app_of(FakeEngine())
    call(app, "POST", PATH, json={"user_id": "u1"})
    edges = re.findall(r'recfit_request_seconds_bucket\{le="([^"]+)"', call(app, "GET", "/metrics").text)
    assert edges == [*map(str, BUCKETS), "+Inf"]
    assert [edge * 1000 for edge in BUCKETS] == [0.5, 1, 2, 3, 5, 7.5, 10, 20, 50, 100, 250]


def test_a_request_is_in_flight_while_the_engine_works(call) -> None:
    seen: list[str] = []

    def during(request: Request) -> None:
        if request.user_id == "u1":
            seen.append(call_metrics())

    app = app_of(FakeEngine(during), threads=1)

    def call_metrics() -> str:
        return str(call(app, "GET", "/metrics").text)

    call(app, "POST", PATH, json={"user_id": "u1"})
    assert "recfit_requests_in_flight 1.0" in seen[0]
    assert "recfit_requests_in_flight 0.0" in call_metrics()


@pytest.fixture(scope="module")
def document(call) -> dict[str, Any]:
    answer = call(app_of(FakeEngine()), "GET", "/openapi.json")
    assert answer.headers["content-type"] == "application/json"
    return dict(answer.json())


def operations(document: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    return [(method, path, op) for path, item in document["paths"].items() for method, op in item.items()]


def test_openapi_has_what_version_3_1_requires(document) -> None:
    assert re.fullmatch(r"3\.1\.\d+", document["openapi"])
    assert {"title", "version"} <= document["info"].keys()
    names = [operation["operationId"] for _, _, operation in operations(document)]
    assert len(names) == len(set(names))
    for _, path, operation in operations(document):
        assert path.startswith("/")
        assert all(re.fullmatch("[1-5][0-9]{2}", status) for status in operation["responses"])
        assert all(response["description"] and response["content"] for response in operation["responses"].values())


def test_openapi_says_who_may_ask(document) -> None:
    schemes = document["components"]["securitySchemes"]
    assert schemes["bearer"] == {"type": "http", "scheme": "bearer"}
    assert (schemes["key"]["in"], schemes["key"]["name"]) == ("header", "X-API-Key")
    assert document["security"] == [{}, {"bearer": []}, {"key": []}]  # a server without keys lets everybody in
    for method, path, operation in operations(document):
        free = path in ("/healthz", "/v2/health/live", "/v2/health/ready")
        assert (operation.get("security") == []) == free
        assert ({"401", "429"} <= operation["responses"].keys()) != free
        assert ("408" in operation["responses"]) == (method == "post")


def test_openapi_references_resolve(document) -> None:
    references = re.findall(r'"\$ref": "#/components/schemas/(\w+)"', json.dumps(document))
    assert len(references) > 20
    assert set(references) == document["components"]["schemas"].keys()


def test_openapi_tells_every_route_and_only_routes(document, call, tmp_path) -> None:
    exposures = Exposures(tmp_path / "log.db")
    app = app_of(FakeEngine(), exposures=exposures)
    infer = {"inputs": [{"name": "user_id", "shape": [1], "datatype": "BYTES", "data": ["u1"]}]}
    bodies = {
        "/v1/recommend": {"user_id": "u1"},
        "/v1/recommend/batch": {"requests": [{"user_id": "u1"}]},
        "/v1/score": {"user_id": "u1", "items": ["i1"]},
        "/v1/events": {"events": [{"user_id": "u1", "item_id": "i1"}]},
        "/v1/feedback": {"request_id": "r1"},
        **dict.fromkeys(("/v2/models/{name}/infer", "/v2/models/{name}/versions/{version}/infer"), infer),
    }
    for method, path, _ in operations(document):
        body = {"json": bodies[path]} if method == "post" else {}
        place = path.replace("{item_id}", "i1").replace("{name}", "default").replace("{version}", "b0c1")
        assert call(app, method.upper(), place, **body).status_code == 200
    exposures.close()
    models = {f"/v2/models/{{name}}{version}{end}" for version in ("", "/versions/{version}") for end in ("", "/ready")}
    others = models | {
        "/v2",
        "/v2/health/live",
        "/v2/health/ready",
        "/v1/similar/{item_id}",
        "/v1/models",
        "/v1/bundle",
        "/v1/status",
        "/healthz",
        "/readyz",
        "/metrics",
        "/openapi.json",
    }
    assert document["paths"].keys() == {*bodies, *others}


def test_openapi_says_what_the_decoder_does(document) -> None:
    schemas = document["components"]["schemas"]
    asked = schemas["RecommendRequest"]
    assert asked["properties"].keys() == {
        "user_id",
        "history",
        "context",
        "k",
        "exclude",
        "candidates",
        "explain",
        "model",
        "deadline_ms",
        "variant",
    }
    assert asked["additionalProperties"] is False
    k = asked["properties"]["k"]
    assert (k["type"], k["minimum"], k["maximum"], k["default"]) == ("integer", 1, 1000, 10)
    answered = schemas["RecommendResponse"]
    assert set(answered["required"]) == {"items", "bundle", "source", "request_id"}
    assert answered["properties"]["source"]["enum"] == ["cache", "fallback", "model"]
    assert document["paths"][PATH]["post"]["responses"].keys() == {
        "200",
        "400",
        "401",
        "404",
        "408",
        "413",
        "422",
        "429",
        "500",
        "503",
        "504",
    }

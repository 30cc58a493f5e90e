"""Batches, scores, similar items, candidates, explanations."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import httpx
import pytest
from fake_engine import FakeEngine, app_of

from recfit.serve.app import make_app
from recfit.serve.batcher import OverloadError
from recfit.serve.fleet import Fleet
from recfit.serve.http import Reply
from recfit.serve.schema import HttpError
from recfit.serve.service import Service
from recfit.types import Request


@pytest.fixture(scope="module")
def app():
    return app_of(FakeEngine())


def test_a_batch_has_an_outcome_for_each_request_in_order(call, caplog) -> None:
    def during(request: Request) -> None:
        if request.user_id == "poison":
            raise ZeroDivisionError("secret")

    app = app_of(FakeEngine(during))
    requests = [{"user_id": "u1", "k": 2}, {}, {"user_id": "poison"}, {"history": ["i0"], "k": 1}]
    answer = call(app, "POST", "/v1/recommend/batch", json={"requests": requests})
    assert answer.status_code == 200
    outcomes = answer.json()["outcomes"]
    assert [outcome.keys() for outcome in outcomes] == [{"answer"}, {"error"}, {"error"}, {"answer"}]
    assert [item["item_id"] for item in outcomes[0]["answer"]["items"]] == ["i0", "i1"]
    assert outcomes[1]["error"]["field"] == "user_id"
    assert outcomes[2]["error"]["code"] == "internal"
    assert "secret" not in answer.text
    assert outcomes[3]["answer"]["items"][0]["item_id"] == "i1"
    ids = [outcome["answer"]["request_id"] for outcome in outcomes if "answer" in outcome]
    assert len(set(ids)) == 2


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"requests": []}, "requests"),
        ({"requests": [{"user_id": "u1"}] * 257}, "requests"),
        ({"requests": [{"user_id": "u1", "k": 0}]}, "requests[0].k"),
        ({"requests": [{"user": "u1"}]}, "user"),
    ],
)
def test_what_is_no_batch_is_422(app, call, body: dict[str, Any], field: str) -> None:
    answer = call(app, "POST", "/v1/recommend/batch", json=body)
    assert (answer.status_code, answer.json()["error"]["field"]) == (422, field)


def test_an_unknown_field_inside_a_batch_is_named_with_its_place(app, call) -> None:
    error = call(app, "POST", "/v1/recommend/batch", json={"requests": [{"user": "u1"}]}).json()["error"]
    assert error["message"] == "there is no field 'user' in requests[0]"


def test_scores_come_in_the_order_asked_for_and_are_null_for_strangers(app, call) -> None:
    body = call(app, "POST", "/v1/score", json={"user_id": "u1", "items": ["i3", "nowhere", "i0"]}).json()
    assert body.pop("request_id")
    assert body == {"scores": [0.25, None, 1.0], "bundle": "b0c1"}
    assert call(app, "POST", "/v1/score", json={"items": ["i3"]}).json()["error"]["field"] == "user_id"
    assert call(app, "POST", "/v1/score", json={"user_id": "u1"}).status_code == 422


def test_similar_items(app, call) -> None:
    body = call(app, "GET", "/v1/similar/i0?k=2").json()
    assert [item["item_id"] for item in body["items"]] == ["i1", "i2"]
    assert (body["bundle"], body["source"]) == ("b0c1", "model")
    unknown = call(app, "GET", "/v1/similar/no/such item")
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "unknown_item")
    for k in ("0", "1001", "ten", "-1", "٣", "9" * 5000):
        wrong = call(app, "GET", f"/v1/similar/i0?k={k}")
        assert (wrong.status_code, wrong.json()["error"]["field"]) == (422, "k")


@pytest.mark.parametrize("error", [ZeroDivisionError, OverloadError, HttpError(404, "unknown_item", "none")])
def test_an_error_has_the_id_that_the_service_knows_the_request_by(
    app, call, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: Any
) -> None:
    known: list[str] = []

    async def fails(_: Service, *given: Any) -> Reply:
        known.append(given[-1])
        raise error

    monkeypatch.setattr(Service, "similar", fails)
    told = call(app, "GET", "/v1/similar/i0").json()
    assert [told["request_id"]] == known
    if error is ZeroDivisionError:
        monkeypatch.setattr("recfit.serve.v2.infer", fails)
        message = call(app, "POST", "/v2/models/default/infer", json={}).json()["error"]
        assert [f"request {number} failed" in caplog.text for number in known] == [True, True]
        assert message.endswith(f"under {known[1]}")


@pytest.mark.parametrize("error", [OverloadError, ZeroDivisionError])
def test_an_error_is_the_same_alone_in_a_batch_and_of_another_route(
    app, call, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: type[Exception]
) -> None:
    async def fails(*_: Any) -> Any:
        raise error

    monkeypatch.setattr(Service, "_recommended", fails)
    monkeypatch.setattr(Service, "similar", fails)
    alone = call(app, "POST", "/v1/recommend", json={"user_id": "u1"}).json()
    batch = call(app, "POST", "/v1/recommend/batch", json={"requests": [{"user_id": "u1"}]}).json()["outcomes"][0]
    similar = call(app, "GET", "/v1/similar/i0").json()
    told = [answer["error"]["message"].partition(" under ") for answer in (alone, batch, similar)]
    assert len({what for what, _, _ in told}) == 1
    assert all(number in caplog.text for _, _, number in told)


def test_similar_items_are_looked_for_once(call) -> None:
    worked: list[Request] = []
    app = app_of(FakeEngine(worked.append))
    worked.clear()  # what a bundle is tried with when it comes
    once, again, more = (call(app, "GET", f"/v1/similar/i0?k={k}").json() for k in (2, 2, 3))
    assert [request.history for request in worked] == [("i0",)] * 2
    assert again["items"] == once["items"] == more["items"][:2]
    assert again["request_id"] != once["request_id"]
    call(app, "POST", "/v1/recommend", json={"history": ["i0"], "k": 2})
    assert len(worked) == 3  # a recommendation for who saw it is something else


@pytest.mark.parametrize("threads", [0, 1])
def test_scores_similar_items_and_explanations_wait_in_the_same_line_and_are_sent_away_with_the_others(
    threads: int,
) -> None:
    app = make_app(Fleet([FakeEngine(lambda request: time.sleep(0.005))], threads=threads, shed_s=0.02))
    asked: list[tuple[str, str, Any]] = [
        ("POST", "/v1/score", {"user_id": "u1", "items": ["i1"]}),
        ("POST", "/v1/recommend", {"user_id": "u1", "explain": True}),
        ("GET", "/v1/similar/i{}", None),  # another item each: who asks for the same waits for the same answer
    ]

    async def crowd(method: str, path: str, body: Any) -> list[httpx.Response]:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://recfit") as client:
            return await asyncio.gather(*(client.request(method, path.format(n), json=body) for n in range(30)))

    for one in asked:
        found = asyncio.run(crowd(*one))
        assert {answer.status_code for answer in found} == {200, 503}
        refused = [answer for answer in found if answer.status_code == 503]
        assert {answer.json()["error"]["code"] for answer in refused} == {"overloaded"}
        assert {answer.headers["retry-after"] for answer in refused} == {"1"}


def test_an_explanation_has_a_deadline_too(app, call) -> None:
    body = {"user_id": "u1", "explain": True, "deadline_ms": 1e-6}
    late = call(app, "POST", "/v1/recommend", json=body)
    assert (late.status_code, late.json()["error"]["code"]) == (504, "deadline_exceeded")
    assert call(app, "POST", "/v1/recommend", json={**body, "deadline_ms": 10_000}).status_code == 200


def test_only_candidates_are_ranked(app, call) -> None:
    body = {"user_id": "u1", "candidates": ["i9", "i3", "nowhere"], "k": 5}
    items = call(app, "POST", "/v1/recommend", json=body).json()["items"]
    assert [item["item_id"] for item in items] == ["i3", "i9"]


@pytest.mark.parametrize("threads", [0, 1])
def test_a_request_may_ask_where_its_time_went(call, threads: int) -> None:
    app = app_of(FakeEngine(), threads=threads)
    told = call(app, "POST", "/v1/recommend", json={"user_id": "u1", "explain": True}).json()
    silent = call(app, "POST", "/v1/recommend", json={"user_id": "u1"}).json()
    assert told["timings_ms"]["retrieve"] == 0.5
    assert 0 < told["timings_ms"]["total"] < 1000
    assert "timings_ms" not in silent
    assert told["items"] == silent["items"]


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("POST", "/v1/recommend", {"k": 0}, 422),
        ("POST", "/v1/recommend", {"user_id": "u1", "model": "green"}, 404),
        ("POST", "/v1/recommend", {"user_id": "u1", "deadline_ms": 1e-6}, 504),
        ("POST", "/v1/recommend", {"history": ["i1"]}, 500),
        ("GET", "/v1/similar/nothing", None, 404),
        ("GET", "/v1/similar/i1", None, 500),
        ("GET", "/nowhere", None, 404),
        ("GET", "/v1/recommend", None, 405),
    ],
)
def test_every_refusal_has_an_id_of_its_own(
    call, caplog: pytest.LogCaptureFixture, method: str, path: str, body: Any, status: int
) -> None:
    def during(request: Request) -> None:
        if request.history == ("i1",):
            raise ZeroDivisionError

    app = app_of(FakeEngine(during))
    found = [call(app, method, path, json=body) for _ in range(2)]
    assert [answer.status_code for answer in found] == [status] * 2
    one, other = (answer.json()["request_id"] for answer in found)
    assert one != other
    assert (f"request {one} failed" in caplog.text) == (status == 500)


LONG = "x" * 257


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("/v1/events", {"events": [{"user_id": "u1", "item_id": LONG}]}, "events[0].item_id"),
        ("/v1/events", {"events": [{"user_id": LONG, "item_id": "i1"}]}, "events[0].user_id"),
        ("/v1/events", {"events": [{"user_id": 2**63, "item_id": "i1"}]}, "events[0].user_id"),
        ("/v1/feedback", {"request_id": LONG}, "request_id"),
        ("/v1/feedback", {"request_id": "r", "item_id": LONG}, "item_id"),
    ],
)
def test_ids_that_are_kept_are_no_longer_than_ids_are(call, path: str, body: object, field: str) -> None:
    refused = call(app_of(FakeEngine()), "POST", path, json=body)
    assert (refused.status_code, refused.json()["error"]["field"]) == (422, field)


def test_the_longest_ids_are_kept(call) -> None:
    events = [{"user_id": "x" * 256, "item_id": "y" * 256}, {"user_id": -(2**63), "item_id": ""}]
    assert call(app_of(FakeEngine()), "POST", "/v1/events", json={"events": events}).json()["kept"] == 2


def test_answers_to_one_body_are_not_too_long_together(call) -> None:
    app = app_of(FakeEngine())
    bodies = [{"user_id": "u1", "k": 1000}] * 25
    tensors = [
        {"name": "user_id", "shape": [26], "datatype": "BYTES", "data": ["u1"] * 26},
        {"name": "k", "shape": [1], "datatype": "INT64", "data": [1000]},
    ]
    assert call(app, "POST", "/v1/recommend/batch", json={"requests": bodies}).status_code == 200
    refused = call(app, "POST", "/v1/recommend/batch", json={"requests": [*bodies, bodies[0]]})
    assert (refused.status_code, refused.json()["error"]["field"]) == (422, "k")
    assert "26000 items together; ask for 25600 at most" in refused.json()["error"]["message"]
    assert call(app, "POST", "/v2/models/default/infer", json={"inputs": tensors}).status_code == 422

from __future__ import annotations

import asyncio
import json
import threading
from typing import Any

import httpx
import pytest
from fake_engine import FakeEngine, app_of
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.routing import Mount

from recfit.types import Request

PATH = "/v1/recommend"


@pytest.fixture(scope="module")
def app():
    return app_of(FakeEngine())


def test_answer_has_items_best_first_with_bundle_source_and_request_id(app, call) -> None:
    answer = call(app, "POST", PATH, json={"user_id": "u1", "k": 2})
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    body = answer.json()
    assert body.pop("request_id")
    assert body == {
        "items": [{"item_id": "i0", "score": 1.0, "title": "Title of i0"}, {"item_id": "i1", "score": 0.5}],
        "bundle": "b0c1",
        "source": "model",
    }


def test_request_ids_differ(app, call) -> None:
    ids = {call(app, "POST", PATH, json={"user_id": "u1"}).json()["request_id"] for _ in range(3)}
    assert len(ids) == 3


@pytest.mark.parametrize(
    ("body", "request_"),
    [
        ({"user_id": "u1"}, Request("u1")),
        ({"user_id": 7}, Request("7")),
        ({"user_id": ""}, Request("")),
        ({"user_id": "x y\u00fc\u0000"}, Request("x y\u00fc\u0000")),
        ({"history": []}, Request(None, ())),
        ({"history": ["i1", "i1"], "exclude": ["i2"]}, Request(None, ("i1", "i1"), ("i2",))),
        ({"user_id": None, "history": ["nowhere"]}, Request(None, ("nowhere",))),
        ({"user_id": "u1", "history": None}, Request("u1")),
        ({"user_id": "u1", "history": ["i3"]}, Request("u1", ("i3",))),
        ({"context": {"hour": "13"}}, Request(context={"hour": "13"})),
        ({"user_id": "u1", "context": {"hour": 13.0}}, Request("u1", context={"hour": 13.0})),
        ({"user_id": "u1", "context": {}}, Request("u1")),
    ],
)
def test_the_engine_is_asked_what_the_body_says(call, body: dict[str, Any], request_: Request) -> None:
    asked: list[Request] = []
    answer = call(app_of(FakeEngine(asked.append)), "POST", PATH, json=body)
    assert (answer.status_code, asked[-1]) == (200, request_)


@pytest.mark.parametrize(("k", "length"), [(1, 1), (10, 10), (1000, 50)])
def test_k_is_the_most_that_is_returned(app, call, k: int, length: int) -> None:
    assert len(call(app, "POST", PATH, json={"user_id": "u1", "k": k}).json()["items"]) == length


def test_k_is_ten_when_left_out(app, call) -> None:
    assert len(call(app, "POST", PATH, json={"user_id": "u1"}).json()["items"]) == 10


def test_excluded_items_are_not_returned(app, call) -> None:
    items = call(app, "POST", PATH, json={"user_id": "u1", "exclude": ["i0", "i2"], "k": 2}).json()["items"]
    assert [item["item_id"] for item in items] == ["i1", "i3"]


@pytest.mark.parametrize("body", [{"user_id": "stranger"}, {"history": []}, {"user_id": "stranger", "history": []}])
def test_strangers_are_answered_from_the_fallback(app, call, body: dict[str, Any]) -> None:
    answer = call(app, "POST", PATH, json=body)
    assert (answer.status_code, answer.json()["source"], len(answer.json()["items"])) == (200, "fallback", 10)


MALFORMED = [b"", b"{", b'{"k":1,}', b'{"user_id":"a"} x', b'{"user_id":NaN}', b'{"user_id":"\xff"}', b"\xef\xbb\xbf{}"]


@pytest.mark.parametrize("body", MALFORMED)
def test_malformed_json_is_400(app, call, body: bytes) -> None:
    answer = call(app, "POST", PATH, content=body)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["field"]) == (400, "malformed_json", None)


INVALID = [
    ("[]", None, "expected `object`, got `array`"),
    ("null", None, "expected `object`, got `null`"),
    ('"u1"', None, "got `str`"),
    (
        '{"user_id":"u1","top":3}',
        "top",
        "user_id, history, context, k, exclude, candidates, explain, model, deadline_ms, variant",
    ),
    ('{"we`ird - at `$.k`":1}', "we`ird - at `$.k`", "there is no field"),
    ('{"user_id":true}', "user_id", "got `bool`"),
    ('{"user_id":1.5}', "user_id", "got `float`"),
    ('{"user_id":["u1"]}', "user_id", "got `array`"),
    ('{"user_id":' + "9" * 50_000 + "}", "user_id", "out of range"),
    ('{"history":"i1"}', "history", "got `str`"),
    ('{"history":["i1",2]}', "history[1]", "expected `str`, got `int`"),
    ('{"history":[null]}', "history[0]", "got `null`"),
    ('{"history":' + "[" * 30_000 + "}", "history[0]", "got `array`"),
    ('{"user_id":"u1","k":"10"}', "k", "expected `int`, got `str`"),
    ('{"user_id":"u1","k":1.5}', "k", "got `float`"),
    ('{"user_id":"u1","k":null}', "k", "got `null`"),
    ('{"user_id":"u1","k":true}', "k", "got `bool`"),
    ('{"user_id":"u1","k":0}', "k", ">= 1"),
    ('{"user_id":"u1","k":-1}', "k", ">= 1"),
    ('{"user_id":"u1","k":1001}', "k", "<= 1000"),
    ('{"user_id":"u1","exclude":null}', "exclude", "got `null`"),
    ('{"user_id":"u1","exclude":[1]}', "exclude[0]", "got `int`"),
    ('{"context":[["hour","1"]]}', "context", "got `array`"),
    ('{"context":{"hour":null}}', "context[...]", "got `null`"),
    ('{"context":{"hour":true}}', "context[...]", "got `bool`"),
    ('{"context":{"hour":["1"]}}', "context[...]", "got `array`"),
    ('{"context":{"hour":"' + "1" * 1001 + '"}}', "context[...]", "length <= 1000"),
    ('{"user_id":"u1","context":{"hour":"1","weather":"dry"}}', "context", "no such feature"),
    ('{"context":{}}', "user_id", "neither user_id nor history nor context"),
    ("{}", "user_id", "neither user_id nor history nor context"),
    ('{"user_id":null,"history":null}', "user_id", "neither user_id nor history"),
]


@pytest.mark.parametrize(("body", "field", "words"), INVALID, ids=[row[0][:40] for row in INVALID])
def test_invalid_requests_are_422_and_name_the_field(app, call, body: str, field: str | None, words: str) -> None:
    answer = call(app, "POST", PATH, content=body)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["field"]) == (422, "invalid_request", field)
    assert words in error["message"]


def test_an_unknown_field_of_any_length_is_named_shortly(app, call) -> None:
    answer = call(app, "POST", PATH, content=json.dumps({"x" * 60_000: 1}))
    assert answer.status_code == 422
    assert len(answer.content) < 500


def padded(size: int) -> bytes:
    """A valid body of `size` bytes."""
    return b'{"user_id":"u1"' + b" " * (size - 16) + b"}"


def test_a_body_of_64_kib_passes_and_one_byte_more_is_413(app, call) -> None:
    assert call(app, "POST", PATH, content=padded(65536)).status_code == 200
    answer = call(app, "POST", PATH, content=padded(65537))
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["field"]) == (413, "body_too_large", None)
    assert "65536" in error["message"]


def asgi(app, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What the app sends when it receives `messages`."""
    sent: list[dict[str, Any]] = []
    left = iter(messages)

    async def receive() -> dict[str, Any]:
        return next(left)

    async def send(message) -> None:
        sent.append(message)

    asyncio.run(app({"type": "http", "method": "POST", "path": PATH, "headers": []}, receive, send))
    return sent


def part(body: bytes, more: bool) -> dict[str, Any]:
    return {"type": "http.request", "body": body, "more_body": more}


def test_a_body_may_come_in_parts(app) -> None:
    sent = asgi(app, [part(b'{"user_id', True), part(b"", True), part(b'": "u1"}', False)])
    assert sent[0]["status"] == 200
    assert json.loads(sent[1]["body"])["source"] == "model"


def test_a_body_in_parts_is_refused_before_all_of_it_is_read(app) -> None:
    sent = asgi(app, [part(b" " * 40_000, True), part(b" " * 40_000, True)])
    assert sent[0]["status"] == 413


def test_a_client_that_leaves_early_is_counted_and_not_answered(call) -> None:
    app = app_of(FakeEngine())
    assert asgi(app, [part(b"{", True), {"type": "http.disconnect"}]) == []
    metrics = call(app, "GET", "/metrics").text
    assert 'recfit_requests_total{model="none",route="/v1/recommend",source="none",status="499"} 1.0' in metrics
    assert "recfit_requests_in_flight 0.0" in metrics


@pytest.mark.parametrize("threads", [0, 1])
def test_an_engine_that_fails_is_500_without_its_reason_and_the_next_request_is_served(call, caplog, threads) -> None:
    def during(request: Request) -> None:
        if request.user_id == "poison":
            raise ZeroDivisionError("secret of the engine")

    app = app_of(FakeEngine(during), threads=threads)
    answer = call(app, "POST", PATH, json={"user_id": "poison"})
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (500, "internal")
    assert "secret" not in answer.text
    request_id = error["message"].split()[-1]
    assert request_id in caplog.text
    assert "secret of the engine" in caplog.text
    assert call(app, "POST", PATH, json={"user_id": "u1"}).status_code == 200


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "HEAD"])
def test_the_wrong_method_is_405_and_names_the_right_one(app, call, method: str) -> None:
    answer = call(app, method, PATH)
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")
    if method != "HEAD":
        error = answer.json()["error"]
        assert (error["code"], error["field"]) == ("method_not_allowed", None)
        assert error["message"] == f"{method} is not allowed on {PATH}; use POST"


@pytest.mark.parametrize("path", ["/console", "/v1/recommend/", "/v1", "/v1/recommend%2F", "/docs"])
def test_an_unknown_route_is_404(app, call, path: str) -> None:
    answer = call(app, "POST", path, json={"user_id": "u1"})
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["field"]) == (404, "not_found", None)
    assert "/openapi.json" in error["message"]


def test_the_app_can_be_mounted_below_a_path(app, call) -> None:
    outer = Starlette(routes=[Mount("/shop", app)])
    assert call(outer, "POST", "/shop" + PATH, json={"user_id": "u1"}).status_code == 200
    assert call(outer, "GET", "/shop/healthz").status_code == 200


def test_a_pool_runs_engine_calls_at_the_same_time(call) -> None:
    together = threading.Barrier(2, timeout=5)

    def during(request: Request) -> None:
        if request.user_id == "u1":
            together.wait()

    app = app_of(FakeEngine(during), threads=2)

    async def two() -> list[int]:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://recfit") as client:
            answers = await asyncio.gather(*(client.post(PATH, json={"user_id": "u1", "k": k}) for k in (3, 4)))
            return [answer.status_code for answer in answers]

    assert asyncio.run(two()) == [200, 200]


def test_concurrent_requests_get_their_own_answers() -> None:
    app = app_of(FakeEngine(), threads=3)

    async def many() -> list[tuple[int, list[str]]]:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://recfit") as client:
            asked = [{"history": [f"i{n % 50}"], "k": n % 7 + 1} for n in range(200)]
            answers = await asyncio.gather(*(client.post(PATH, json=body) for body in asked))
        return [(n, [item["item_id"] for item in a.json()["items"]]) for n, a in enumerate(answers)]

    for n, items in asyncio.run(many()):
        assert items == [f"i{m}" for m in range(50) if m != n % 50][: n % 7 + 1]


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
FIELDS = st.sampled_from(["user_id", "history", "k", "exclude"]) | st.text(max_size=3)
BODIES = st.dictionaries(FIELDS, VALUES, max_size=4).map(lambda value: json.dumps(value).encode()) | st.binary()


@settings(max_examples=150, deadline=None)
@given(body=BODIES)
def test_no_body_at_all_makes_the_server_fail(app, body: bytes) -> None:
    sent = asgi(app, [part(body, False)])
    answer = json.loads(sent[1]["body"])
    assert sent[0]["status"] in (200, 400, 422)
    assert ("error" in answer) == (sent[0]["status"] != 200)
    assert int(dict(sent[0]["headers"])[b"content-length"]) == len(sent[1]["body"])

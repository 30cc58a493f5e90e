"""The Open Inference Protocol, for clients that speak it."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import pytest
from fake_engine import FakeEngine, app_of

from recfit.serve.v2 import LOWEST
from recfit.types import Request

INFER = "/v2/models/default/infer"


def texts(name: str, *values: str, shape: list[int] | None = None) -> dict[str, Any]:
    return {"name": name, "shape": shape or [len(values)], "datatype": "BYTES", "data": list(values)}


def number(value: Any, datatype: str = "INT64") -> dict[str, Any]:
    return {"name": "k", "shape": [1], "datatype": datatype, "data": [value]}


@pytest.fixture(scope="module")
def app():
    return app_of(FakeEngine())


def test_health_and_metadata(app, call) -> None:
    assert call(app, "GET", "/v2/health/live").json() == {"live": True}
    assert call(app, "GET", "/v2/health/ready").json() == {"ready": True}
    assert call(app, "GET", "/v2/models/default/ready").json() == {"name": "default", "ready": True}
    assert call(app, "GET", "/v2").json() == {"name": "recfit", "version": version("recfit"), "extensions": []}
    told = call(app, "GET", "/v2/models/default").json()
    assert (told["name"], told["versions"], told["platform"]) == ("default", ["b0c1"], "recfit")
    assert [part["name"] for part in told["inputs"]] == ["user_id", "history", "context.hour", "k"]
    for path in ("/v2/models/green", "/v2/models/green/ready"):
        assert call(app, "GET", path).json() == {"error": "there is no model 'green'; there are: default"}
    assert call(app, "POST", "/v2/models/green/infer", json={"inputs": [texts("user_id", "u1")]}).status_code == 404


def test_a_version_is_the_id_of_the_bundle(app, call) -> None:
    asked = {"inputs": [texts("user_id", "u1")]}
    place, other = "/v2/models/default/versions/b0c1", "/v2/models/default/versions/b0c2"
    assert call(app, "GET", place).json() == call(app, "GET", "/v2/models/default").json()
    assert call(app, "GET", f"{place}/ready").json() == {"name": "default", "ready": True}
    found = [call(app, "POST", path, json=asked).json()["outputs"] for path in (f"{place}/infer", INFER)]
    assert found[0] == found[1]
    for method, path in (("GET", other), ("GET", f"{other}/ready"), ("POST", f"{other}/infer")):
        answer = call(app, method, path, json=asked)
        assert answer.status_code == 404
        assert answer.json() == {"error": "model 'default' has no version 'b0c2'; it has b0c1"}


def test_rows_are_answered_as_the_other_route_answers_them(app, call) -> None:
    asked = {"id": "mine", "inputs": [texts("user_id", "u1", "stranger"), number(3)], "outputs": [], "parameters": {}}
    told = call(app, "POST", INFER, json=asked).json()
    assert (told["id"], told["model_name"], told["model_version"]) == ("mine", "default", "b0c1")
    items, scores = told["outputs"]
    assert (items["name"], items["datatype"], items["shape"]) == ("items", "BYTES", [2, 3])
    assert (scores["name"], scores["datatype"], scores["shape"]) == ("scores", "FP32", [2, 3])
    wanted = call(app, "POST", "/v1/recommend", json={"user_id": "u1", "k": 3}).json()["items"]
    assert items["data"][:3] == [item["item_id"] for item in wanted]
    assert scores["data"][:3] == [item["score"] for item in wanted]


@pytest.mark.parametrize("data", [["i0", "i1", "", "i2"], [["i0", "i1"], ["", "i2"]]])
def test_histories_are_filled_up_with_empty_texts(app, call, data: list[Any]) -> None:
    history = {"name": "history", "shape": [2, 2], "datatype": "BYTES", "data": data}
    items = call(app, "POST", INFER, json={"inputs": [history, number(1)]}).json()["outputs"][0]["data"]
    assert items == ["i2", "i0"]


def test_a_context_has_a_tensor_for_each_feature_and_an_empty_text_says_nothing(call) -> None:
    asked: list[Request] = []
    inputs = [texts("user_id", "u1", "7"), texts("context.hour", "13", "", shape=[2, 1])]
    assert call(app_of(FakeEngine(asked.append)), "POST", INFER, json={"inputs": inputs}).status_code == 200
    assert asked[-2:] == [Request("u1", context={"hour": "13"}), Request("7")]
    told = call(app_of(FakeEngine(asked.append)), "POST", INFER, json={"inputs": inputs[1:]})
    assert told.json()["outputs"][0]["shape"] == [2, 10]
    assert asked[-2:] == [Request(context={"hour": "13"}), Request()]


def test_short_answers_are_filled_up(app, call) -> None:
    items, scores = call(app, "POST", INFER, json={"inputs": [texts("user_id", "u1"), number(60)]}).json()["outputs"]
    assert items["data"][49:] == ["i49"] + [""] * 10
    assert scores["data"][50:] == [LOWEST] * 10


def test_a_live_event_is_seen(call) -> None:
    app = app_of(FakeEngine())
    call(app, "POST", "/v1/events", json={"events": [{"user_id": "u1", "item_id": "i0"}]})
    assert call(app, "POST", INFER, json={"inputs": [texts("user_id", "u1")]}).json()["outputs"][0]["data"][0] == "i1"


@pytest.mark.parametrize(
    ("inputs", "named"),
    [
        ([], "neither user_id nor history nor context"),
        ([texts("context.weather", "dry")], "no such feature"),
        ([texts("user_id", "u1"), texts("context.hour", "1", "2")], "user_id has 1 rows and context.hour 2"),
        ([texts("context.hour", "1", "2", shape=[1, 2])], "context.hour has one value a row"),
        ([{**texts("context.hour", "1"), "datatype": "INT64"}], "context.hour"),
        ([texts("user_id")], "0 rows"),
        ([texts("user_id", *["u"] * 257)], "257 rows"),
        ([texts("user_id", "u1", "u2", shape=[1, 2])], "user_id"),
        ([texts("user_id", "u1", shape=[2])], "user_id"),
        ([texts("user_id", "u1", shape=[-1, -1])], "user_id"),
        ([texts("user_id", "u1", shape=[1, 1, 1])], "user_id"),
        ([{**texts("user_id", "u1"), "datatype": "INT64"}], "user_id"),
        ([{**texts("user_id"), "shape": [1], "data": [7]}], "user_id"),
        ([texts("user_id", "u1", "u2"), texts("history", "i1", shape=[1, 1])], "history"),
        ([texts("user_id", "u1"), number(0)], "k"),
        ([texts("user_id", "u1"), number(1001)], "k"),
        ([texts("user_id", "u1"), number(True)], "k"),
        ([texts("user_id", "u1"), {**number(1), "data": [1, 2]}], "k"),
        ([{"name": "user_id"}], "inputs[0]"),
    ],
)
def test_what_cannot_be_asked_is_422_and_names_the_input(app, call, inputs: list[Any], named: str) -> None:
    answer = call(app, "POST", INFER, json={"inputs": inputs})
    assert answer.status_code == 422
    assert answer.json().keys() == {"error"}
    assert named in answer.json()["error"]


def test_other_bodies_are_refused_too(app, call) -> None:
    assert call(app, "POST", INFER, content=b"{").status_code == 400
    assert call(app, "POST", INFER, content=b" " * 70_000).status_code == 413

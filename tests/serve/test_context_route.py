"""A context over HTTP, answered by a bundle that reads user features."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from starlette.types import ASGIApp

import toys
from recfit.engine import Engine, open_bundle
from recfit.pipeline import Pipeline, Stage
from recfit.serve.app import make_app
from recfit.serve.fleet import Fleet
from recfit.types import Request

PATH = "/v1/recommend"
OPTIONS = {"embedding_dim": 4, "hidden": 8, "top": 4, "features": True, "users": False}
FEW, MANY = {"age": "few", "job": "many"}, {"age": "many", "job": "few"}


@pytest.fixture(scope="module")
def engine(exported: Callable[[Pipeline], Path]) -> Engine:
    return open_bundle(exported(Pipeline(Stage(toys.trained("neumf", OPTIONS)))))


@pytest.fixture(scope="module")
def app(engine: Engine) -> ASGIApp:
    return make_app(Fleet([engine]))


@pytest.mark.parametrize("who", [{}, {"user_id": "nobody"}, {"user_id": "üser 3"}, {"history": []}])
def test_the_server_answers_what_the_engine_answers(app, engine: Engine, call, who: dict[str, Any]) -> None:
    for context in (FEW, MANY, FEW):  # what was answered before is no answer to another
        request = Request(who.get("user_id"), () if "history" in who else None, context=context)
        wanted = engine.recommend([request])[0]
        answer = call(app, "POST", PATH, json={**who, "context": context}).json()
        assert (answer["source"], [item["item_id"] for item in answer["items"]]) == ("model", [*wanted.items])
        assert [item["score"] for item in answer["items"]] == pytest.approx(wanted.scores)
    few, many = (engine.recommend([Request(context=context)])[0].scores for context in (FEW, MANY))
    assert few != many


def test_every_route_that_takes_a_user_takes_a_context(app, engine: Engine, call) -> None:
    wanted = engine.recommend([Request(context=FEW)], 3)[0]
    asked = {"context": FEW, "k": 3}
    for found in (
        call(app, "POST", PATH, json={**asked, "explain": True}).json(),
        call(app, "POST", "/v1/recommend/batch", json={"requests": [asked]}).json()["outcomes"][0]["answer"],
    ):
        assert [item["item_id"] for item in found["items"]] == [*wanted.items]
    scored = call(app, "POST", "/v1/score", json={"context": FEW, "items": wanted.items}).json()["scores"]
    assert scored == pytest.approx(wanted.scores)
    told = [{"name": f"context.{name}", "shape": [1], "datatype": "BYTES", "data": [FEW[name]]} for name in FEW]
    k = {"name": "k", "shape": [1], "datatype": "INT64", "data": [3]}
    inferred = call(app, "POST", "/v2/models/default/infer", json={"inputs": [*told, k]}).json()["outputs"]
    assert inferred[0]["data"] == [*wanted.items]
    named = call(app, "GET", "/v2/models/default").json()["inputs"]
    assert [part["name"] for part in named] == ["user_id", "history", "context.age", "context.job", "k"]


def test_an_unknown_value_is_no_error(app, call) -> None:
    answer = call(app, "POST", PATH, json={"context": {"age": "no such value", "job": 7}})
    assert (answer.status_code, answer.json()["source"]) == (200, "fallback")


@pytest.mark.parametrize("path", [PATH, "/v1/score", "/v1/recommend/batch"])
def test_what_a_bundle_cannot_read_is_422(app, call, exported, path: str) -> None:
    without = make_app(Fleet([open_bundle(exported(toys.original("sasrec")))]))
    refusals = (
        (app, {"hour": "13"}, "there is no feature 'hour'; there are age, job"),
        (without, FEW, "this bundle reads no user features; leave `context` out"),
    )
    for asked, context, says in refusals:
        body: dict[str, Any] = {"user_id": "üser 3", "context": context}
        if path == "/v1/score":
            body["items"] = ["item № 3"]
        answer = call(asked, "POST", path, json={"requests": [body]} if path.endswith("batch") else body)
        told = answer.json()["outcomes"][0]["error"] if path.endswith("batch") else answer.json()["error"]
        assert answer.status_code == (200 if path.endswith("batch") else 422)
        assert (told["code"], told["field"]) == ("invalid_request", "context")
        assert says in told["message"]
    asked = {"inputs": [{"name": "context.hour", "shape": [1], "datatype": "BYTES", "data": ["13"]}]}
    answer = call(app, "POST", "/v2/models/default/infer", json=asked)
    assert (answer.status_code, "there is no feature 'hour'" in answer.json()["error"]) == (422, True)


def test_a_long_name_is_named_shortly(app, call) -> None:
    answer = call(app, "POST", PATH, content=json.dumps({"context": {"x" * 60_000: "1"}}))
    assert answer.status_code == 422
    assert len(answer.content) < 500

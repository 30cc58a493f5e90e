"""The OpenAPI 3.1 document, made from the structs that decode and encode the bodies."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import msgspec

from recfit.serve import v2
from recfit.serve.guard import OPEN
from recfit.serve.schema import (
    BatchRequest,
    BatchResponse,
    BundleResponse,
    ErrorResponse,
    EventsRequest,
    EventsResponse,
    FeedbackRequest,
    FeedbackResponse,
    Health,
    ModelsResponse,
    RecommendRequest,
    RecommendResponse,
    ScoreRequest,
    ScoreResponse,
)
from recfit.serve.status import StatusResponse

Schema = dict[str, Any]

POSTS: dict[str, tuple[str, str, type, type]] = {
    "/v1/recommend": ("recommend", "The best items for a user or a history", RecommendRequest, RecommendResponse),
    "/v1/recommend/batch": ("recommend_batch", "Several recommendations at once", BatchRequest, BatchResponse),
    "/v1/score": ("score", "Scores of given items", ScoreRequest, ScoreResponse),
    "/v1/feedback": ("feedback", "What somebody did with an answer", FeedbackRequest, FeedbackResponse),
    "/v1/events": ("record", "What users did; their next request sees it", EventsRequest, EventsResponse),
}
"""Operation, summary, and the structs of request and answer."""
STRUCTS = (
    *dict.fromkeys(struct for _, _, asked, answered in POSTS.values() for struct in (asked, answered)),
    ErrorResponse,
    BundleResponse,
    ModelsResponse,
    StatusResponse,
    Health,
    v2.InferRequest,
    v2.InferResponse,
    v2.Metadata,
    v2.Server,
    v2.Live,
    v2.Ready,
    v2.ModelReady,
    v2.Refused,
)
ERRORS = {
    "400": "The body is not JSON",
    "401": "The server wants a key, and this is none that it knows",
    "404": "There is no such model, or the bundle does not know the item",
    "408": "The request did not come in within ten seconds",
    "409": "The server keeps no exposure log",
    "413": "The body is over 64 KiB",
    "422": "It is no request; `field` names the part",
    "429": "The key made more requests than it may; `Retry-After` says when the next one may come",
    "500": "The engine failed",
    "503": "The model is being loaded or cannot be, its canary failed, too much waits, or the server is about to stop",
    "504": "The deadline passed before the request could be run",
}
BEARER, KEY = "bearer", "key"
SCHEMES = {
    BEARER: {"type": "http", "scheme": "bearer"},
    KEY: {"type": "apiKey", "in": "header", "name": "X-API-Key"},
}
SECURITY: Sequence[Schema] = ({}, {BEARER: []}, {KEY: []})
"""Nothing where the server was given no `--keys`, else a key in one of two headers."""
MODEL = {"name": "model", "in": "query", "schema": {"type": "string"}}


def document() -> bytes:
    """JSON. Every struct is a component; every operation refers to them."""
    references, components = msgspec.json.schema_components(STRUCTS, ref_template="#/components/schemas/{name}")
    schema: dict[type, Schema] = dict(zip(STRUCTS, references, strict=True))
    return msgspec.json.encode(
        {
            "openapi": "3.1.0",
            "info": {"title": "recfit", "version": version("recfit"), "license": {"name": "Apache-2.0"}},
            "security": SECURITY,
            "paths": _guarded(_paths(schema), schema),
            "components": {"schemas": components, "securitySchemes": SCHEMES},
        }
    )


def _guarded(paths: Schema, schema: dict[type, Schema]) -> Schema:
    """With what is said before a route is asked: to who may not ask, or not so often, and to whose body does not come in.
    Somebody without a key may ask for what load balancers do, unless that names a model."""
    for path, operations in paths.items():
        error = schema[v2.Refused if path.startswith("/v2") else ErrorResponse]
        for operation in operations.values():
            if path not in OPEN or "parameters" in operation:
                operation["responses"] |= _errors(error, "401", "429")
            else:
                operation["security"] = []
            if "requestBody" in operation:
                operation["responses"] |= _errors(schema[ErrorResponse], "408")
    return paths


def _paths(schema: dict[type, Schema]) -> Schema:
    error = schema[ErrorResponse]
    posts = {}
    for path, (name, summary, asked, answered) in POSTS.items():
        operation = _operation(name, summary, _json(schema[answered]))
        operation["requestBody"] = {"required": True, "content": _json(schema[asked])}
        operation["responses"] |= _errors(error, "400", "404", "413", "422", "500", "503", "504")
        if asked is FeedbackRequest:
            operation["responses"] |= _errors(error, "409")
        posts[path] = {"post": operation}
    similar = _operation("similar", "The items most like an item", _json(schema[RecommendResponse]))
    similar["parameters"] = [
        {"name": "item_id", "in": "path", "required": True, "schema": {"type": "string"}},
        {"name": "k", "in": "query", "schema": {"type": "integer", "minimum": 1, "maximum": 1000, "default": 10}},
        MODEL,
    ]
    similar["responses"] |= _errors(error, "404", "422", "500", "503")
    ready = _operation("ready", "A recommendation was just made", _json(schema[Health]))
    ready["responses"] |= _errors(error, "404", "503")
    ready["parameters"] = [MODEL]
    bundle = _operation("bundle", "The recipe and the promise of the bundle", _json(schema[BundleResponse]))
    bundle["parameters"] = [MODEL]
    bundle["responses"] |= _errors(error, "404")
    text = {"text/plain": {"schema": {"type": "string"}}}
    return {
        **posts,
        "/v1/similar/{item_id}": {"get": similar},
        **_v2(schema),
        "/v1/models": {"get": _operation("models", "What can be asked for as `model`", _json(schema[ModelsResponse]))},
        "/v1/bundle": {"get": bundle},
        "/v1/status": {"get": _operation("status", "The server at the moment", _json(schema[StatusResponse]))},
        "/healthz": {"get": _operation("health", "The process is alive", _json(schema[Health]))},
        "/readyz": {"get": ready},
        "/metrics": {"get": _operation("metrics", "Counters for Prometheus", text)},
        "/openapi.json": {"get": _operation("openapi", "This document", _json({"type": "object"}))},
    }


def _v2(schema: dict[type, Schema]) -> Schema:
    """The routes of the Open Inference Protocol."""
    error = schema[v2.Refused]
    name, version = (
        {"name": part, "in": "path", "required": True, "schema": {"type": "string"}} for part in ("name", "version")
    )
    server = _operation("v2_server", "The server and its version", _json(schema[v2.Server]))
    live = _operation("v2_live", "The process is alive", _json(schema[v2.Live]))
    ready = _operation("v2_ready", "A recommendation was just made", _json(schema[v2.Ready]))
    ready["responses"] |= _errors(error, "503")
    found = {"/v2": {"get": server}, "/v2/health/live": {"get": live}, "/v2/health/ready": {"get": ready}}
    for place, suffix, parameters in (("", "", [name]), ("/versions/{version}", "_version", [name, version])):
        model_ready = _operation(
            f"v2_model_ready{suffix}", "The model just made a recommendation", _json(schema[v2.ModelReady])
        )
        described = _operation(f"v2_model{suffix}", "Inputs and outputs of a model", _json(schema[v2.Metadata]))
        infer = _operation(f"v2_infer{suffix}", "Recommendations as tensors", _json(schema[v2.InferResponse]))
        infer["requestBody"] = {"required": True, "content": _json(schema[v2.InferRequest])}
        infer["responses"] |= _errors(error, "400", "413", "422", "500")
        for operation in (model_ready, described, infer):
            operation["parameters"] = parameters
            operation["responses"] |= _errors(error, "404", "503")
        found[f"/v2/models/{{name}}{place}"] = {"get": described}
        found[f"/v2/models/{{name}}{place}/ready"] = {"get": model_ready}
        found[f"/v2/models/{{name}}{place}/infer"] = {"post": infer}
    return found


def _operation(name: str, summary: str, content: Schema) -> Schema:
    return {"operationId": name, "summary": summary, "responses": {"200": {"description": "OK", "content": content}}}


def _json(schema: Schema) -> Schema:
    return {"application/json": {"schema": schema}}


def _errors(error: Schema, *statuses: str) -> Schema:
    return {status: {"description": ERRORS[status], "content": _json(error)} for status in statuses}

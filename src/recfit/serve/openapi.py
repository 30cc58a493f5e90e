"""The OpenAPI 3.1 document, made from the structs that decode and encode the bodies."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import msgspec

from recfit.serve.schema import BundleResponse, ErrorResponse, Health, RecommendRequest, RecommendResponse

Schema = dict[str, Any]

STRUCTS = (RecommendRequest, RecommendResponse, ErrorResponse, BundleResponse, Health)
ERRORS = {
    "400": "The body is not JSON",
    "413": "The body is over 64 KiB",
    "422": "The body is JSON and not a request; `field` names the part",
    "500": "The engine failed",
    "503": "Not ready: the canary failed, or the server is about to stop",
}


def document() -> bytes:
    """JSON. Every struct is a component; every operation refers to them."""
    references, components = msgspec.json.schema_components(STRUCTS, ref_template="#/components/schemas/{name}")
    schema: dict[type, Schema] = dict(zip(STRUCTS, references, strict=True))
    return msgspec.json.encode(
        {
            "openapi": "3.1.0",
            "info": {"title": "recfit", "version": version("recfit"), "license": {"name": "Apache-2.0"}},
            "paths": _paths(schema),
            "components": {"schemas": components},
        }
    )


def _paths(schema: dict[type, Schema]) -> Schema:
    error = schema[ErrorResponse]
    recommend = _operation("recommend", "The best items for a user or a history", _json(schema[RecommendResponse]))
    recommend["requestBody"] = {"required": True, "content": _json(schema[RecommendRequest])}
    recommend["responses"] |= _errors(error, "400", "413", "422", "500")
    ready = _operation("ready", "A recommendation was just made", _json(schema[Health]))
    ready["responses"] |= _errors(error, "503")
    bundle = _operation("bundle", "The recipe and the promise of the bundle", _json(schema[BundleResponse]))
    text = {"text/plain": {"schema": {"type": "string"}}}
    return {
        "/v1/recommend": {"post": recommend},
        "/v1/bundle": {"get": bundle},
        "/healthz": {"get": _operation("health", "The process is alive", _json(schema[Health]))},
        "/readyz": {"get": ready},
        "/metrics": {"get": _operation("metrics", "Counters for Prometheus", text)},
        "/openapi.json": {"get": _operation("openapi", "This document", _json({"type": "object"}))},
    }


def _operation(name: str, summary: str, content: Schema) -> Schema:
    return {"operationId": name, "summary": summary, "responses": {"200": {"description": "OK", "content": content}}}


def _json(schema: Schema) -> Schema:
    return {"application/json": {"schema": schema}}


def _errors(error: Schema, *statuses: str) -> Schema:
    return {status: {"description": ERRORS[status], "content": _json(error)} for status in statuses}

"""Refusals and failures of Starlette's routes, in the shape of every other error."""

from __future__ import annotations

from collections.abc import Mapping

from starlette.exceptions import HTTPException
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from recfit.serve.schema import HttpError


async def refuse(request: HttpRequest, error: Exception) -> Response:
    """Starlette's own refusals (404, 405) in the shape of every other error."""
    assert isinstance(error, HTTPException)
    method, path = request.method, request.url.path[:100]
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "")
        refused = HttpError(405, "method_not_allowed", f"{method} is not allowed on {path}; use {allowed}")
    else:
        refused = HttpError(error.status_code, "not_found", f"there is no route {path}; /openapi.json lists the routes")
    return as_response(refused, error.headers)


async def no(_: HttpRequest, error: Exception) -> Response:
    assert isinstance(error, HttpError)
    return as_response(error)


async def fail(_: HttpRequest, __: Exception) -> Response:
    """Starlette raises the exception again once this is sent, and the server logs it."""
    return as_response(HttpError(500, "internal", "the server failed; its log has the reason"))


def as_response(refused: HttpError, headers: Mapping[str, str] | None = None) -> Response:
    own = {name.decode(): value.decode() for name, value in refused.headers}
    return Response(refused.body, refused.status, {**own, **(headers or {})}, "application/json")

"""Refusals and failures of Starlette's routes, in the shape of every other error."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from starlette.exceptions import HTTPException
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.types import Scope

from recfit.serve import v2
from recfit.serve.http import failed, number_of, refusal, refused
from recfit.serve.schema import HttpError, encode

log = logging.getLogger("recfit.serve")


async def refuse(request: HttpRequest, error: Exception) -> Response:
    """Starlette's own refusals (404, 405) in the shape of every other error."""
    assert isinstance(error, HTTPException)
    method, path = request.method, request.url.path[:100]
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "")
        told = HttpError(405, "method_not_allowed", f"{method} is not allowed on {path}; use {allowed}")
    else:
        told = HttpError(error.status_code, "not_found", f"there is no route {path}; /openapi.json lists the routes")
    return as_response(request, told, error.headers)


async def no(request: HttpRequest, error: Exception) -> Response:
    """What a route raises for an answer."""
    return as_response(request, refused(error, number_of(request.scope)))


async def fail(request: HttpRequest, _: Exception) -> Response:
    """Starlette raises the exception again once this is sent, and the server logs it below this line."""
    number = number_of(request.scope)
    log.error("request %s failed", number)
    return as_response(request, failed(number))


def as_response(request: HttpRequest, told: HttpError, headers: Mapping[str, str] | None = None) -> Response:
    own = {name.decode(): value.decode() for name, value in told.headers}
    return Response(body_of(told, request.scope), told.status, {**own, **(headers or {})}, "application/json")


def body_of(told: HttpError, scope: Scope) -> bytes:
    """The Open Inference Protocol has a text for an error, and nothing else."""
    of_protocol = scope["path"] == "/v2" or scope["path"].startswith("/v2/")
    return encode(v2.Refused(told.problem.message)) if of_protocol else refusal(told, number_of(scope))

"""Refusals and failures of Starlette's routes, in the shape of every other error."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from starlette.exceptions import HTTPException
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from recfit.serve import v2
from recfit.serve.http import overloaded, refusal, request_id
from recfit.serve.schema import HttpError, encode

log = logging.getLogger("recfit.serve")


async def refuse(request: HttpRequest, error: Exception) -> Response:
    """Starlette's own refusals (404, 405) in the shape of every other error."""
    assert isinstance(error, HTTPException)
    method, path = request.method, request.url.path[:100]
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "")
        refused = HttpError(405, "method_not_allowed", f"{method} is not allowed on {path}; use {allowed}")
    else:
        refused = HttpError(error.status_code, "not_found", f"there is no route {path}; /openapi.json lists the routes")
    return as_response(request, refused, error.headers)


async def no(request: HttpRequest, error: Exception) -> Response:
    assert isinstance(error, HttpError)
    return as_response(request, error)


async def busy(request: HttpRequest, _: Exception) -> Response:
    return as_response(request, overloaded())


async def fail(request: HttpRequest, _: Exception) -> Response:
    """Starlette raises the exception again once this is sent, and the server logs it below this line."""
    number = request_id()
    log.error("request %s failed", number)
    failed = HttpError(500, "internal", f"the server failed; its log has the reason under {number}")
    return as_response(request, failed, number=number)


def as_response(
    request: HttpRequest, refused: HttpError, headers: Mapping[str, str] | None = None, number: str | None = None
) -> Response:
    own = {name.decode(): value.decode() for name, value in refused.headers}
    body = body_of(refused, request.url.path, number)
    return Response(body, refused.status, {**own, **(headers or {})}, "application/json")


def body_of(refused: HttpError, path: str, number: str | None = None) -> bytes:
    """A request that has no `number` yet gets one. The Open Inference Protocol has a text for an error, and nothing else."""
    of_protocol = path == "/v2" or path.startswith("/v2/")
    return encode(v2.Refused(refused.problem.message)) if of_protocol else refusal(refused, number or request_id())

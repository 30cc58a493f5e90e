"""What only operators may do, on a port of its own: swap, roll back and unload bundles, and scrape metrics."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.routing import Route

from recfit.serve.errors import fail, no, refuse
from recfit.serve.fleet import Fleet, Served
from recfit.serve.schema import HttpError, ModelState, encode
from recfit.types import RecfitError


class SwapRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The directory of the bundle that is to answer, on the server's disk."""

    bundle: str


def make_admin(fleet: Fleet) -> Starlette:
    """`PUT /admin/models/NAME {"bundle": path}`, `POST /admin/models/NAME/rollback`, `DELETE /admin/models/NAME`."""

    async def swap(request: HttpRequest) -> Response:
        try:
            asked = msgspec.json.decode(await request.body(), type=SwapRequest)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            message = f'{error}; send an object such as {{"bundle": "runs/study/bundle"}}'
            raise HttpError(422, "invalid_request", message) from None
        try:
            return state(request, await fleet.swap(name(request), Path(asked.bundle)))
        except RecfitError as error:
            raise HttpError(422, "bundle_refused", f"{error}; the old bundle goes on", "bundle") from None

    async def rollback(request: HttpRequest) -> Response:
        return state(request, await fleet.rollback(name(request)))

    async def unload(request: HttpRequest) -> Response:
        fleet.unload(name(request))
        return state(request, None)

    def route(path: str, endpoint: Callable[[HttpRequest], Awaitable[Response]], method: str) -> Route:
        return Route(path, endpoint, methods=[method])

    return Starlette(
        routes=[
            route("/admin/models/{name}", swap, "PUT"),
            route("/admin/models/{name}", unload, "DELETE"),
            route("/admin/models/{name}/rollback", rollback, "POST"),
        ],
        exception_handlers={HTTPException: refuse, HttpError: no, Exception: fail},
    )


def name(request: HttpRequest) -> str:
    given: str = request.path_params["name"]
    return given


def state(request: HttpRequest, served: Served | None) -> Response:
    found = ModelState(name(request), None if served is None else served.bundle)
    return Response(encode(found), media_type="application/json")

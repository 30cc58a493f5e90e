"""What only operators may do, on a port of its own: swap, roll back and unload bundles, and scrape metrics."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.routing import Route

from recfit.serve.errors import fail, no, refuse
from recfit.serve.fleet import Fleet, Model
from recfit.serve.schema import HttpError, ModelState, encode
from recfit.types import RecfitError


class SwapRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where the bundles that are to answer lie on the server's disk, the best first."""

    bundles: Annotated[list[str], Meta(min_length=1)]


def make_admin(fleet: Fleet) -> Starlette:
    """`PUT /admin/models/NAME {"bundles": [path, ...]}`, `POST /admin/models/NAME/rollback`, `DELETE /admin/models/NAME`."""

    async def swap(request: HttpRequest) -> Response:
        try:
            asked = msgspec.json.decode(await request.body(), type=SwapRequest)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            message = f'{error}; send an object such as {{"bundles": ["runs/study/bundle"]}}'
            raise HttpError(422, "invalid_request", message) from None
        try:
            return state(request, await fleet.swap(name(request), [*map(Path, asked.bundles)]))
        except RecfitError as error:
            raise HttpError(422, "bundle_refused", f"{error}; the old one goes on", "bundles") from None

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


def state(request: HttpRequest, model: Model | None) -> Response:
    found = ModelState(name(request), [] if model is None else [served.bundle for served in model.rungs])
    return Response(encode(found), media_type="application/json")

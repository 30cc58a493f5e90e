"""The HTTP app of one bundle: routes that take bodies as bare ASGI, everything else through Starlette.

The engine runs on the event loop, unless a pool of threads is asked for. Handing a request to a thread and back costs
0.1 ms. Measured with wrk on two shared cores, HTTP included, an engine of 0.1 ms that releases the interpreter lock:
with one client p99 is 0.7 ms on the loop and 1.3 ms in a pool; with 16 clients 5.0 ms on the loop, 4.9 ms in a pool of
one and 5.6 ms in a pool of two (medians of five runs). For a fast engine the loop is the better place.
An engine of 2 ms with 16 clients: p99 of 62 to 108 ms on the loop, 23 ms in a pool of two. From about a millisecond on,
use as many threads as there are cores: calls then overlap, and `/healthz` does not wait for them.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from threading import Event

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from recfit.serve import openapi
from recfit.serve.batcher import Batcher
from recfit.serve.events import Events, SqliteEvents
from recfit.serve.http import Post, Reply, request_id
from recfit.serve.metrics import CONTENT_TYPE, Metrics
from recfit.serve.results import Results
from recfit.serve.schema import Health, HttpError, describe, encode
from recfit.serve.service import Recommender, Service
from recfit.types import Request

log = logging.getLogger("recfit.serve")

READY_TIMEOUT_S = 1.0
RESULTS_BYTES, RESULTS_TTL_S = 32 * 2**20, 300.0
Endpoint = Callable[[HttpRequest], Awaitable[Response]]


def make_app(
    engine: Recommender, *, threads: int = 0, draining: Event | None = None, events: Events | None = None
) -> ASGIApp:
    """The app that answers from `engine`, on the event loop or in a pool of `threads`; `events` is what users did since
    (in memory where it is not given).

    Once `draining` is set `/readyz` answers 503 and recommendations ask their clients to connect anew.
    Raises whatever the engine raises at its first recommendations: an engine that can't answer is not served.
    """
    draining = draining or Event()
    metrics, batcher = Metrics(engine.manifest), Batcher(engine, threads)
    metrics.watch(batcher.oldest_s)
    results = Results(RESULTS_BYTES, RESULTS_TTL_S)
    metrics.watch_results(results)
    service = Service(engine, batcher, events or SqliteEvents(), results)
    bodies = {
        "/v1/recommend": service.recommend,
        "/v1/recommend/batch": service.batch,
        "/v1/score": service.score,
        "/v1/events": service.record,
    }
    posts = {path: Post(path, answer, metrics, draining) for path, answer in bodies.items()}
    cold = Starlette(
        routes=[
            *(Route(path, post, methods=["POST"]) for path, post in posts.items()),
            Route("/v1/similar/{item_id:path}", similar(service)),
            Route("/v1/bundle", fixed(describe(engine.manifest))),
            Route("/healthz", fixed(encode(Health("ok")))),
            Route("/readyz", readiness(batcher, canary(engine), draining)),
            Route("/metrics", exposition(metrics)),
            Route("/openapi.json", fixed(openapi.document())),
        ],
        exception_handlers={HTTPException: refuse, Exception: fail},
    )
    cold.router.redirect_slashes = False

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        hot = posts.get(scope["path"]) if scope["type"] == "http" and scope["method"] == "POST" else None
        await (hot or cold)(scope, receive, send)

    return app


def canary(engine: Recommender) -> Request:
    """A request that needs the model: its history is the answer to an empty one."""
    return Request(history=engine.recommend([Request(history=())], 5)[0].items)


def similar(service: Service) -> Endpoint:
    async def endpoint(request: HttpRequest) -> Response:
        k = request.query_params.get("k", "10")
        try:
            if not (k.isascii() and k.isdecimal() and 1 <= int(k) <= 1000):
                raise HttpError(422, "invalid_request", f"k = {k[:20]!r}; ask for 1 to 1000 items", "k")
            found: Reply = await service.similar(request.path_params["item_id"], int(k), request_id())
        except HttpError as refused:
            return as_response(refused)
        return Response(found.body, media_type="application/json")

    return endpoint


def readiness(batcher: Batcher, probe: Request, draining: Event) -> Endpoint:
    """Ready means: a recommendation was made just now, by the way that every request takes."""

    async def endpoint(_: HttpRequest) -> Response:
        if draining.is_set():
            return as_response(HttpError(503, "draining", "the server is about to stop; send requests to another one"))
        try:
            async with asyncio.timeout(READY_TIMEOUT_S):
                await batcher.ask(probe, 10)
        except Exception:
            log.exception("the canary recommendation failed")
            return as_response(
                HttpError(503, "not_ready", "the canary recommendation failed; the server's log says why")
            )
        return Response(encode(Health("ready")), media_type="application/json")

    return endpoint


def fixed(body: bytes) -> Endpoint:
    """JSON that never changes."""

    async def endpoint(_: HttpRequest) -> Response:
        return Response(body, media_type="application/json")

    return endpoint


def exposition(metrics: Metrics) -> Endpoint:
    async def endpoint(_: HttpRequest) -> Response:
        return Response(metrics.text(), media_type=CONTENT_TYPE)

    return endpoint


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


async def fail(_: HttpRequest, __: Exception) -> Response:
    """Starlette raises the exception again once this is sent, and the server logs it."""
    return as_response(HttpError(500, "internal", "the server failed; its log has the reason"))


def as_response(refused: HttpError, headers: Mapping[str, str] | None = None) -> Response:
    return Response(refused.body, refused.status, headers, "application/json")

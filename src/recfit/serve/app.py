"""The HTTP app: routes that take bodies as bare ASGI, everything else through Starlette.

The engine runs on the event loop, unless a pool of threads is asked for. Handing a request to a thread and back costs
0.1 ms. Measured with wrk on two shared cores, HTTP included, an engine of 0.1 ms that releases the interpreter lock:
with one client p99 is 0.7 ms on the loop and 1.3 ms in a pool; with 16 clients 5.0 ms on the loop, 4.9 ms in a pool of
one and 5.6 ms in a pool of two (medians of five runs). For a fast engine the loop is the better place.
An engine of 2 ms with 16 clients: p99 of 62 to 108 ms on the loop, 23 ms in a pool of two. From about a millisecond on,
use as many threads as there are cores: calls then overlap, and `/healthz` does not wait for them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from threading import Event

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from recfit.serve import caller, openapi, v2
from recfit.serve.admin import make_admin
from recfit.serve.batcher import OverloadError
from recfit.serve.counted import Counted
from recfit.serve.errors import fail, no, refuse
from recfit.serve.events import Events, MemoryEvents
from recfit.serve.experiments import Experiments
from recfit.serve.exposures import Exposures
from recfit.serve.fleet import Fleet, Model
from recfit.serve.guard import Guard, Key
from recfit.serve.http import ClientGoneError, Post, left, number_of, read_body
from recfit.serve.metrics import CONTENT_TYPE, Metrics
from recfit.serve.results import Results
from recfit.serve.schema import Health, HttpError, ModelsResponse, ModelState, describe, encode
from recfit.serve.service import Service
from recfit.serve.status import PAGES, POLICY, StatusResponse, page, status

Endpoint = Callable[[HttpRequest], Awaitable[Response]]


def make_app(
    fleet: Fleet,
    *,
    draining: Event | None = None,
    events: Events | None = None,
    experiments: Experiments | None = None,
    exposures: Exposures | None = None,
    results: Results | None = None,
    admin_port: int | None = None,
    keys: Sequence[Key] | None = None,
) -> ASGIApp:
    """The app that answers from the bundles of `fleet`; `events` is what users did since (in memory where it is not given),
    `exposures` the log of what users in `experiments` were shown (without one it is not kept), `results` the answers that were
    given before, `keys` those who may ask (None: everybody). What comes in at `admin_port` may use the routes of operators, and
    nothing else does.

    Once `draining` is set `/readyz` answers 503.
    """
    draining = draining or Event()
    results = results or Results()
    experiments = experiments or Experiments()
    events = events or MemoryEvents()
    service = Service(fleet, events, results, experiments, exposures)
    metrics = Metrics(fleet, results, service.shadows, events, exposures)
    bodies = {
        "/v1/recommend": service.recommend,
        "/v1/recommend/batch": service.batch,
        "/v1/score": service.score,
        "/v1/events": service.record,
        "/v1/feedback": service.feedback,
    }
    posts = {path: Post(path, answer, metrics) for path, answer in bodies.items()}
    cold = _cold(fleet, service, metrics, experiments, posts, draining)
    admin, counted = make_admin(fleet), Counted(cold, metrics)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        found: ASGIApp | None = (
            posts.get(scope["path"]) if scope["type"] == "http" and scope["method"] == "POST" else None
        )
        if admin_port is not None and scope["path"].startswith("/admin/") and scope["server"][1] == admin_port:
            found = admin
        gone = left(receive)
        caller.left.set(gone)
        try:
            await (found or counted)(scope, receive, send)
        except asyncio.CancelledError as error:
            if not (isinstance(error, ClientGoneError) or gone()):
                raise

    return app if keys is None else Guard(app, keys, metrics.refused)


def _cold(
    fleet: Fleet,
    service: Service,
    metrics: Metrics,
    experiments: Experiments,
    posts: Mapping[str, Post],
    draining: Event,
) -> Starlette:
    """All routes; the `posts` too, for what is asked of them by another method."""
    cold = Starlette(
        routes=[
            *(Route(path, post, methods=["POST"]) for path, post in posts.items()),
            Route("/v1/similar/{item_id:path}", similar(service)),
            Route("/v1/models", models(fleet)),
            Route("/v1/bundle", bundle(fleet)),
            *v2_routes(fleet, service, draining),
            Route("/healthz", fixed(encode(Health("ok")))),
            Route("/readyz", readyz(fleet, draining)),
            Route("/metrics", exposition(metrics)),
            Route("/v1/status", current(partial(status, fleet, metrics.recent, experiments))),
            *(Route(path, console(*page(path))) for path in PAGES),
            Route("/openapi.json", fixed(openapi.document())),
        ],
        exception_handlers={HTTPException: refuse, HttpError: no, OverloadError: no, Exception: fail},
    )
    cold.router.redirect_slashes = False
    return cold


def similar(service: Service) -> Endpoint:
    async def endpoint(request: HttpRequest) -> Response:
        k = request.query_params.get("k", "10")
        if not (k.isascii() and k.isdecimal() and len(k) <= 4 and 1 <= int(k) <= 1000):
            raise HttpError(422, "invalid_request", f"k = {k[:20]!r}; ask for 1 to 1000 items", "k")
        model = request.query_params.get("model")
        found = await service.similar(request.path_params["item_id"], int(k), model, number_of(request.scope))
        return Response(found.body, media_type="application/json")

    return endpoint


def v2_routes(fleet: Fleet, service: Service, draining: Event) -> list[Route]:
    """Those of the Open Inference Protocol. A model has one version at a time, the id of its best bundle."""

    async def named(request: HttpRequest) -> tuple[str, Model]:
        name, version = request.path_params["name"], request.path_params.get("version")
        model = await fleet.get(name)
        if version not in (None, model.best.bundle):
            message = f"model {name!r} has no version {version[:100]!r}; it has {model.best.bundle}"
            raise HttpError(404, "unknown_version", message)
        return name, model

    async def metadata(request: HttpRequest) -> Response:
        name, model = await named(request)
        told = v2.metadata(name, model.best.bundle, model.best.engine.context_names)
        return Response(told, media_type="application/json")

    async def model_ready(request: HttpRequest) -> Response:
        name, model = await named(request)
        await check(model, draining)
        return Response(encode(v2.ModelReady(name, True)), media_type="application/json")

    async def ready(_: HttpRequest) -> Response:
        await check(await fleet.get(None), draining)
        return Response(encode(v2.Ready(True)), media_type="application/json")

    async def infer(request: HttpRequest) -> Response:
        name, _ = await named(request)
        found = await v2.infer(service, name, await read_body(request.receive), number_of(request.scope))
        return Response(found.body, media_type="application/json")

    of_models = {"": (metadata, "GET"), "/ready": (model_ready, "GET"), "/infer": (infer, "POST")}
    return [
        Route("/v2", fixed(v2.server())),
        Route("/v2/health/live", fixed(encode(v2.Live(True)))),
        Route("/v2/health/ready", ready),
        *(
            Route(f"/v2/models/{{name}}{version}{path}", endpoint, methods=[method])
            for version in ("", "/versions/{version}")
            for path, (endpoint, method) in of_models.items()
        ),
    ]


def models(fleet: Fleet) -> Endpoint:
    async def endpoint(_: HttpRequest) -> Response:
        loaded = {name: [served.bundle for served in model.rungs] for name, model in fleet.loaded.items()}
        states = [ModelState(name, loaded.get(name, [])) for name in fleet.names]
        return Response(encode(ModelsResponse(states)), media_type="application/json")

    return endpoint


def bundle(fleet: Fleet) -> Endpoint:
    async def endpoint(request: HttpRequest) -> Response:
        model = await fleet.get(request.query_params.get("model"))
        return Response(describe(model.best.engine.manifest), media_type="application/json")

    return endpoint


def readyz(fleet: Fleet, draining: Event) -> Endpoint:
    """`?model=` asks one model, which is loaded for that."""

    async def endpoint(request: HttpRequest) -> Response:
        await check(await fleet.get(request.query_params.get("model")), draining)
        return Response(encode(Health("ready")), media_type="application/json")

    return endpoint


async def check(model: Model, draining: Event) -> None:
    """Raises `HttpError` where not every bundle of `model` answers."""
    if draining.is_set():
        raise HttpError(503, "draining", "the server is about to stop; send requests to another one")
    if why := await model.ready.refusal():
        raise HttpError(503, "not_ready", why)


def fixed(body: bytes) -> Endpoint:
    """JSON that never changes."""

    async def endpoint(_: HttpRequest) -> Response:
        return Response(body, media_type="application/json")

    return endpoint


def current(what: Callable[[], StatusResponse]) -> Endpoint:
    async def endpoint(_: HttpRequest) -> Response:
        return Response(encode(what()), media_type="application/json")

    return endpoint


def console(body: bytes, kind: str) -> Endpoint:
    """A file of the console. Without a key in it, so that everybody may load it; what it asks for needs one."""
    headers = {"content-security-policy": POLICY, "x-content-type-options": "nosniff"}

    async def endpoint(_: HttpRequest) -> Response:
        return Response(body, headers=headers, media_type=kind)

    return endpoint


def exposition(metrics: Metrics) -> Endpoint:
    async def endpoint(_: HttpRequest) -> Response:
        return Response(metrics.text(), media_type=CONTENT_TYPE)

    return endpoint

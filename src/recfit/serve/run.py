"""Bundles on one port, until SIGTERM: bind, warm up, say so, answer, drain. In this process, in several, or on Ray."""

from __future__ import annotations

import asyncio
import ipaddress
import json
import logging
import multiprocessing
import os
import signal
import socket
import ssl
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import Event
from types import FrameType, MappingProxyType
from typing import cast

import uvicorn
from starlette.types import ASGIApp

from recfit.bundle import read_manifest
from recfit.config import Serve
from recfit.serve import cluster, workers
from recfit.serve.app import make_app
from recfit.serve.batches import Recommender
from recfit.serve.connections import Connection, most_connections
from recfit.serve.events import Events, beside, store
from recfit.serve.experiments import Experiments
from recfit.serve.exposures import Exposures
from recfit.serve.fleet import DEFAULT, Fleet, Paths, opened, untold
from recfit.serve.guard import read_keys
from recfit.serve.results import Level, Results
from recfit.serve.shared import Shared, SharedEvents, SharedResults
from recfit.serve.watch import Watch
from recfit.serve.workers import Told
from recfit.types import ConfigError

log = logging.getLogger("recfit.serve")

KEEP_ALIVE_S = 75
"""Longer than the idle time of common load balancers (60 s), so that it is never the server that hangs up first."""
GRACE_S = 30
"""What requests in flight get to finish."""
LAST_S = 0.5
"""What clients that are still connected at the end of a drain get to ask once more, and be told to go elsewhere."""
BACKLOG = 2048
"""Connections that wait to be accepted."""
CLOSE = (b"connection", b"close")


def run(bundle: str | Path, settings: Serve, *, json_greeting: bool = False) -> None:
    """Serve the bundle in this directory; returns after SIGTERM or SIGINT. Raises `BundleError` and `ConfigError`."""
    _log()
    for caution in cautions(settings):
        log.warning(caution)
    say = partial(_say, json_greeting=json_greeting)
    if settings.engine == "ray":
        cluster.run(Path(bundle), settings, lambda told: say([told]))
        return
    if settings.redis is None and settings.events is None:
        read_manifest(Path(bundle))  # no file beside what is no bundle
        settings = replace(settings, events=beside(Path(bundle)))
    work = partial(_work, Path(bundle), settings)
    with ExitStack() as stack:
        public, places = stack.enter_context(bind(settings.host, settings.port)), list[list[socket.socket]]()
        for at in range(settings.workers):
            places.append([public])
            if settings.admin_port is not None:
                port = settings.admin_port + at if settings.admin_port else 0
                places[at].append(stack.enter_context(bind("127.0.0.1", port, ADMIN)))
        if settings.workers > 1:
            workers.run(work, places, say)
        else:
            work(places[0], lambda told: say([told]))


def cautions(settings: Serve) -> Iterator[str]:
    """What is allowed and may not be meant."""
    if settings.keys is None and not _of_this_machine(settings.host):
        yield f"who reaches {settings.host} port {settings.port} may ask: without --keys FILE it takes no key"
    if settings.engine == "local" and settings.workers > 1 and settings.admin_port is None:
        yield (
            f"the numbers at /metrics are those of one of {settings.workers} workers, another one each time: with --admin-port "
            "each has a port of its own, where its bundles are swapped too"
        )


def _of_this_machine(host: str) -> bool:
    """Whether nobody else reaches `host`; a name that is no address may be anything."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _work(
    bundle: Path,
    settings: Serve,
    listeners: Sequence[socket.socket],
    tell: Callable[[Told], None],
    swapped: Callable[[Paths], None] = untold,
    before: Paths = MappingProxyType({}),
) -> None:
    _log()  # it may be a process of its own
    bundle, settings = as_before(bundle, settings, before)
    serve(engines_of(bundle, settings), listeners, settings, tell, swapped)


def as_before(bundle: Path, settings: Serve, before: Paths) -> tuple[Path, Serve]:
    """What a server begins with: the command line, and over it what names stood for in the process `before`."""
    best, *cheaper = map(str, before.get(DEFAULT) or (bundle, *map(Path, settings.cheaper)))
    models = {name: [*map(str, paths)] for name, paths in before.items() if name != DEFAULT}
    return Path(best), replace(settings, cheaper=tuple(cheaper), models={**settings.models, **models})


def _log() -> None:
    """Lines with their time and level, on stderr."""
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    log.setLevel(logging.INFO)


def engines_of(bundle: Path, settings: Serve) -> list[Recommender]:
    """The engines of the bundles that are served first, the best first."""
    engines = [opened(path) for path in (bundle, *map(Path, settings.cheaper))]
    if settings.session_mb and not any(engine.sessions for engine in engines):
        message = (
            "session_mb = %g is of no use: %s goes on from no session; Transformers without a window do, made with it"
        )
        log.warning(message, settings.session_mb, bundle)
    return engines


def _say(told: Sequence[Told], json_greeting: bool = False) -> None:
    """What a server says of itself, as one line: each of its workers has a port for operators."""
    one, operators = told[0], [one["admin"] for one in told if "admin" in one]
    if json_greeting:
        print(json.dumps({**one, **({"admin": operators} if len(told) > 1 and operators else {})}), flush=True)
        return
    ports = f", operators at {', '.join(operators)}" if operators else ""
    place = one.get("url", "the address of the Serve that was there before")
    print(f"serving {one['serving']} at {place}{ports}", flush=True)


def serve(
    engines: Sequence[Recommender],
    listeners: Sequence[socket.socket],
    settings: Serve,
    tell: Callable[[Told], None] = lambda told: _say([told]),
    swapped: Callable[[Paths], None] = untold,
) -> None:
    """Answer from open, warm engines, the best first, at a bound socket; a second one is for operators.

    SIGTERM turns `/readyz` to 503 at once; `drain_s` seconds later, when load balancers have seen it, the server
    stops accepting, finishes what is in flight and returns. SIGINT, or a second SIGTERM, skips the wait; one more
    leaves what is in flight.
    """
    draining = Event()
    admin_port = listeners[1].getsockname()[1] if len(listeners) > 1 else None
    with app_of(engines, settings, draining, admin_port, swapped) as app:
        scheme = "https" if settings.certificate else "http"
        told = {"serving": engines[0].manifest["name"], "url": url(listeners[0], scheme)}
        told |= {"admin": url(listeners[1], scheme)} if admin_port else {}
        for listener, options in zip(listeners, (PUBLIC, ADMIN), strict=False):
            listen(listener, options)
        Server(_config(app, settings), partial(tell, told), draining, settings.drain_s).run([*listeners])


@contextmanager
def app_of(
    engines: Sequence[Recommender],
    settings: Serve,
    draining: Event | None = None,
    admin_port: int | None = None,
    swapped: Callable[[Paths], None] = untold,
) -> Iterator[ASGIApp]:
    """The app that `settings` ask for; what it keeps is closed at the end."""
    fleet = Fleet(
        engines,
        threads=settings.threads,
        paths={name: [*map(Path, settings.rungs(name))] for name in settings.models},
        preload=settings.preload,
        most_mb=settings.memory_mb,
        budget_s=settings.budget_ms / 1e3,
        shed_s=settings.shed_ms / 1e3,
        session_mb=settings.session_mb,
        swapped=swapped,
    )
    with ExitStack() as stack:
        events, second = _stores(settings)
        stack.enter_context(closing(events))
        exposures = None
        if settings.exposures is not None:
            exposures = stack.enter_context(closing(Exposures(Path(settings.exposures), settings.exposures_days)))
        yield make_app(
            fleet,
            draining=draining,
            events=events,
            experiments=Experiments(_path(settings.experiments), lambda: fleet.names),
            exposures=exposures,
            results=Results(int(settings.results_mb * 2**20), second=second),
            admin_port=admin_port,
            keys=None if settings.keys is None else read_keys(Path(settings.keys)),
        )


def _stores(settings: Serve) -> tuple[Events, Level | None]:
    """Where events are kept, and the second level of answers."""
    if settings.redis is None:
        return store(settings.events, settings.events_days), None
    shared = Shared(settings.redis, settings.redis_timeout_ms / 1e3)
    return SharedEvents(shared, settings.events_days), SharedResults(shared) if settings.results_mb else None


def _path(name: str | None) -> Path | None:
    return None if name is None else Path(name)


def _config(app: ASGIApp, settings: Serve) -> uvicorn.Config:
    config = uvicorn.Config(
        app,
        http=Connection,
        limit_concurrency=most_connections(),
        backlog=BACKLOG,
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="warning",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=GRACE_S,
        ssl_certfile=settings.certificate,
        ssl_keyfile=settings.private_key,
    )
    try:
        config.load()
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(
            f"{settings.certificate} and {settings.private_key} are no certificate with its key: {error}; give PEM files"
        ) from None
    return config


def url(listener: socket.socket, scheme: str = "http") -> str:
    host, port = listener.getsockname()[:2]
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


PUBLIC, ADMIN = "--host or --port", "--admin-port"
"""The options that say where a socket is."""


def bind(host: str, port: int, options: str = PUBLIC) -> socket.socket:
    """A socket at the port that does not listen yet, so that nobody waits on a server that is loading. Raises `ConfigError`
    where another one listens."""
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except (OSError, OverflowError) as error:
        listener.close()
        raise _taken(host, port, error, options) from None
    return listener


def listen(listener: socket.socket, options: str = PUBLIC) -> None:
    """Of several servers that are bound to a port before one of them listens, one gets it; raises `ConfigError` in the others.
    uvloop would go on without it, in silence."""
    try:
        listener.listen(BACKLOG)
    except OSError as error:
        host, port = listener.getsockname()[:2]
        raise _taken(host, port, error, options) from None


def _taken(host: str, port: int, error: Exception, options: str) -> ConfigError:
    return ConfigError(f"can't listen on {host} port {port}: {error}; choose another with {options}")


def _end() -> None:
    """Of a worker that hangs: its parent replaces it, as any that dies."""
    log.error("worker %d hangs; it ends, so that another one takes its place", os.getpid())
    os._exit(1)


class Server(uvicorn.Server):
    """uvicorn's server, which on SIGTERM would close idle keep-alive connections at once; this one drains first, and tells
    every client with its next answer to connect anew, to another server."""

    def __init__(self, config: uvicorn.Config, ready: Callable[[], None], draining: Event, drain_s: float) -> None:
        super().__init__(config)
        self.ready, self.draining, self.drain_s = ready, draining, drain_s
        self.exit_at, self.hurry = float("inf"), False

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.watch = Watch(_end if multiprocessing.parent_process() else lambda: None)
        self.ready()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        self.force_exit = now >= self.exit_at
        self.hurry = sig == signal.SIGINT or self.draining.is_set()
        self.exit_at = now if self.hurry else now + self.drain_s
        if not self.draining.is_set():
            self.config.encoded_headers.append(CLOSE)
            self.server_state.default_headers.append(CLOSE)  # the list that requests in flight have too
        self.draining.set()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """A connection that is closed while its next request is on the way is an error to the client."""
        self.watch.end()
        for listening in (*self.servers, *(sockets or ())):
            listening.close()
        end = self.exit_at + min(LAST_S, self.drain_s)
        while self.server_state.connections and time.monotonic() < end and not self.hurry:
            await asyncio.sleep(0.01)
        await super().shutdown(sockets)

    async def on_tick(self, counter: int) -> bool:
        self.watch.beat()
        if counter % 10 == 0:  # once a second
            for connection in [*self.server_state.connections]:
                cast(Connection, connection).look()
        return await super().on_tick(counter) or time.monotonic() >= self.exit_at

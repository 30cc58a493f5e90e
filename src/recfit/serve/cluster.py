"""The same server on Ray Serve: as many replicas as the load asks for, on one machine or many.

A replica is the app of the local server with the same bundle, so it gives the same answers. Ray's Python proxy takes
milliseconds of its own; HAProxy is in front instead, and replicas answer in their process's main loop (two flags of Ray).
"""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from threading import Event
from typing import Any

from starlette.types import ASGIApp, Message

from recfit.bundle import read_manifest
from recfit.config import Serve
from recfit.types import ConfigError

log = logging.getLogger("recfit.serve")

FLAGS = {
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "30",  # 5 seconds are too few for a machine that is busy loading replicas
}
ONGOING = 64
"""Requests that a replica is sent before others have answered: its line makes batches of them, and its ladder sees a rush."""
TARGET = 2.0
"""Requests under way in a replica, on average, above which another one is started: one being answered and one that waits."""
NAME = "recfit"
THERE_BEFORE = (
    "Serve runs on this cluster already: it listens where it was told to, not at %s port %d, and in front is Ray's slow proxy "
    "unless the machines were started with %s"
)
TAKEN = "an app %r is on this cluster already (%s); stop its server, or wait until `serve status` has it no more"
ELSEWHERE = (
    "the machines of %s need %s in the environment of their `ray start`: without it Ray's slow proxy is in front"
)


class Replica:
    """One process of the cluster. The bundle lies at the same path on every machine. Ray calls `check_health` now and then, and
    `__del__` where it takes the replica away."""

    def __init__(self, bundle: str, settings: Serve) -> None:
        from recfit.serve.run import app_of, engines_of

        self._open = ExitStack()
        self._app = self._open.enter_context(app_of(engines_of(Path(bundle), settings), settings))

    def __serve_build_asgi_app__(self) -> ASGIApp:
        return self._app

    async def check_health(self) -> None:
        """Raises where the bundle does not answer; Ray then starts another replica in the place of this one."""
        status = await status_of(self._app, "/readyz")
        if status != 200:
            raise RuntimeError(f"/readyz is {status}; what was logged before says why")

    def __del__(self) -> None:
        self._open.close()  # writes the last rows of the exposure log


async def status_of(app: ASGIApp, path: str) -> int:
    """What `app` answers to a GET, without a network."""
    found = list[int]()

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Message) -> None:
        if message["type"] == "http.response.start":
            found.append(message["status"])

    asked = {
        "method": "GET",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": b"",
        "headers": [],
    }
    of_server = {"scheme": "http", "http_version": "1.1", "server": ("127.0.0.1", None), "client": None}
    await app({"type": "http", "asgi": {"version": "3.0"}, **asked, **of_server}, receive, send)
    return found[0]


def scale(settings: Serve) -> dict[str, Any]:
    """How many replicas: as many as there are workers, or up to `most_workers`, by what is under way in them."""
    if settings.most_workers <= settings.workers:
        return {"num_replicas": settings.workers}
    limits = {"min_replicas": settings.workers, "max_replicas": settings.most_workers}
    return {"autoscaling_config": {**limits, "target_ongoing_requests": TARGET}}


def application(bundle: Path, settings: Serve) -> Any:
    """What `ray.serve.run` takes."""
    from ray import serve

    deployed: Any = serve.deployment(
        serve.ingress()(Replica),
        name=NAME,
        max_ongoing_requests=ONGOING,
        ray_actor_options={"num_cpus": 1},
        graceful_shutdown_timeout_s=settings.drain_s + 30,
        **scale(settings),
    )
    return deployed.bind(str(bundle.resolve()), settings)


def run(bundle: Path, settings: Serve, tell: Callable[[dict[str, str]], None]) -> None:
    """Deploy to the cluster that `RAY_ADDRESS` names, or to one that is started on this machine; returns after SIGTERM or
    SIGINT, when the app is gone from it. A Serve that ran there before stays, with its other apps; where it listens is its own
    affair, and told by nobody here. Raises `ConfigError` without Ray, and where another server's app is on the cluster."""
    os.environ.update({name: value for name, value in FLAGS.items() if name not in os.environ})
    ray: Any  # its types differ from release to release
    serve: Any
    try:
        import ray
        from ray import serve
    except ImportError as error:
        raise ConfigError("ray is not installed; pip install 'recfit[ray]'") from error
    stopping = Event()
    ray.init(include_dashboard=False, logging_level=logging.WARNING, log_to_driver=False)
    with ExitStack() as ending:  # each of these, whatever becomes of the others
        ending.callback(ray.shutdown)
        if before := _serves(ray):
            _check_free(serve)
        serve.start(http_options={"host": settings.host, "port": settings.port})
        if not before:
            ending.callback(serve.shutdown)  # takes every app of the cluster
        ending.callback(serve.delete, NAME)  # an app that failed to start is there too
        serve.run(application(bundle, settings), name=NAME, route_prefix="/")
        for sig in (signal.SIGTERM, signal.SIGINT):  # now, since `ray.init` has put its own in place
            signal.signal(sig, lambda *_: stopping.set())
        tell(_greeting(bundle, settings, before))
        stopping.wait()


def _serves(ray: Any) -> bool:
    """Whether somebody else started Serve on this cluster."""
    try:
        ray.get_actor("SERVE_CONTROLLER_ACTOR", namespace="serve")
    except ValueError:
        return False
    return True


def _check_free(serve: Any) -> None:
    """Raise `ConfigError` where another server's app has the name: it would be replaced, and deleted at the end of this one."""
    if (app := serve.status().applications.get(NAME)) is not None:
        raise ConfigError(TAKEN % (NAME, app.status.value))


def _greeting(bundle: Path, settings: Serve, before: bool) -> dict[str, str]:
    """What is told of the app; the log says what a cluster of others makes of the settings."""
    told = {"serving": read_manifest(bundle)["name"]}
    flags = ", ".join(f"{name}={os.environ[name]}" for name in FLAGS)
    if before:
        log.warning(THERE_BEFORE, settings.host, settings.port, flags)
        return told
    if address := os.environ.get("RAY_ADDRESS"):
        log.warning(ELSEWHERE, address, flags)
    return {**told, "url": f"http://{settings.host}:{settings.port}"}

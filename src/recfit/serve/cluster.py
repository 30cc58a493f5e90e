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

from starlette.types import ASGIApp

from recfit.bundle import read_manifest
from recfit.config import Serve
from recfit.types import ConfigError

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


class Replica:
    """One process of the cluster. The bundle lies at the same path on every machine."""

    def __init__(self, bundle: str, settings: Serve) -> None:
        from recfit.serve.run import app_of, engines_of

        self._open = ExitStack()
        self._app = self._open.enter_context(app_of(engines_of(Path(bundle), settings), settings))

    def __serve_build_asgi_app__(self) -> ASGIApp:
        return self._app


def application(bundle: Path, settings: Serve) -> Any:
    """What `ray.serve.run` takes."""
    from ray import serve

    scale: dict[str, Any] = {"num_replicas": settings.workers}
    if settings.most_workers > settings.workers:
        limits = {"min_replicas": settings.workers, "max_replicas": settings.most_workers}
        scale = {"autoscaling_config": {**limits, "target_ongoing_requests": TARGET}}
    deployed: Any = serve.deployment(
        serve.ingress()(Replica),
        name=NAME,
        max_ongoing_requests=ONGOING,
        ray_actor_options={"num_cpus": 1},
        graceful_shutdown_timeout_s=settings.drain_s + 30,
        **scale,
    )
    return deployed.bind(str(bundle.resolve()), settings)


def run(bundle: Path, settings: Serve, tell: Callable[[dict[str, str]], None]) -> None:
    """Deploy to the cluster that `RAY_ADDRESS` names, or to one that is started on this machine; returns after SIGTERM or
    SIGINT, when the app is gone from it. Raises `ConfigError` without Ray."""
    os.environ.update({name: value for name, value in FLAGS.items() if name not in os.environ})
    ray: Any  # its types differ from release to release
    serve: Any
    try:
        import ray
        from ray import serve
    except ImportError as error:
        raise ConfigError("ray is not installed; pip install 'recfit[ray]'") from error
    stopping = Event()
    try:
        ray.init(include_dashboard=False, logging_level=logging.WARNING, log_to_driver=False)
        serve.start(http_options={"host": settings.host, "port": settings.port})
        serve.run(application(bundle, settings), name=NAME, route_prefix="/")
        for sig in (signal.SIGTERM, signal.SIGINT):  # now, since `ray.init` has put its own in place
            signal.signal(sig, lambda *_: stopping.set())
        tell({"serving": read_manifest(bundle)["name"], "url": f"http://{settings.host}:{settings.port}"})
        stopping.wait()
        serve.delete(NAME)
    finally:
        serve.shutdown()
        ray.shutdown()

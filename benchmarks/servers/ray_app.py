"""Ray Serve as it comes: its Python proxy, one replica. `haproxy` as the second argument sets the two flags for throughput."""

from __future__ import annotations

import os
import sys
import time
from typing import Any

FAST = ("RAY_SERVE_ENABLE_HA_PROXY", "RAY_SERVE_THROUGHPUT_OPTIMIZED")


def main(port: int, fast: bool) -> None:
    os.environ.update(dict.fromkeys(FAST, "1") if fast else {})
    import ray
    from benchmarks.servers.model import ROUTE, ranker
    from ray import serve
    from starlette.requests import Request

    @serve.deployment(num_replicas=1, max_ongoing_requests=64)
    class Service:
        def __init__(self) -> None:
            self.model = ranker()

        async def __call__(self, request: Request) -> dict[str, Any]:
            body = await request.json()
            return {"items": self.model.recommend([body["history"]], body["k"])[0]}

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    serve.run(Service.bind(), route_prefix=ROUTE)
    while True:
        time.sleep(60)


if __name__ == "__main__":
    main(int(sys.argv[1]), "haproxy" in sys.argv[2:])

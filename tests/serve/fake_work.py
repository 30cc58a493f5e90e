"""What the workers of `test_workers.py` do; in a module of its own, since they import it."""

from __future__ import annotations

import socket
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from fake_engine import FakeEngine

from recfit.config import Serve
from recfit.serve import watch, workers
from recfit.serve.fleet import Paths
from recfit.serve.run import as_before, bind, serve
from recfit.serve.workers import Told
from recfit.types import BundleError, Request


def work(
    events: str,
    listeners: Sequence[socket.socket],
    tell: Callable[[Told], None],
    swapped: Callable[[Paths], None],
    before: Paths,
) -> None:
    if events == "damaged":
        raise BundleError("the bundle is damaged")
    _, settings = as_before(Path("fake"), Serve(events=events, drain_s=0.2), before)
    serve([FakeEngine(during)], listeners, settings, tell, swapped)


def during(request: Request) -> None:
    if request.user_id == "hang":
        watch.EVERY_S = 0.02
        time.sleep(60)


def tell(told: Sequence[Told]) -> None:
    print(told[0]["url"], *[one["admin"] for one in told], flush=True)


def main() -> None:
    with ExitStack() as stack:
        public = stack.enter_context(bind("127.0.0.1", 0))
        places = [[public, stack.enter_context(bind("127.0.0.1", 0))] for _ in range(2)]
        workers.run(partial(work, sys.argv[1]), places, tell)
    print("returned", flush=True)


if __name__ == "__main__":
    main()

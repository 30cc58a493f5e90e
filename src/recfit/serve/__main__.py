"""`python -m recfit.serve BUNDLE --port N`: what `recfit serve` does, without the rest of the command line."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from recfit.serve.run import run
from recfit.types import RecfitError


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m recfit.serve", description="Serve a bundle over HTTP.")
    parser.add_argument("bundle", help="the bundle's directory")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000, help="0 is any free port (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=0, help="threads of the engine; 0 is the event loop")
    parser.add_argument("--drain-s", type=float, default=1.0, help="seconds from SIGTERM to closing (default: 1)")
    given = parser.parse_args(arguments)
    try:
        run(given.bundle, given.host, given.port, threads=given.threads, drain_s=given.drain_s)
    except RecfitError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())

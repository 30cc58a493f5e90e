"""The command line: one command a function; it prints what the Python call returns."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from importlib import metadata

from recfit.cli import _bundles, _serving, _studies
from recfit.cli._common import Help
from recfit.types import RecfitError

DESCRIPTION = """Fit a recommender into its budget: measure what every way of making it smaller and faster costs,
pick the best that holds the budget, serve it."""
START = """start with:
  recfit init --data events.csv         writes recfit.toml; state your budget in it
  recfit optimize recfit.toml           measures, chooses, exports a bundle and a report
  recfit serve runs/study/bundle        answers requests over HTTP
  recfit loadtest URL --requests FILE   finds out how many"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Exit code 0, 2 for an error with its sentence on stderr, 3 where no candidate fits the budget."""
    options = parser().parse_args(arguments)
    try:
        options.run(options)
    except (RecfitError, OSError, ModuleNotFoundError) as error:
        missing = isinstance(error, ModuleNotFoundError)
        text = f"{error}; `recfit doctor` says what to install" if missing else str(error)
        if options.json:
            print(json.dumps({"error": type(error).__name__, "message": text}))
        print(f"recfit: {text}", file=sys.stderr)
        return error.exit_code if isinstance(error, RecfitError) else 2
    except KeyboardInterrupt:
        print("\nrecfit: interrupted; the same command goes on from here", file=sys.stderr)
        return 130
    return 0


def parser() -> argparse.ArgumentParser:
    """The command line's grammar."""
    root = argparse.ArgumentParser("recfit", description=DESCRIPTION, epilog=START, formatter_class=Help)
    root.add_argument("--version", action="version", version=f"recfit {metadata.version('recfit')}")
    commands = root.add_subparsers(metavar="COMMAND", required=True)
    for add_commands in (_studies.add_commands, _bundles.add_commands, _serving.add_commands):
        add_commands(commands)
    return root

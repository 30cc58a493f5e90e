"""What the commands have in common: how they are added, their shared options, how they answer."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import msgspec

Commands = Any  # what `add_subparsers` returns, whose type argparse keeps to itself
# (name, function, what it does, example) -> the command's parser
Adder = Callable[[str, Callable[[Any], None], str, str], argparse.ArgumentParser]


class Help(argparse.RawDescriptionHelpFormatter):
    """Examples keep their lines; the options' names stand in one wide column."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=28)

    def add_argument(self, action: argparse.Action) -> None:
        super().add_argument(action)
        self._action_max_length += 2  # argparse forgets that the names of commands are indented


def adder(commands: Commands) -> Adder:
    def add(name: str, run: Callable[[Any], None], text: str, example: str) -> argparse.ArgumentParser:
        description = f"{text[0].upper()}{text[1:]}."
        command: argparse.ArgumentParser = commands.add_parser(
            name, help=text, description=description, epilog=f"example:\n  {example}", formatter_class=Help
        )
        command.add_argument("--json", action="store_true", help="print JSON for machines")
        command.set_defaults(run=run)
        return command

    return add


def data_options(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--split", help="leave_last(n=1) or global_time(test=0.2, validation=0.1) (default: leave_last)"
    )
    command.add_argument(
        "--bad-rows", choices=("error", "drop"), help="what to do with rows that can't be read (default: error)"
    )
    command.add_argument("--format", help="the reader, where the file's suffix does not tell")


def say(options: Any, value: Any, text: str) -> None:
    """The result, as text or as JSON (numbers that are not finite become null)."""
    print(msgspec.json.format(msgspec.json.encode(value), indent=1).decode() if options.json else text)


def progress(options: Any) -> Callable[[str], None]:
    """Where lines about long work go: not where JSON goes."""
    return lambda text: print(text, file=sys.stderr if options.json else sys.stdout, flush=True)


def data_of(options: Any, source: str) -> tuple[Any, Any]:
    """Interactions and split of a recfit.toml, a file or a known name; options win over the recfit.toml."""
    from recfit import config, data
    from recfit.data.splits import split

    settings = config.load(source).data if source.endswith(".toml") else config.Data(source)
    given = {name: getattr(options, name) for name in ("split", "bad_rows", "format")}
    settings = replace(settings, **{name: value for name, value in given.items() if value is not None})
    interactions = data.from_config(settings)
    return interactions, split(interactions, settings.split)

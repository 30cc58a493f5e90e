"""Commands from data to a study: a config, an original, the search, its choice and report."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from recfit.cli._common import Commands, adder, data_of, data_options, progress, say
from recfit.types import ConfigError


def add_commands(commands: Commands) -> None:
    add = adder(commands)
    init = add("init", init_command, "write a recfit.toml to start from", "recfit init --data events.csv")
    init.add_argument("--data", default="ml-100k", help="a file of interactions or a known name (default: ml-100k)")
    init.add_argument(
        "-o", "--output", type=Path, default=Path("recfit.toml"), help="where to write (default: recfit.toml)"
    )
    add("doctor", doctor_command, "check this machine: packages, runtimes, instruction sets", "recfit doctor")

    data = commands.add_parser("data", help="look at interactions").add_subparsers(metavar="COMMAND", required=True)
    describe = adder(data)("describe", describe_command, "show what the data holds", "recfit data describe events.csv")
    describe.add_argument("source", help="a recfit.toml, a file of interactions or a known name")
    data_options(describe)

    train = add("train", train_command, "train the original of a config", "recfit train recfit.toml -o model/")
    train.add_argument("-o", "--output", type=Path, required=True, help="the folder for the trained model")
    text = "measure the ways of paying for a budget, choose, export"
    optimize = add("optimize", optimize_command, text, "recfit optimize recfit.toml")
    for command in (train, optimize):
        command.add_argument("config", type=Path, help="a recfit.toml; `recfit init` writes one")

    text = "answer another budget from a finished study, without training"
    example = "recfit select runs/study --limit p99_ms=0.5 --limit ndcg@10=99% --objective memory"
    select = add("select", select_command, text, example)
    text = "write the HTML report of a study"
    report = add("report", report_command, text, "recfit report runs/study -o report.html")
    report.add_argument("-o", "--output", type=Path, help="the page (default: report.html in the study)")
    for command in (select, report):
        command.add_argument("study", type=Path, help="the [search] directory of an `optimize` run")
        _budget_options(command)


def _budget_options(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--limit",
        action="append",
        default=[],
        metavar="METRIC=VALUE",
        help="such as p99_ms=2, memory_mb=0.5x, ndcg@10=99%%; replaces all limits of the study's budget",
    )
    command.add_argument(
        "--objective", choices=("quality", "latency", "memory", "cost"), help="default: that of the study's budget"
    )
    command.add_argument("--accept-undecided", action="store_true", help="let limits count whose answer is undecided")


def init_command(options: Any) -> None:
    from recfit import starter

    if options.output.exists():
        raise ConfigError(f"{options.output} exists already; choose another name with -o")
    source = options.data
    if Path(source).suffix and not Path(source).exists():
        raise ConfigError(f"there is no file {source}; pass --data a file or a known name such as ml-100k")
    if Path(source).exists():  # paths in a config are relative to its folder
        source = os.path.relpath(source, options.output.parent)
    options.output.write_text(starter.config(source))
    text = f"wrote {options.output}; look at its [budget], then run: recfit optimize {options.output}"
    say(options, {"path": str(options.output)}, text)


def doctor_command(options: Any) -> None:
    from recfit import starter

    found = starter.doctor()
    say(options, found, starter.doctor_text(found))


def describe_command(options: Any) -> None:
    from recfit.data.describe import describe, describe_text

    interactions, split = data_of(options, options.source)
    found = describe(interactions, split)
    say(options, found, describe_text(found))


def train_command(options: Any) -> None:
    from recfit.search.original import train_original

    found = train_original(options.config, options.output, progress(options))
    say(options, found, f"{options.output}: validation ndcg@10 {found['ndcg@10']:.4f} after {found['seconds']:.0f} s")


def optimize_command(options: Any) -> None:
    from recfit import flow

    found = flow.optimize(options.config, progress(options))
    text = f"chosen: {found.chosen.name}\n{found.final['text']}\nbundle: {found.bundle}\nreport: {found.report}"
    answer = {
        "chosen": found.chosen.name,
        "id": found.chosen.id,
        "bundle": str(found.bundle),
        "report": str(found.report),
    }
    say(options, {**answer, "final": found.final}, text)


def select_command(options: Any) -> None:
    from recfit.search.select import require
    from recfit.selecting import left_undecided, line, reselect

    study, budget, choice = reselect(options.study, options.limit, options.objective, options.accept_undecided)
    chosen = require(choice)
    value = {
        "id": chosen.id,
        "name": chosen.name,
        "metrics": budget.priced(chosen.metrics),
        "verdicts": choice.verdicts[chosen.id],
    }
    bundle = study.path("bundles", chosen.id)
    text = (
        f"{line(chosen, budget)}\nbundle of the search: {bundle}\n"
        "`recfit optimize` with this [budget] measures it on the test requests and delivers it"
    )
    if undecided := left_undecided(choice, budget):
        text += f"\n{undecided}"
    say(options, {**value, "bundle": str(bundle)}, text)


def report_command(options: Any) -> None:
    from recfit import report
    from recfit.report.assemble import assemble
    from recfit.selecting import reselect

    study, budget, choice = reselect(options.study, options.limit, options.objective, options.accept_undecided)
    page = options.output or study.path("report.html")
    report.write(assemble(study, budget, choice), page)
    say(options, {"report": str(page)}, f"report: {page}")

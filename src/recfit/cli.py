"""The command line: one command a function; it prints what the Python call returns."""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import msgspec

from recfit.types import ConfigError, RecfitError

# (name, function, what it does, example) -> the command's parser
Adder = Callable[[str, Callable[[Any], None], str, str], argparse.ArgumentParser]

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
    root = argparse.ArgumentParser("recfit", description=DESCRIPTION, epilog=START, formatter_class=_Help)
    root.add_argument("--version", action="version", version=f"recfit {metadata.version('recfit')}")
    commands = root.add_subparsers(metavar="COMMAND", required=True)
    add = _adder(commands)
    _first_commands(add)
    data = commands.add_parser("data", help="look at interactions").add_subparsers(metavar="COMMAND", required=True)
    describe = _adder(data)("describe", describe_command, "show what the data holds", "recfit data describe events.csv")
    describe.add_argument("source", help="a recfit.toml, a file of interactions or a known name")
    _data_options(describe)
    _study_commands(add)
    _bundle_commands(add)
    return root


def _first_commands(add: Adder) -> None:
    init = add("init", init_command, "write a recfit.toml to start from", "recfit init --data events.csv")
    init.add_argument("--data", default="ml-100k", help="a file of interactions or a known name (default: ml-100k)")
    init.add_argument(
        "-o", "--output", type=Path, default=Path("recfit.toml"), help="where to write (default: recfit.toml)"
    )
    add("doctor", doctor_command, "check this machine: packages, runtimes, instruction sets", "recfit doctor")


def _study_commands(add: Adder) -> None:
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


def _bundle_commands(add: Adder) -> None:
    test = "runs/study/test"
    example = f"recfit measure runs/study/bundle --requests {test}/requests.jsonl --targets {test}/targets.csv"
    measure = add("measure", measure_command, "measure a bundle on this machine", example)
    measure.add_argument("bundle", type=Path, help="a bundle's directory")
    measure.add_argument("--data", help="measure on the test split of this source or recfit.toml")
    measure.add_argument("--requests", type=Path, help="measure on these requests (.jsonl, .csv) ...")
    measure.add_argument("--targets", type=Path, help="... with these targets (.csv)")
    measure.add_argument("--rate", type=float, help="also under Poisson arrivals of this many requests a second")
    measure.add_argument("--count", type=int, default=1500, help="requests behind the percentiles (default: 1500)")
    _data_options(measure)

    example = "recfit recommend runs/study/bundle --requests requests.jsonl --k 10 -o recs.csv"
    recommend = add("recommend", recommend_command, "recommend for a file of requests", example)
    recommend.add_argument("bundle", type=Path, help="a bundle's directory")
    recommend.add_argument("--requests", type=Path, required=True, help=".csv or .jsonl: user_id, history, exclude")
    recommend.add_argument("--k", type=int, default=10, help="items for every request (default: 10)")
    recommend.add_argument("-o", "--output", type=Path, required=True, help="the CSV: user_id,item_id,score,rank")

    export = add(
        "export",
        export_command,
        "export a bundle to another platform",
        "recfit export runs/study/bundle --target web -o web/",
    )
    export.add_argument("bundle", type=Path, help="a bundle's directory")
    export.add_argument("--target", required=True, help="the platform: mobile, openvino, triton or web")
    export.add_argument("-o", "--output", type=Path, required=True, help="a new or empty directory")
    export.add_argument(
        "--ort-web", type=Path, help="web: the npm package onnxruntime-web, unpacked (default: fetched)"
    )

    serve = add("serve", serve_command, "answer requests over HTTP", "recfit serve runs/study/bundle --port 8000")
    serve.add_argument("bundle", type=Path, help="a bundle's directory, or the recfit.toml whose study chose one")
    text = "bundles that answer where the first cannot keep --budget-ms, the best first"
    serve.add_argument("--cheaper", nargs="+", metavar="BUNDLE", help=text)
    serve.add_argument("--budget-ms", type=float, help="the latency that a ladder of bundles keeps (default: 10)")
    serve.add_argument("--shed-ms", type=float, help="who would wait longer is told to come back, 503 (default: 1000)")
    serve.add_argument("--host", help="default: that of the recfit.toml, else 127.0.0.1, this machine only")
    serve.add_argument("--port", type=int, help="default: that of the recfit.toml, else 8000; 0 takes any free port")
    serve.add_argument(
        "--threads", type=int, help="threads of the engine (default: 0, the event loop, for fast models)"
    )
    serve.add_argument("--events", help="a file that keeps what users do (POST /v1/events) over restarts")
    serve.add_argument("--admin-port", type=int, help="a port on this machine alone, where bundles are swapped")
    serve.add_argument("--keys", help="a TOML file of who may ask, and how often (docs/serving.md)")
    serve.add_argument("--certificate", help="a PEM file for TLS ...")
    serve.add_argument("--private-key", help="... and that of its key")
    serve.add_argument("--results-mb", type=float, help="answers kept for those who ask the same again (default: 32)")
    serve.add_argument("--experiments", help="a TOML file of A/B tests and shadows, read again when it changes")
    serve.add_argument("--exposures", help="the log of what users in an experiment were shown and did")
    serve.add_argument("--redis", help="servers that are given the same address share events and answers")
    serve.add_argument("--drain-s", type=float, help="seconds from SIGTERM to closing (default: 1)")

    text = "say what an A/B test shows, from the log that `recfit serve --exposures` wrote"
    example = "recfit experiment exposures.db --name student --plan experiments.toml"
    experiment = add("experiment", experiment_command, text, example)
    experiment.add_argument("log", type=Path, help="the exposure log")
    experiment.add_argument("--name", required=True, help="of the experiment")
    experiment.add_argument("--kind", default="click", help="the feedback that counts (default: click)")
    experiment.add_argument("--plan", type=Path, help="the file with the arms' weights (default: equal ones)")

    text = "put load on a server on a schedule, so that stalls are not hidden"
    example = "recfit loadtest http://127.0.0.1:8000 --requests runs/study/test/requests.jsonl --find-max --p99 5"
    load = add("loadtest", loadtest_command, text, example)
    load.add_argument("url", help="of a running `recfit serve`")
    load.add_argument("--requests", type=Path, required=True, help="requests that are replayed in turn (.jsonl, .csv)")
    load.add_argument("--rate", type=float, default=200.0, help="requests a second, at random moments (default: 200)")
    load.add_argument("--seconds", type=float, default=10.0, help="of one run (default: 10)")
    load.add_argument("--connections", type=int, default=64, help="at most (default: 64)")
    load.add_argument("--k", type=int, default=10, help="items for every request (default: 10)")
    load.add_argument(
        "--find-max", action="store_true", help="search the highest rate that holds --p99, from --rate on"
    )
    load.add_argument("--p99", type=float, default=5.0, metavar="MS", help="milliseconds (default: 5)")


class _Help(argparse.RawDescriptionHelpFormatter):
    """Examples keep their lines; the options' names stand in one wide column."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=28)

    def add_argument(self, action: argparse.Action) -> None:
        super().add_argument(action)
        self._action_max_length += 2  # argparse forgets that the names of commands are indented


def _adder(commands: Any) -> Adder:
    def add(name: str, run: Callable[[Any], None], text: str, example: str) -> argparse.ArgumentParser:
        description = f"{text[0].upper()}{text[1:]}."
        command: argparse.ArgumentParser = commands.add_parser(
            name, help=text, description=description, epilog=f"example:\n  {example}", formatter_class=_Help
        )
        command.add_argument("--json", action="store_true", help="print JSON for machines")
        command.set_defaults(run=run)
        return command

    return add


def _data_options(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--split", help="leave_last(n=1) or global_time(test=0.2, validation=0.1) (default: leave_last)"
    )
    command.add_argument(
        "--bad-rows", choices=("error", "drop"), help="what to do with rows that can't be read (default: error)"
    )
    command.add_argument("--format", help="the reader, where the file's suffix does not tell")


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


def _say(options: Any, value: Any, text: str) -> None:
    """The result, as text or as JSON (numbers that are not finite become null)."""
    print(msgspec.json.format(msgspec.json.encode(value), indent=1).decode() if options.json else text)


def _progress(options: Any) -> Callable[[str], None]:
    """Where lines about long work go: not where JSON goes."""
    return lambda text: print(text, file=sys.stderr if options.json else sys.stdout, flush=True)


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
    _say(options, {"path": str(options.output)}, text)


def doctor_command(options: Any) -> None:
    from recfit import starter

    found = starter.doctor()
    _say(options, found, starter.doctor_text(found))


def describe_command(options: Any) -> None:
    from recfit.data.describe import describe, describe_text

    interactions, split = _data(options, options.source)
    found = describe(interactions, split)
    _say(options, found, describe_text(found))


def train_command(options: Any) -> None:
    from recfit.search.original import train_original

    found = train_original(options.config, options.output, _progress(options))
    _say(options, found, f"{options.output}: validation ndcg@10 {found['ndcg@10']:.4f} after {found['seconds']:.0f} s")


def optimize_command(options: Any) -> None:
    from recfit import flow

    found = flow.optimize(options.config, _progress(options))
    text = f"chosen: {found.chosen.name}\n{found.final['text']}\nbundle: {found.bundle}\nreport: {found.report}"
    answer = {
        "chosen": found.chosen.name,
        "id": found.chosen.id,
        "bundle": str(found.bundle),
        "report": str(found.report),
    }
    _say(options, {**answer, "final": found.final}, text)


def select_command(options: Any) -> None:
    from recfit.search.select import require
    from recfit.selecting import line, reselect

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
    _say(options, {**value, "bundle": str(bundle)}, text)


def report_command(options: Any) -> None:
    from recfit import report
    from recfit.report.assemble import assemble
    from recfit.selecting import reselect

    study, budget, choice = reselect(options.study, options.limit, options.objective, options.accept_undecided)
    page = options.output or study.path("report.html")
    report.write(assemble(study, budget, choice), page)
    _say(options, {"report": str(page)}, f"report: {page}")


def measure_command(options: Any) -> None:
    from recfit import measure
    from recfit.config import MIN_REQUESTS
    from recfit.measure.reading import queries_of, text

    if (options.data is None) == (options.requests is None):
        raise ConfigError("measure needs either --data or --requests with --targets")
    if options.requests is not None and options.targets is None:
        raise ConfigError("--requests needs --targets: the items that were right")
    if options.count < MIN_REQUESTS:
        raise ConfigError(f"--count {options.count} is too few for a p99; pass at least {MIN_REQUESTS}")
    if options.rate is not None and options.rate <= 0:
        raise ConfigError(f"--rate is {options.rate}; it is requests a second, above 0")
    with tempfile.TemporaryDirectory() as folder:
        pair = (options.requests, options.targets) if options.requests else _test_split(options, Path(folder))
        queries, popularity = queries_of(options.bundle, *pair)
    found = measure.measure(
        options.bundle, queries, popularity, measure.Plan(requests=options.count, rate=options.rate)
    )
    value = {"metrics": found.metrics, "intervals": found.intervals, "protocol": found.protocol}
    _say(options, value, text(found))


def recommend_command(options: Any) -> None:
    from recfit.data.requests import read_requests, write_recommendations
    from recfit.engine import open_bundle

    if options.k < 1:
        raise ConfigError(f"--k is {options.k}; pass a number of items from 1")
    engine = open_bundle(options.bundle)
    requests = read_requests(options.requests)
    # One at a time, as they are measured and served.
    answers = [engine.recommend([request], options.k)[0] for request in requests]
    write_recommendations(options.output, requests, answers)
    value = {"requests": len(requests), "output": str(options.output)}
    _say(options, value, f"{len(requests):,} requests answered in {options.output}")


def export_command(options: Any) -> None:
    from recfit.targets import export_bundle

    if options.ort_web is not None and options.target != "web":
        raise ConfigError(f"--ort-web is for --target web, this is {options.target}; leave it out")
    extra = {} if options.ort_web is None else {"ort_web": options.ort_web}
    made = export_bundle(options.bundle, options.target, options.output, **extra)
    files = [path for path in made.rglob("*") if path.is_file()]
    size = sum(path.stat().st_size for path in files) / 1e6
    value = {"target": options.target, "output": str(made), "files": len(files), "mb": size}
    _say(options, value, f"{options.target}: {len(files)} files, {size:.1f} MB; read {made / 'README.md'}")


def serve_command(options: Any) -> None:
    from recfit import config
    from recfit.serve.run import run

    bundle, listen = options.bundle, config.Serve()
    if bundle.suffix == ".toml":
        settings = config.load(bundle)
        bundle, listen = Path(settings.search.directory) / "bundle", settings.serve
    given = {field.name: getattr(options, field.name, None) for field in fields(listen)}
    listen = replace(listen, **{name: value for name, value in given.items() if value is not None})
    run(bundle, listen, json_greeting=options.json)


def experiment_command(options: Any) -> None:
    from recfit.monitor import experiment
    from recfit.serve.experiments import read_plan

    weights = None
    if options.plan is not None:
        planned = {one.name: one.arms for one in read_plan(options.plan).experiments.values()}
        if options.name not in planned:
            known = ", ".join(planned) or "none"
            raise ConfigError(f"{options.plan} has no experiment {options.name!r}; it has: {known}")
        weights = planned[options.name]
    found = experiment.report(options.log, options.name, options.kind, weights)
    _say(options, found, experiment.text(found))


def loadtest_command(options: Any) -> None:
    from recfit import loadtest
    from recfit.data.requests import read_requests

    load = loadtest.Load(options.rate, options.seconds, options.connections, options.k)
    requests, say = read_requests(options.requests), _progress(options)
    say(loadtest.HEAD)
    if not options.find_max:
        found = loadtest.run(options.url, requests, load)
        say(loadtest.line(found))
        _say(options, found, f"answered from: {dict(found.sources)}")
        return
    runs = []
    for found in loadtest.find_most(options.url, requests, load, options.p99):
        say(loadtest.line(found))
        runs.append(found)
    most = max((found.rate for found in runs if found.holds(options.p99)), default=0.0)
    text = (
        f"{most:,.0f} requests a second hold p99 <= {options.p99:g} ms" if most else "no rate held; try a lower --rate"
    )
    _say(options, {"most": most, "p99_ms": options.p99, "runs": runs}, text)


def _data(options: Any, source: str) -> tuple[Any, Any]:
    """Interactions and split of a recfit.toml, a file or a known name; options win over the recfit.toml."""
    from recfit import config, data
    from recfit.data.splits import split

    settings = config.load(source).data if source.endswith(".toml") else config.Data(source)
    given = {name: getattr(options, name) for name in ("split", "bad_rows", "format")}
    settings = replace(settings, **{name: value for name, value in given.items() if value is not None})
    interactions = data.from_config(settings)
    return interactions, split(interactions, settings.split)


def _test_split(options: Any, folder: Path) -> tuple[Path, Path]:
    """The test requests and targets of `--data`, written to `folder`."""
    from recfit.data.requests import write_queries

    interactions, split = _data(options, options.data)
    paths = folder / "requests.jsonl", folder / "targets.csv"
    write_queries(split.test, interactions.user_ids, interactions.item_ids, *paths)
    return paths


if __name__ == "__main__":
    sys.exit(main())

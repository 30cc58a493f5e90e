"""Commands around a server: run it, put load on it, read its experiments."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from recfit.cli._common import Adder, Commands, adder, progress, say
from recfit.types import ConfigError


def add_commands(commands: Commands) -> None:
    add = adder(commands)
    _add_serve(add)
    _add_experiment(add)
    _add_loadtest(add)


def _add_serve(add: Adder) -> None:
    serve = add("serve", serve_command, "answer requests over HTTP", "recfit serve runs/study/bundle --port 8000")
    serve.add_argument("bundle", type=Path, help="a bundle's directory, or the recfit.toml whose study chose one")
    text = "bundles that answer where the first cannot keep --budget-ms, the best first"
    serve.add_argument("--cheaper", nargs="+", metavar="BUNDLE", help=text)
    serve.add_argument("--budget-ms", type=float, help="the latency that a ladder of bundles keeps (default: 10)")
    serve.add_argument("--shed-ms", type=float, help="who would wait longer is told to come back, 503 (default: 1000)")
    serve.add_argument("--host", help="default: that of the recfit.toml, else 127.0.0.1, this machine only")
    serve.add_argument("--port", type=int, help="default: that of the recfit.toml, else 8000; 0 takes any free port")
    serve.add_argument("--workers", type=int, help="processes at the port, with --events or --redis (default: 1)")
    text = "local, or ray: replicas on Ray Serve, from --workers to --most-workers of them, with --redis"
    serve.add_argument("--engine", choices=("local", "ray"), help=text)
    serve.add_argument("--most-workers", type=int, help="replicas on ray that the load may ask for (default: no more)")
    serve.add_argument(
        "--threads", type=int, help="threads of the engine (default: 0, the event loop, for fast models)"
    )
    text = "the file that keeps what users do (default: BUNDLE.events.db; :memory: forgets it at the end)"
    serve.add_argument("--events", help=text)
    serve.add_argument("--events-days", type=float, help="days for which it is kept (default: 30; 0: for ever)")
    serve.add_argument("--admin-port", type=int, help="a port on this machine alone, where bundles are swapped")
    serve.add_argument("--keys", help="a TOML file of who may ask, and how often (docs/serving.md)")
    serve.add_argument("--certificate", help="a PEM file for TLS ...")
    serve.add_argument("--private-key", help="... and that of its key")
    serve.add_argument("--results-mb", type=float, help="answers kept for those who ask the same again (default: 32)")
    text = (
        "memory to go on from what was worked out for a user's older events (default: that of the recfit.toml, else 0)"
    )
    serve.add_argument("--session-mb", type=float, help=text)
    serve.add_argument("--experiments", help="a TOML file of A/B tests and shadows, read again when it changes")
    serve.add_argument("--exposures", help="the log of what users in an experiment were shown and did")
    serve.add_argument("--exposures-days", type=float, help="days for which that is kept (default: 180; 0: for ever)")
    serve.add_argument("--redis", help="servers that are given the same address share events and answers")
    text = "what a request waits for a reply of it, before it goes on without (default: 5)"
    serve.add_argument("--redis-timeout-ms", type=float, help=text)
    serve.add_argument("--drain-s", type=float, help="seconds from SIGTERM to closing (default: 1)")


def _add_experiment(add: Adder) -> None:
    text = "say what an A/B test shows, from the log that `recfit serve --exposures` wrote"
    example = "recfit experiment report exposures.db --name student --plan experiments.toml"
    experiment = add("experiment", experiment_command, text, example)
    experiment.add_argument(
        "what", choices=("report",), help="report: lift with intervals, the spread of users, p-values"
    )
    experiment.add_argument("log", type=Path, help="the exposure log")
    experiment.add_argument("--name", required=True, help="of the experiment")
    experiment.add_argument("--kind", default="click", help="the feedback that counts (default: click)")
    experiment.add_argument("--plan", type=Path, help="the file with the arms' weights (default: equal ones)")


def _add_loadtest(add: Adder) -> None:
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
    load.add_argument("--key", help="where the server asks for one (`recfit serve --keys`)")
    load.add_argument(
        "--ca", metavar="FILE", help="a PEM file of the certificates to trust, for https:// (default: the system's)"
    )
    load.add_argument("--insecure", action="store_true", help="trust any certificate")


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
    say(options, found, experiment.text(found))


def loadtest_command(options: Any) -> None:
    from recfit import loadtest
    from recfit.data.requests import read_requests

    load = loadtest.Load(options.rate, options.seconds, options.connections, options.k)
    access = loadtest.Access(options.key, options.ca, options.insecure)
    requests, tell = read_requests(options.requests), progress(options)
    tell(loadtest.HEAD)
    if not options.find_max:
        found = loadtest.run(options.url, requests, load, access)
        tell(loadtest.line(found))
        found.check()
        say(options, found, f"answered from: {dict(found.sources)}")
        return
    runs = []
    for found in loadtest.find_most(options.url, requests, load, options.p99, access):
        tell(loadtest.line(found))
        found.check()
        runs.append(found)
    most = max((found.rate for found in runs if found.holds(options.p99)), default=0.0)
    text = (
        f"{most:,.0f} requests a second hold p99 <= {options.p99:g} ms" if most else "no rate held; try a lower --rate"
    )
    say(options, {"most": most, "p99_ms": options.p99, "runs": runs}, text)

"""Commands that take a bundle: measure it, ask it, export it."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from recfit.cli._common import Commands, adder, data_of, data_options, say
from recfit.types import ConfigError


def add_commands(commands: Commands) -> None:
    add = adder(commands)
    test = "runs/study/test"
    example = f"recfit measure runs/study/bundle --requests {test}/requests.jsonl --targets {test}/targets.csv"
    measure = add("measure", measure_command, "measure a bundle on this machine", example)
    measure.add_argument("bundle", type=Path, help="a bundle's directory")
    measure.add_argument("--data", help="measure on the test split of this source or recfit.toml")
    measure.add_argument("--requests", type=Path, help="measure on these requests (.jsonl, .csv) ...")
    measure.add_argument("--targets", type=Path, help="... with these targets (.csv)")
    measure.add_argument("--rate", type=float, help="also under Poisson arrivals of this many requests a second")
    measure.add_argument("--count", type=int, default=1500, help="requests behind the percentiles (default: 1500)")
    data_options(measure)

    example = "recfit recommend runs/study/bundle --requests requests.jsonl --k 10 -o recs.csv"
    recommend = add("recommend", recommend_command, "recommend for a file of requests", example)
    recommend.add_argument("bundle", type=Path, help="a bundle's directory")
    recommend.add_argument(
        "--requests", type=Path, required=True, help=".csv or .jsonl: user_id, history, exclude, context"
    )
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
    say(options, value, text(found))


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
    say(options, value, f"{len(requests):,} requests answered in {options.output}")


def export_command(options: Any) -> None:
    from recfit.targets import export_bundle

    if options.ort_web is not None and options.target != "web":
        raise ConfigError(f"--ort-web is for --target web, this is {options.target}; leave it out")
    extra = {} if options.ort_web is None else {"ort_web": options.ort_web}
    made = export_bundle(options.bundle, options.target, options.output, **extra)
    files = [path for path in made.rglob("*") if path.is_file()]
    size = sum(path.stat().st_size for path in files) / 1e6
    value = {"target": options.target, "output": str(made), "files": len(files), "mb": size}
    say(options, value, f"{options.target}: {len(files)} files, {size:.1f} MB; read {made / 'README.md'}")


def _test_split(options: Any, folder: Path) -> tuple[Path, Path]:
    """The test requests and targets of `--data`, written to `folder`."""
    from recfit.data.requests import write_queries

    interactions, split = data_of(options, options.data)
    paths = folder / "requests.jsonl", folder / "targets.csv"
    write_queries(split.test, interactions.user_ids, interactions.item_ids, *paths)
    return paths

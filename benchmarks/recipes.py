"""Recipes applied to the original of a study, measured on its test split beside that original. Results are dated JSON.

    python benchmarks/recipes.py examples/demo.toml benchmarks/recipes/prune.toml

The TOML of the recipes lists `[[recipe]]` with `steps = [{technique = "prune", axis = "ffn", keep = 0.5}, ...]`. Quality
is the share of NDCG@10 that is kept with the paired 95 % interval of the difference; latency blocks of all bundles are
interleaved in one run, and the times are shown as ratios to the original in ONNX Runtime (B).
"""

from __future__ import annotations

import argparse
import json
import tempfile
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from recfit import measure
from recfit import pipeline as pipelines
from recfit.measure.machine import machine
from recfit.measure.statistics import paired
from recfit.search.bench import Bench, prepare
from recfit.search.build import Job, build
from recfit.search.isolate import isolated
from recfit.search.original import TRAINING_SECONDS, make_original
from recfit.search.recipe import Recipe
from recfit.techniques import make
from recfit.types import RecfitError

RESULTS = Path(__file__).parent / "results"
METRIC = "ndcg@10"
COLUMNS = ("kept %", "+-", "bytes x", "p50 x", "p99 x", "memory x", "throughput x")


def recipes(path: Path) -> list[Recipe]:
    """The recipes of a TOML file, the original (no steps) first."""
    listed = tomllib.loads(path.read_text(encoding="utf-8"))["recipe"]
    return [Recipe(), *(Recipe(tuple(map(_step, entry["steps"]))) for entry in listed)]


def _step(described: Mapping[str, Any]) -> Any:
    settings = dict(described)
    return make(settings.pop("technique"), settings)


def built(bench: Bench, wanted: Sequence[Recipe], folder: Path) -> dict[str, Path]:
    """The final bundles by recipe name; one that is refused is said and left out."""
    found: dict[str, Path] = {}
    for recipe in wanted:
        job = Job(recipe.to_json(), folder / recipe.id, final=True)
        try:
            isolated(build, bench.workshop, job, memory_gb=bench.settings.search.memory_gb, seconds=6 * 3600.0)
        except RecfitError as error:
            print(f"{recipe.name}: {error}", flush=True)
            continue
        found[recipe.name] = job.output
    return found


def measured(bench: Bench, bundles: Mapping[str, Path]) -> list[dict[str, Any]]:
    """One row a bundle; the first is what the others are held against."""
    queries = bench.split.test
    costs = measure.latency(list(bundles.values()), queries, bench.plan)
    rows, base = [], None
    for (name, path), cost in zip(bundles.items(), costs, strict=True):
        users, extra = measure.users_quality(path, queries, bench.popularity)
        found = measure.combine(path, cost, users, extra, queries, bench.plan)
        base = base or found
        gap, old = paired(users[METRIC], base.users[METRIC]), base.metrics[METRIC]
        times = {
            cost: base.metrics[cost] / found.metrics[cost] for cost in ("bundle_mb", "p50_ms", "p99_ms", "memory_mb")
        }
        ratios = [*times.values(), found.metrics["qps"] / base.metrics["qps"]]
        shown = [100 * found.metrics[METRIC] / old, 100 * (gap.high - gap.low) / 2 / old, *ratios]
        rows.append({"recipe": name, **dict(zip(COLUMNS, shown, strict=True)), "metrics": dict(found.metrics)})
    return rows


def lines(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """The rows as a table."""
    yield f"{'recipe':60}" + " ".join(f"{column:>12}" for column in COLUMNS)
    for row in rows:
        yield f"{row['recipe']:60}" + " ".join(f"{row[column]:12.2f}" for column in COLUMNS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "settings", type=Path, help="recfit.toml of a study; its original is trained where it is missing"
    )
    parser.add_argument("recipes", type=Path, help="TOML with [[recipe]] tables")
    given = parser.parse_args()
    bench = prepare(given.settings)
    if not pipelines.saved(bench.workshop.original):
        limits = {"memory_gb": bench.settings.search.memory_gb, "seconds": TRAINING_SECONDS}
        isolated(make_original, bench.settings, bench.workshop, **limits)
    with tempfile.TemporaryDirectory() as folder:
        rows = measured(bench, built(bench, recipes(given.recipes), Path(folder)))
    now = datetime.now(UTC)
    record = {
        "benchmark": "recipes",
        "at": now.isoformat(timespec="seconds"),
        "data": bench.split.train.name,
        "protocol": f"{bench.split.protocol}, test split, full ranking, seen items removed",
        "users": len(set(bench.split.test.user.tolist())),
        "targets": bench.split.target_hash,
        "machine": machine(),
        "rows": rows,
    }
    path = RESULTS / f"{now:%Y-%m-%d}-recipes-{given.recipes.stem}.json"
    path.write_text(json.dumps(record, indent=1) + "\n")
    print(*lines(rows), path, sep="\n")


if __name__ == "__main__":
    main()

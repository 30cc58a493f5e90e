"""Recipes applied to the original of a study, measured on its test split beside that original. Results are dated JSON.

    python -m benchmarks.recipes examples/demo.toml benchmarks/recipes/prune.toml

The TOML of the recipes lists `[[recipe]]` with `steps = [{technique = "prune", axis = "ffn", keep = 0.5}, ...]`, and where
there is something to say a `name` and a published `claim`; `times_only` leaves out the quality of what answers as the
original does, and takes long. The first row is the original in ONNX Runtime, which all others
are held against: quality as the share that is kept with the paired 95 % interval of the difference; times, bytes and memory
as how many times less; requests a second, in batches of the size that gives most (`qps_batch`), as how many times more.
Latency blocks of all bundles are interleaved in one run, and so are the rounds of batches. A picture of quality against p99
lies beside the JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
import tomllib
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.plots import tradeoff
from benchmarks.record import save

from recfit import bundle as bundles
from recfit import config, measure
from recfit import pipeline as pipelines
from recfit.export.stage import REPORT
from recfit.measure import Measurement
from recfit.measure.statistics import Interval, paired
from recfit.search.bench import Bench, prepare
from recfit.search.build import Job, Workshop, build
from recfit.search.isolate import PATIENCE, isolated
from recfit.search.original import claim, make_original
from recfit.search.recipe import Recipe
from recfit.techniques import make
from recfit.types import ConfigError, RecfitError

COSTS = ("p50_ms", "p99_ms", "bundle_mb", "table_kb", "memory_mb")
HEADS = ("p50 ms", "p99 ms", "disk MB", "items kB", "resident MB", "requests/s", "claim")


@dataclass(frozen=True)
class Entry:
    """A recipe under the name it is shown by, and what somebody published about it. `times_only`: its quality is known."""

    recipe: Recipe
    name: str = ""
    claim: str = ""
    times_only: bool = False

    @property
    def label(self) -> str:
        return self.name or self.recipe.name


def entries(path: Path) -> list[Entry]:
    """What a TOML file lists, the original first. Raises `ConfigError` for a name that two have."""
    listed = tomllib.loads(path.read_text(encoding="utf-8"))["recipe"]
    found = [Entry(Recipe(), "original"), *(_entry(**described) for described in listed)]
    names = Counter(entry.label for entry in found)
    if twice := [name for name, count in names.items() if count > 1]:
        raise ConfigError(f"{path} has two recipes that are called {twice[0]!r}; a row is found by its name")
    return found


def _entry(steps: Sequence[Mapping[str, Any]], **about: Any) -> Entry:
    made = [make(step["technique"], {key: step[key] for key in step if key != "technique"}) for step in steps]
    return Entry(Recipe(tuple(made)), **about)


@dataclass(frozen=True)
class Built:
    """A bundle, and the seconds it took to make it, less what the study's folder held already."""

    entry: Entry
    path: Path
    seconds: float


def built(bench: Bench, wanted: Sequence[Entry], folder: Path) -> list[Built]:
    """The final bundles of a study's recipes."""
    limits = {"memory_gb": bench.settings.search.memory_gb, "seconds": PATIENCE}
    claim(bench)
    if not pipelines.saved(bench.workshop.original):
        isolated(make_original, bench.settings, bench.workshop, **limits)
    return finals(bench.workshop, wanted, folder, limits)


def finals(workshop: Workshop, wanted: Sequence[Entry], folder: Path, limits: Mapping[str, Any]) -> list[Built]:
    """The final bundles; one that is refused is said and left out."""
    found: list[Built] = []
    for entry in wanted:
        begin, job = time.monotonic(), Job(entry.recipe.to_json(), folder / entry.recipe.id, final=True)
        try:
            isolated(build, workshop, job, **limits)
        except RecfitError as error:
            print(f"{entry.label}: {error}", flush=True)
            continue
        found.append(Built(entry, job.output, time.monotonic() - begin))
    return found


def restored(bundle: Path) -> list[str]:
    """The layers that the reports of the bundle's quantized graphs name as float32, those that move the answer most first."""
    reports = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(bundle.rglob(REPORT))]
    return [part["layer"] for report in reports for part in report["layers"] if part["format"] == "float32"]


def measured(
    bench: Bench, paths: Sequence[Path], metrics: Sequence[str], times_only: Collection[Path] = ()
) -> list[Measurement]:
    """Everything about the bundles, on the test requests; no quality of those in `times_only`."""
    queries = bench.split.test

    def quality(path: Path) -> tuple[Mapping[str, Any], Mapping[str, float]]:
        if path in times_only:
            return {}, {}
        return measure.users_quality(path, queries, bench.popularity, metrics)

    costs = measure.latency(paths, queries, bench.plan)
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # quality has no clock: a bundle a core
        qualities = list(pool.map(quality, paths))
    found = []
    for path, cost, (users, extra) in zip(paths, costs, qualities, strict=True):
        cost["metrics"]["table_kb"] = table_kb(path)
        found.append(measure.combine(path, cost, users, extra, queries, bench.plan))
    return found


def table_kb(bundle: Path) -> float:
    """The item side of the first stage, its graph included; 0 where the bundle keeps none apart."""
    files = bundles.read_manifest(bundle)["files"]
    return sum(part["bytes"] for name, part in files.items() if name.startswith("retrieve/table/")) / 1e3


def row(
    made: Built, found: Mapping[str, float], base: Mapping[str, float], metric: str, gap: Interval | None
) -> dict[str, Any]:
    """One row of the JSON. `gap` is by how much the quality differs from that of `base`, where it was measured."""
    entry, old = made.entry, base[metric]
    return {
        "recipe": entry.label,
        "steps": entry.recipe.to_json(),
        "claim": entry.claim,
        "notes": bundles.read_manifest(made.path)["recipe"]["notes"],
        "restored": restored(made.path),
        "seconds": round(made.seconds, 1),
        "kept": gap and found[metric] / old,
        "kept_interval": gap and [1 + gap.low / old, 1 + gap.high / old],
        "times_less": {cost: base[cost] / found[cost] if found[cost] else None for cost in COSTS},
        "times_more": {"qps": found["qps"] / base["qps"]},
        "metrics": dict(found),
    }


def compared(made: Sequence[Built], found: Sequence[Measurement], metric: str) -> list[dict[str, Any]]:
    """The rows, each held against the first. The bundles have to be there still."""
    base = found[0]
    gaps = [paired(part.users[metric], base.users[metric]) if part.users else None for part in found]
    return [row(one, part.metrics, base.metrics, metric, gap) for one, part, gap in zip(made, found, gaps, strict=True)]


def table(rows: Sequence[Mapping[str, Any]], metric: str) -> Iterator[str]:
    """The rows as a Markdown table; in brackets, how many times better than the first row."""
    heads = ("recipe", metric, "kept %", *HEADS)
    yield _cells(heads)
    yield "|".join(("", *[" --- "] * len(heads), ""))
    for line in rows:
        quality = ["", ""]
        if line["kept_interval"]:
            low, high = line["kept_interval"]
            quality = [f"{line['metrics'][metric]:.4f}", f"{100 * line['kept']:.1f} ± {50 * (high - low):.1f}"]
        costs = [f"{_short(line['metrics'][cost])}{_times(line['times_less'][cost])}" for cost in COSTS]
        costs.append(f"{line['metrics']['qps']:,.0f}{_times(line['times_more']['qps'])}")
        yield _cells((line["recipe"], *quality, *costs, line["claim"]))


def _cells(values: Sequence[str]) -> str:
    return " | ".join(("", *values, "")).strip()


def _short(value: float) -> str:
    """Three digits, all of them where there are more."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _times(ratio: float | None) -> str:
    return f" ({ratio:.1f}x)" if ratio and ratio < 100 else f" ({ratio:.0f}x)" if ratio else ""


def label(recipes: Path) -> str:
    return recipes.parent.name if recipes.stem == "recipes" else recipes.stem


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "settings", type=Path, help="recfit.toml of a study; its original is trained where it is missing"
    )
    parser.add_argument("recipes", type=Path, help="TOML with [[recipe]] tables")
    parser.add_argument("--data", help="read these events instead of [data] source")
    parser.add_argument("--metric", default="ndcg@10", help="what quality is: ndcg@10, recall@10, ...")
    given = parser.parse_args()
    settings = config.load(given.settings)
    if given.data:
        settings = replace(settings, data=replace(settings.data, source=given.data))
    bench = prepare(settings)
    metrics = dict.fromkeys((*measure.quality.METRICS, given.metric))
    with tempfile.TemporaryDirectory() as folder:
        made = built(bench, entries(given.recipes), Path(folder))
        known = [part.path for part in made if part.entry.times_only]
        found = measured(bench, [part.path for part in made], list(metrics), known)
        rows = compared(made, found, given.metric)
    record = {
        "data": bench.split.train.name,
        "split": f"{bench.split.protocol}, test requests",
        "targets": bench.split.target_hash,
        "metric": given.metric,
        "protocol": dict(found[0].protocol),
        "rows": rows,
    }
    path = save("recipes", label(given.recipes), record)
    picture = tradeoff(rows, given.metric, path.with_suffix(".svg"))
    print(*table(rows, given.metric), path, picture, sep="\n")


if __name__ == "__main__":
    main()

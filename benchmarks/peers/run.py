"""Peers side by side: every peer of this folder that is installed, and recipes of recfit, on one trained original.

    python -m benchmarks.peers.run examples/demo.toml

Every row becomes a bundle and is measured by the same code as recfit's own: quality on the test split with the paired 95 %
interval against the original in ONNX Runtime, latency in interleaved blocks, bytes, peak memory of a fresh process. A peer
that is not installed, fails or cannot be served is a row with its error. Results are dated JSON.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import importlib.util
import os
import re
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks import recipes
from benchmarks.peers.given import into_bundle, made_by
from benchmarks.record import save

from recfit import config
from recfit import pipeline as pipelines
from recfit.measure import Measurement, quality
from recfit.measure.process import Worker
from recfit.measure.statistics import paired
from recfit.search.bench import Bench, prepare
from recfit.search.build import Job, build
from recfit.search.isolate import PATIENCE, isolated
from recfit.search.original import make_original
from recfit.search.recipe import Recipe
from recfit.techniques import make
from recfit.types import RecfitError

HERE = Path(__file__).parent
METRIC = "ndcg@10"
MINUTES = 20
COSTS = {"p50_ms": "p50", "p99_ms": "p99", "bundle_mb": "bytes", "memory_mb": "memory"}
HEADS = ("row", "NDCG@10", "kept %", "+-", "p50 ms", "p99 ms", "disk MB", "resident MB", "made in s", "lines")


@dataclass(frozen=True)
class Row:
    """One line of the table. `whose` is `original`, `peer` or `recfit`; a row without a bundle has an `error`."""

    whose: str
    name: str
    bundle: Path | None = None
    seconds: float = 0.0
    lines: int = 0
    cannot: str = ""
    error: str = ""


def peers() -> list[str]:
    """The files of this folder, one a peer."""
    return sorted(path.stem for path in HERE.glob("*.py") if path.stem not in ("run", "given"))


def user_lines(name: str) -> int:
    """Lines of code between the two marks of a peer's file, and of the file that it goes on from."""
    text = (HERE / f"{name}.py").read_text()
    [code] = re.findall(r"# user code\n(.*?)# end of user code", text, re.DOTALL)
    own = len([line for line in code.splitlines() if line.strip() and not line.strip().startswith("#")])
    return own + sum(user_lines(before) for before in re.findall(r'^AFTER = "(\w+)"', text, re.MULTILINE))


def originals(bench: Bench, folder: Path) -> list[Row]:
    """B, which all are held against, and A. The original is trained where the study has none."""
    if not pipelines.saved(bench.workshop.original):
        limits = {"memory_gb": bench.settings.search.memory_gb, "seconds": PATIENCE}
        isolated(make_original, bench.settings, bench.workshop, **limits)
    eager = Recipe((make("runtime", {"name": "torch"}),))
    named = {"original, ONNX Runtime (B)": Recipe(), "original, PyTorch eager (A)": eager}
    return [Row("original", name, _built(bench, recipe, folder)) for name, recipe in named.items()]


def own(bench: Bench, path: Path, folder: Path) -> Iterator[Row]:
    """recfit's recipes, trained anew. Those that begin alike share their beginning, and each counts its time."""
    fresh = replace(bench, workshop=replace(bench.workshop, models=folder / "models"))
    blocks = re.split(r"^\[\[recipe]]", path.read_text(), flags=re.MULTILINE)[1:]
    spent: dict[str, float] = {}
    for entry, block in zip(recipes.entries(path)[1:], blocks, strict=True):
        for prefix in entry.recipe.prefixes:
            if prefix.id not in spent:
                begin = time.monotonic()
                _built(fresh, prefix, folder)
                spent[prefix.id] = time.monotonic() - begin
        seconds = sum(spent[prefix.id] for prefix in entry.recipe.prefixes)
        lines = 1 + len([line for line in block.splitlines() if line.strip() and not line.startswith("#")])
        yield Row("recfit", f"recfit: {entry.label}", folder / entry.recipe.id, seconds, lines)


def _built(bench: Bench, recipe: Recipe, folder: Path) -> Path:
    job = Job(recipe.to_json(), folder / recipe.id, final=True)
    isolated(build, bench.workshop, job, memory_gb=bench.settings.search.memory_gb, seconds=MINUTES * 60)
    return job.output


def peer(bench: Bench, name: str, base: Path, folder: Path) -> Row:
    """What a peer makes of the original, or why it makes nothing."""
    module = importlib.import_module(f"benchmarks.peers.{name}")
    row = Row("peer", module.SHOWN, lines=user_lines(name), cannot=module.CANNOT)
    missing = [part for part in module.NEEDS if importlib.util.find_spec(part) is None]
    if missing:
        return replace(row, error=f"not installed: {', '.join(missing)}")
    output, begin = folder / name, time.monotonic()
    output.mkdir()
    try:
        isolated(made_by, name, bench.workshop, output, memory_gb=bench.settings.search.memory_gb, seconds=MINUTES * 60)
        seconds = time.monotonic() - begin
        bundle = into_bundle(base, output, module.SHOWN, module.RUNTIME)
        with Worker(bundle) as worker:
            worker.open()
    except RecfitError as error:
        return replace(row, seconds=time.monotonic() - begin, error=" ".join(str(error).split())[:400])
    return replace(row, bundle=bundle, seconds=seconds)


def described(row: Row, found: Measurement | None, base: Measurement) -> dict[str, Any]:
    """One row of the JSON."""
    facts: dict[str, Any] = {
        "whose": row.whose,
        "name": row.name,
        "seconds": round(row.seconds, 1),
        "lines": row.lines,
        "cannot": row.cannot,
        "error": row.error,
    }
    if found is None:
        return facts
    gap, old = paired(found.users[METRIC], base.users[METRIC]), base.metrics[METRIC]
    kept = {"kept": found.metrics[METRIC] / old, "kept_interval": [1 + gap.low / old, 1 + gap.high / old]}
    intervals = {name: list(found.intervals[name]) for name in ("p50_ms", "p99_ms")}
    return {**facts, **kept, "metrics": dict(found.metrics), "intervals": intervals}


def table(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """The rows as a Markdown table."""
    yield f"| {' | '.join(HEADS)} |"
    yield f"|{'|'.join(' --- ' for _ in HEADS)}|"
    for row in rows:
        made = f"{row['seconds']:.0f} | {row['lines'] or '-'}"
        if row["error"]:
            yield f"| {row['name']} | {row['error']} | {'| ' * 6}{made} |"
            continue
        low, high = row["kept_interval"]
        costs = " | ".join(f"{row['metrics'][cost]:.3g}" for cost in COSTS)
        kept = f"{row['metrics'][METRIC]:.4f} | {100 * row['kept']:.1f} | {50 * (high - low):.1f}"
        yield f"| {row['name']} | {kept} | {costs} | {made} |"


def ahead(mine: Measurement, theirs: Measurement) -> list[str]:
    """On which axes `theirs` is ahead of `mine`; of quality only what the paired interval tells from nothing."""
    found = [name for cost, name in COSTS.items() if theirs.metrics[cost] < mine.metrics[cost]]
    better = paired(mine.users[METRIC], theirs.users[METRIC]).high < 0
    return ["quality"] * better + found


def frontier(found: Sequence[tuple[Row, Measurement]]) -> Iterator[str]:
    """For every peer the row of recfit that leaves it the fewest axes, of these the best."""
    ours = [pair for pair in found if pair[0].whose == "recfit"]
    for row, theirs in found:
        if row.whose == "peer" and ours:
            mine, own = min(ours, key=lambda pair: (len(ahead(pair[1], theirs)), -pair[1].metrics[METRIC]))
            left = ahead(own, theirs)
            verdict = f"is ahead in {', '.join(left)} of" if left else "is behind or level on every axis with"
            gap = paired(own.users[METRIC], theirs.users[METRIC])
            yield f"- {row.name} {verdict} {mine.name} (whose {METRIC} is {gap.low:+.4f} to {gap.high:+.4f} higher)"


def versions() -> dict[str, str]:
    """Installed versions of what the peers need."""
    needed = {part for name in peers() for part in importlib.import_module(f"benchmarks.peers.{name}").NEEDS}
    packages = importlib.metadata.packages_distributions()
    known = sorted({package for part in needed for package in packages.get(part, ())})
    return {package: importlib.metadata.version(package) for package in known}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", type=Path, help="recfit.toml of a study")
    parser.add_argument("--recipes", type=Path, default=HERE / "recfit.toml", help="TOML with [[recipe]] tables")
    parser.add_argument("--only", nargs="*", default=peers(), choices=peers(), help="leave out all other peers")
    given = parser.parse_args()
    os.environ |= {"RECFIT_PLUGINS": str(HERE / "plugins"), "OLIVE_DISABLE_TELEMETRY": "1"}
    bench = prepare(config.load(given.settings))
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        rows = originals(bench, folder)
        base = rows[0].bundle
        assert base is not None
        for name in given.only:
            rows.append(peer(bench, name, base, folder))
            print(f"{rows[-1].name}: {rows[-1].error or 'made'}", flush=True)
        rows += own(bench, given.recipes, folder)
        served = [row for row in rows if row.bundle is not None]
        measured = recipes.measured(bench, [row.bundle for row in served if row.bundle], list(quality.METRICS))
    found = dict(zip((row.name for row in served), measured, strict=True))
    listed = [described(row, found.get(row.name), measured[0]) for row in rows]
    record = {
        "data": bench.split.train.name,
        "split": f"{bench.split.protocol}, test requests",
        "targets": bench.split.target_hash,
        "protocol": dict(measured[0].protocol),
        "versions": versions(),
        "frontier": [*frontier(list(zip(served, measured, strict=True)))],
        "rows": listed,
    }
    path = save("peers", bench.split.train.name, record)
    cannot = [f"- {row.name} cannot: {row.cannot}" for row in rows if row.cannot]
    print(*table(listed), "", *cannot, "", *record["frontier"], "", path, sep="\n")


if __name__ == "__main__":
    main()

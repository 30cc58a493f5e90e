"""The *CTR preview*: a NeuMF of ids, context and features on Frappe (Baltrunas et al., arXiv 1505.03014), made smaller
within 0.001 of its AUC.

    python -m benchmarks.seeds.ctr.run FOLDER runs/seeds/ctr
    python -m benchmarks.seeds.ctr.run FOLDER runs/seeds/ctr --recipes benchmarks/seeds/ctr/ctr_features.toml

FOLDER holds `frappe.validation.libfm` and `frappe.test.libfm` (github.com/hexiangnan/neural_factorization_machine,
data/frappe): the first is learned from, the second judged by. A request is a user in a context, its columns are its
features; an app is an item. Clicks are learned from beside random apps, which is how the files' own negatives were made.
AUC is taken over all rows of the test file, scored by the bundle; intervals are those of a bootstrap over its 811 users.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from benchmarks import recipes
from benchmarks.plots import tradeoff
from benchmarks.record import save
from sklearn.metrics import roc_auc_score

from recfit import measure, models
from recfit import pipeline as pipelines
from recfit.engine import open_bundle
from recfit.measure.statistics import Interval
from recfit.models import catalogue_of
from recfit.pipeline import Pipeline, Stage
from recfit.search.build import Workshop
from recfit.search.isolate import isolated
from recfit.training import Fit, train
from recfit.types import Features, FloatArray, IntArray, Interactions, Queries, Ragged, Request, Split

FIELDS = ("user", "item", "daytime", "weekday", "weekend", "homework", "cost", "weather", "country", "city")
ITEM = FIELDS.index("item")
OPTIONS = {"embedding_dim": 16, "hidden": 64, "top": 32, "dropout": 0.3, "users": False, "features": True}
FIT = Fit(epochs=80, patience=15, batch_size=512, learning_rate=3e-3, weight_decay=0.1, negatives=2, threads=1)
LIMITS = {"memory_gb": 8.0, "seconds": 3600.0}
HELD_OUT = 0.1  # of the clicks: they end trainings
RESAMPLES = 400
RECIPES = Path(__file__).with_name("recipes.toml")


@dataclass(frozen=True)
class Rows:
    """Lines of a file: whether the app was used, and ids of every field, int64 [n, 10], counted over all fields."""

    used: IntArray
    ids: IntArray


@dataclass(frozen=True)
class Pairs:
    """What the test file asks: request and item ids, the user behind each request, and whether the app was used."""

    requests: Sequence[str]
    items: Sequence[str]
    users: IntArray
    used: IntArray


def read(path: Path) -> Rows:
    lines = [line.split() for line in path.read_text().splitlines()]
    ids = [[int(part.partition(":")[0]) for part in parts[1:]] for parts in lines]
    return Rows(np.array([parts[0] == "1" for parts in lines], np.int64), np.array(ids, np.int64))


def frame(learned: Rows, judged: Rows) -> tuple[Split, Pairs]:
    """Requests with features, apps as items; the clicks that are learned from, those that end trainings, and the test."""
    both = np.concatenate((learned.ids, judged.ids))
    asked, requests = np.unique(np.delete(both, ITEM, axis=1), axis=0, return_inverse=True)
    apps, items = np.unique(both[:, ITEM], return_inverse=True)
    low = asked.min(0)
    names = tuple(field for field in FIELDS if field != "item")
    features = Features(names, (asked - low + 1).astype(np.int32), tuple((asked.max(0) - low + 2).tolist()))
    ids = tuple(f"r{row}" for row in range(len(asked))), tuple(map(str, apps.tolist()))
    count = len(learned.used)
    clicks = np.random.default_rng(0).permutation(np.flatnonzero(learned.used))
    stop, keep = np.split(clicks, [round(HELD_OUT * len(clicks))])
    keep.sort()
    ones, times = np.ones(len(keep), np.float32), np.arange(len(keep), dtype=np.float64)
    events = requests[keep].astype(np.int32), items[keep].astype(np.int32)
    train_ = Interactions("frappe", *events, ones, times, *ids, user_features=features)
    queries = [_queries(requests[rows], items[rows]) for rows in (stop, count + np.flatnonzero(judged.used))]
    pairs = Pairs(
        [ids[0][row] for row in requests[count:]], [ids[1][row] for row in items[count:]], judged.ids[:, 0], judged.used
    )
    return Split("the files' own", train_, *queries, cold={}, target_hash=""), pairs


def _queries(requests: IntArray, items: IntArray) -> Queries:
    nothing = Ragged.from_lists([[]] * len(requests))
    return Queries(requests.astype(np.int32), nothing, Ragged.from_lists([[item] for item in items]))


def original(split: Split, folder: Path) -> None:
    """Train the original, unless it is there."""
    if pipelines.saved(folder):
        return
    torch.set_num_threads(FIT.threads)
    torch.manual_seed(FIT.seed)
    model = models.build("neumf", OPTIONS, catalogue_of(split))
    train(model, split, FIT)
    pipelines.save(Pipeline(Stage(model)), folder)


def scored(bundle: Path, pairs: Pairs) -> FloatArray:
    """The bundle's score of every pair, float32 [n], request by request."""
    engine, asked = open_bundle(bundle), np.array(pairs.requests)
    order = np.argsort(asked, kind="stable")
    found = np.empty(len(order), np.float32)
    for part in np.split(order, np.flatnonzero(np.diff(np.unique(asked[order], return_inverse=True)[1])) + 1):
        found[part] = engine.score(Request(str(asked[part[0]])), [pairs.items[row] for row in part])
    return found


def difference(new: FloatArray, base: FloatArray, pairs: Pairs) -> Interval:
    """AUC of `new` less that of `base`, with the 95 % interval of a bootstrap over users."""
    users, of = np.unique(pairs.users, return_inverse=True)
    rows = [np.flatnonzero(of == user) for user in range(len(users))]
    draws = np.random.default_rng(0).integers(0, len(users), (RESAMPLES, len(users)))
    gaps = []
    for draw in draws:
        taken = np.concatenate([rows[user] for user in draw])
        gaps.append(roc_auc_score(pairs.used[taken], new[taken]) - roc_auc_score(pairs.used[taken], base[taken]))
    mean = roc_auc_score(pairs.used, new) - roc_auc_score(pairs.used, base)
    return Interval(mean, *np.quantile(gaps, (0.025, 0.975)))


def costs(bundle: Path, found: Mapping[str, float]) -> dict[str, float]:
    """What was measured, and the bytes of the model alone: every request's features are in the bundle too."""
    return {**found, "table_kb": sum(part.stat().st_size for part in (bundle / "retrieve").rglob("*.*")) / 1e3}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="the folder of the two files")
    parser.add_argument("directory", type=Path, help="where the original and trained prefixes are kept")
    parser.add_argument(
        "--recipes", type=Path, default=RECIPES, help="TOML with [[recipe]] tables (those beside this file)"
    )
    given = parser.parse_args()
    split, pairs = frame(*(read(given.data / f"frappe.{name}.libfm") for name in ("validation", "test")))
    workshop = Workshop(
        split, given.directory / "original", given.directory / "models", FIT, FIT.threads, progress=True
    )
    isolated(original, split, workshop.original, **LIMITS)
    plan = measure.Plan()
    with tempfile.TemporaryDirectory() as folder:
        made = recipes.finals(workshop, recipes.entries(given.recipes), Path(folder), LIMITS)
        scores = [isolated(scored, one.path, pairs, **LIMITS) for one in made]
        found = measure.latency([one.path for one in made], split.test, plan)
        metrics = [
            {**costs(one.path, cost["metrics"]), "auc": float(roc_auc_score(pairs.used, score))}
            for one, cost, score in zip(made, found, scores, strict=True)
        ]
        protocol = measure.protocol(made[0].path, split.test, plan)
        rows = [
            recipes.row(one, part, metrics[0], "auc", difference(score, scores[0], pairs))
            for one, part, score in zip(made, metrics, scores, strict=True)
        ]
    record = {
        "data": "frappe",
        "split": f"learned from {len(split.train):,} clicks of the validation file, judged by the test file",
        "metric": f"AUC over {len(pairs.used):,} pairs; bootstrap over {len(np.unique(pairs.users))} users",
        "protocol": {**protocol, "ranking": "all apps for one request (latency); the test file's pairs (AUC)"},
        "rows": rows,
    }
    path = save("recipes", recipes.label(given.recipes), record)
    print(*recipes.table(rows, "auc"), path, tradeoff(rows, "AUC", path.with_suffix(".svg")), sep="\n")


if __name__ == "__main__":
    main()

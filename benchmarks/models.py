"""Every family trained on one data set and judged alike: full ranking of the catalogue, seen items removed, test split.

    python -m benchmarks.models ml-100k --preset ml-100k
    python -m benchmarks.models ratings/sequences.txt --preset ml-1m --only sasrec ease --checkpoints runs/ml-1m

`hr@10 of 100` ranks the target among 99 random unseen items: the protocol of the NCF paper, only to compare with it.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from benchmarks.record import save

from recfit import models
from recfit.data import load
from recfit.data.splits import split
from recfit.training import Fit, evaluate, train
from recfit.types import Split

COLUMNS = ("model", "parameters", "hr@10", "ndcg@10", "hr@10 of 100", "ndcg@10 of 100", "valid", "epochs", "minutes")


@dataclass(frozen=True)
class Run:
    """One model and how it is trained."""

    name: str
    kind: str
    options: Mapping[str, Any] = field(default_factory=dict)
    fit: Fit = field(default_factory=Fit)


SOLVED = (Run("popularity", "popularity"), Run("itemknn", "itemknn"), Run("ease", "ease"), Run("als", "als"))
PRESETS: Mapping[str, tuple[Run, ...]] = {
    "ml-100k": (
        *SOLVED,
        Run(
            "sasrec",
            "sasrec",
            {"layers": 2, "embedding_dim": 64, "ffn": 64, "max_history": 50, "dropout": 0.5},
            Fit(epochs=130, patience=130, batch_size=64, learning_rate=2e-3, weight_decay=1.0, reverse=0.25),
        ),
    ),
    "ml-1m": (
        *SOLVED,
        Run(
            "neumf, ids only",
            "neumf",
            {"embedding_dim": 64, "hidden": 128, "top": 64, "dropout": 0.2},
            Fit(epochs=20, patience=4, batch_size=4096, learning_rate=2e-3, weight_decay=0.05, negatives=4),
        ),
        Run(
            "neumf",
            "neumf",
            {"embedding_dim": 32, "hidden": 64, "top": 32, "dropout": 0.3, "max_history": 20},
            Fit(epochs=6, patience=6, batch_size=4096, learning_rate=3e-3, weight_decay=0.3, negatives=4),
        ),
        Run(
            "sasrec",
            "sasrec",
            {"layers": 2, "embedding_dim": 128, "ffn": 256, "max_history": 200, "dropout": 0.2},
            Fit(epochs=30, patience=30, batch_size=64, learning_rate=2e-3, weight_decay=0.05, warmup=100),
        ),
    ),
}


def measured(run: Run, data: Split, threads: int, checkpoints: Path | None) -> dict[str, Any]:
    """Train `run` on `data`; its row of the table."""
    torch.manual_seed(run.fit.seed)
    model = models.build(run.kind, run.options, models.catalogue_of(data))
    checkpoint = checkpoints / f"{run.name}.safetensors" if checkpoints else None
    start = time.monotonic()
    trained = train(model, data, run.fit, checkpoint=checkpoint)
    minutes = trained.epochs[-1].seconds / 60 if trained.epochs[-1].seconds else (time.monotonic() - start) / 60
    full, sampled = evaluate(model, data.test), evaluate(model, data.test, sampled=99)
    return {
        "model": run.name,
        "parameters": sum(value.numel() for value in models.as_module(model).state_dict().values()),
        **full,
        **{f"{name} of 100": value for name, value in sampled.items()},
        "valid": trained.ndcg,
        "epochs": len(trained.epochs),
        "minutes": minutes,
        "settings": {**asdict(run), "precision": trained.precision, "threads": threads},
    }


def lines(rows: list[dict[str, Any]]) -> Iterator[str]:
    """The rows as a table."""
    yield " ".join(f"{column:>14}" for column in COLUMNS)
    for row in rows:
        values = (row[column] for column in COLUMNS)
        yield " ".join(f"{value:14.4f}" if isinstance(value, float) else f"{value:>14}" for value in values)


def write(rows: list[dict[str, Any]], data: Split) -> Path:
    """The dated JSON of this run."""
    found = {
        "data": data.train.name,
        "protocol": f"{data.protocol}, full ranking, seen items removed",
        "queries": len(data.test),
        "targets": data.target_hash,
        "rows": rows,
    }
    return save("models", f"{data.train.name}-{data.protocol.replace('(', '-').rstrip(')')}", found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="a file or a public set, as `recfit data describe` takes it")
    parser.add_argument("--preset", choices=sorted(PRESETS), default="ml-100k", help="which settings")
    parser.add_argument("--split", default="leave_last", help="leave_last(n=5), global_time(test=0.2), ...")
    parser.add_argument("--only", nargs="*", help="names of the preset's models")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--checkpoints", type=Path, help="where interrupted trainings go on from")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    data = split(load(given.data), given.split)
    chosen = [run for run in PRESETS[given.preset] if not given.only or run.name in given.only]
    rows = []
    for run in chosen:
        rows.append(measured(run, data, given.threads, given.checkpoints))
        print(*lines(rows[-1:]), sep="\n", flush=True)
    print(*lines(rows), write(rows, data), sep="\n")


if __name__ == "__main__":
    main()

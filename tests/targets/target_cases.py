"""Bundles of the toy data, what they answer, and the histories that every target is asked."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

import toys
from recfit.engine import Engine, open_bundle
from recfit.pipeline import Pipeline, RuntimePlan, Stage
from recfit.types import Request

Exported = Callable[[Pipeline], Path]
Ask = Callable[[list[str]], tuple[list[str], list[float]]]

# Kind and what its stage is stored in: learned vectors, integer products, equal scores, the score of every item at once.
CASES: Mapping[str, tuple[str, Mapping[str, str]]] = {
    "sasrec": ("sasrec", {}),
    "int8 table": ("sasrec", {"table": "int8"}),
    "int8 graph": ("sasrec", {"graph": "int8"}),
    "popularity": ("popularity", {}),
    "ease": ("ease", {}),
}
# An activation that another kernel rounds to the next step moves every score of an int8 graph.
STEPS = {"int8 graph": 0.02}
EXACT = 1e-5


def pipeline_of(kind: str, formats: Mapping[str, Any], runtime: str = "ort") -> Pipeline:
    stage = Stage(toys.trained(kind, toys.SHAPES.get(kind, [{}])[0]), **formats)
    return Pipeline(stage, runtime=RuntimePlan(runtime))


@cache
def histories() -> list[list[str]]:
    """200 of them: with repeats, longer than any model reads, and with ids that nobody knows."""
    draws, ids = np.random.default_rng(3), toys.around().item_ids
    past = [draws.integers(0, len(ids), size).tolist() for size in draws.integers(1, 31, 200)]
    return [["nobody's", *(ids[row] for row in rows)] for rows in past]


def best(engine: Engine, history: Sequence[str], k: int = 10) -> list[str]:
    """What the engine answers."""
    return list(engine.recommend([Request(history=tuple(history))], k)[0].items)


def assert_answers_as_the_engine(ask: Ask, bundle: Path, case: str) -> None:
    """`ask` gives for every history the engine's ten items, in its order unless their scores are as good as equal."""
    engine, ids = open_bundle(bundle), toys.around().item_ids
    for history in histories():
        every = engine.recommend([Request(history=tuple(history))], len(ids))[0]
        scores = np.full(len(ids), -np.inf, np.float32)
        scores[rows_of(every.items)] = every.scores
        items, found = ask(history)
        toys.assert_ranks(rows_of(items), found, scores, 10, STEPS.get(case, EXACT))
        if case not in STEPS:
            assert items == list(every.items[:10])


def rows_of(items: Sequence[str]) -> list[int]:
    """Item rows of the ids that are known."""
    ids = toys.around().item_ids
    return [ids.index(item) for item in items if item in ids]

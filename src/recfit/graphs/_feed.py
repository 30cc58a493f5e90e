"""Inputs of a stage's graph, made of what its bundle carries: the histories of users, one request at a time, as they are
served, so that no padding counts and nothing is drawn at random."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from recfit.runtimes import Batch, StageSpec
from recfit.runtimes.ort import GRAPH
from recfit.tables import opened
from recfit.types import Features, IntArray, Ragged, Rows

Inputs = Mapping[str, npt.NDArray[Any]]
Feed = Callable[[], Iterator[Inputs]]
REQUESTS = 32
CANDIDATES = 64


def calibration(
    directory: Path, spec: StageSpec, histories: Ragged, features: Features | None, popular: Rows
) -> Iterator[Inputs]:
    """Up to `REQUESTS` requests of users spread over all that have a history, as the graph of the stage in `directory`
    takes them.

    A ranker judges candidates spread over `popular`, all items from the most popular to the rarest; an encoder that is
    tied reads its history's rows from the table there.
    """
    import onnx

    takes = {given.name for given in onnx.load(directory / GRAPH).graph.input}
    table = opened(directory / "table", spec.table, 1) if spec.tied else None
    every = np.pad(table.rows(np.arange(spec.n_items)), ((1, 0), (0, 0))) if table and "table" in takes else None
    known = np.flatnonzero(histories.sizes)
    for user in known[_spread(len(known), REQUESTS)].tolist():
        codes = None if features is None else features.codes[user][None].astype(np.int64)
        inputs: dict[str, Any] = Batch(np.array([user + 1]), [histories[user]], codes).inputs(spec)
        if spec.kind == "ranker":
            inputs["items"] = popular[_spread(len(popular), CANDIDATES)][None].astype(np.int64) + 1
        if table is not None:
            inputs["vectors"] = table.rows(inputs["history"] - 1)
            inputs["table"] = every
        if spec.remembers:
            inputs["past"] = np.zeros((1, 0, spec.remembers), np.float32)
        yield {name: values for name, values in inputs.items() if name in takes}


def _spread(size: int, count: int) -> IntArray:
    """Positions of up to `count` of `size` things, evenly spaced from the first to the last."""
    return np.unique(np.linspace(0, max(0, size - 1), min(size, count)).round().astype(np.int64))

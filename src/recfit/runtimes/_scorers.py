"""What runtimes of graphs share: a graph meets its item table, or scores pairs; only who runs the graph differs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np

from recfit.runtimes import Batch, Scorer, StageSpec
from recfit.runtimes._sessions import Sessions
from recfit.tables import Searchable, Table, opened
from recfit.topk import Found, best
from recfit.types import FloatArray, IntArray, Rows

# Pairs a ranker scores in one run while it scans a catalogue: their activations stay in the cache.
SCAN_PAIRS = 8192


class Graph(Protocol):
    """An exported graph, ready to run. `takes` are its inputs: one that the answer does not depend on is not among them."""

    @property
    def takes(self) -> tuple[str, ...]: ...

    def __call__(self, inputs: Mapping[str, Any]) -> FloatArray: ...


class Continued(Graph, Protocol):
    """A graph that takes what the events before left, `past`, and gives what the new ones leave."""

    def outputs(self, inputs: Mapping[str, Any]) -> Sequence[FloatArray]:
        """The vectors [B, d], and what each event leaves, [B, N, m]."""
        ...


Scores = Callable[[FloatArray], FloatArray]
"""Every item's score for queries [B, dim]: float32 [B, n_items]."""
Search = Callable[[FloatArray, int, Sequence[Rows]], list[Found]]
"""Queries [B, dim], k, what is gone -> the best items: `Searchable.search`."""


def scorer(graph: Graph, spec: StageSpec, directory: Path, threads: int, scan: Callable[[Table], Scores]) -> Scorer:
    """The stage of `graph`; `scan` is how the runtime scores an item table."""
    if spec.kind == "ranker":
        return RankerScorer(graph, spec)
    table = opened(directory / "table", spec.table, threads)
    search = table.search if isinstance(table, Searchable) else exhaustive(scan(table))
    if spec.remembers:
        return SessionScorer(cast(Continued, graph), table, search, spec)
    return EncoderScorer(graph, table, search, spec)


def exhaustive(scan: Scores) -> Search:
    """The search that scores every item."""
    return lambda queries, k, gone: best(scan(queries), k, gone)


class EncoderScorer:
    """Request -> vector (graph) -> items (table)."""

    def __init__(self, graph: Graph, table: Table, search: Search, spec: StageSpec) -> None:
        self._graph, self._table, self._search, self._spec = graph, table, search, spec

    def encode(self, batch: Batch) -> FloatArray:
        return self._graph(self._inputs(batch))

    def _inputs(self, batch: Batch, **more: Any) -> Mapping[str, Any]:
        inputs: dict[str, Any] = {**batch.inputs(self._spec), **more}
        if self._spec.tied:
            inputs["vectors"] = self._vectors(inputs["history"])
        return {name: inputs[name] for name in self._graph.takes}

    def _vectors(self, tokens: IntArray) -> FloatArray:
        """The table's rows of the history: float32 [B, L, d], zeros where it is padded."""
        vectors = self._table.rows(np.maximum(tokens - 1, 0))
        if not tokens[:, 0].all():  # padding is on the left
            vectors[tokens == 0] = 0
        return vectors

    def top(self, batch: Batch, k: int, gone: Sequence[Rows]) -> list[Found]:
        return self._search(self.encode(batch), k, gone)

    def rescore(self, batch: Batch, candidates: IntArray) -> FloatArray:
        return self._table.rescore(self.encode(batch), np.maximum(candidates, 0))


class SessionScorer(EncoderScorer):
    """An encoder that goes on from what it worked out for the events before."""

    def __init__(self, graph: Continued, table: Table, search: Search, spec: StageSpec) -> None:
        super().__init__(graph, table, search, spec)
        self._continued, self.sessions = graph, Sessions(spec.remembers, spec.max_history)

    def encode(self, batch: Batch) -> FloatArray:
        return np.stack(self.sessions.answers(batch, self._encode_on))

    def _encode_on(self, _: Sequence[int], batch: Batch, past: FloatArray) -> tuple[Sequence[FloatArray], FloatArray]:
        vectors, left = self._continued.outputs(self._inputs(batch, past=past))
        return [*vectors], left


class RankerScorer:
    """(Request, items) -> scores; a scan goes over the catalogue in chunks."""

    def __init__(self, graph: Graph, spec: StageSpec) -> None:
        self._graph, self._spec = graph, spec
        self._tokens = np.arange(1, spec.n_items + 1, dtype=np.int64)[None]

    def top(self, batch: Batch, k: int, gone: Sequence[Rows]) -> list[Found]:
        return best(self._scores(batch), k, gone)

    def _scores(self, batch: Batch) -> FloatArray:
        width = max(1, SCAN_PAIRS // len(batch))
        chunks = [self._tokens[:, start : start + width] for start in range(0, self._spec.n_items, width)]
        inputs = batch.inputs(self._spec)
        return np.concatenate([self._run(inputs, chunk.repeat(len(batch), axis=0)) for chunk in chunks], axis=1)

    def rescore(self, batch: Batch, candidates: IntArray) -> FloatArray:
        return self._run(batch.inputs(self._spec), np.maximum(candidates + 1, 1))

    def _run(self, inputs: dict[str, IntArray], tokens: IntArray) -> FloatArray:
        given = {**inputs, "items": tokens}
        return self._graph({name: given[name] for name in self._graph.takes})

"""ONNX Runtime: the default. Encoder graphs meet their item table here; ranker graphs score pairs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from recfit.registry import find
from recfit.runtimes import Batch, Scorer, StageSpec
from recfit.tables import Table
from recfit.types import BundleError, FloatArray, IntArray

GRAPH = "model.onnx"
LEVELS = {
    "none": onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "basic": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "extended": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "all": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL,
}
# Pairs a ranker scores in one run while it scans a catalogue: bounds the memory of its activations.
SCAN_PAIRS = 65_536


def session(path: Path, threads: int = 1, graph: str = "all") -> onnxruntime.InferenceSession:
    """An inference session on the CPU with a fixed number of threads."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.graph_optimization_level = LEVELS[graph]
    options.log_severity_level = 3
    # Waiting threads sleep: spinning ones take the cores that other sessions and the server need.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime raises half a dozen unrelated types here
        raise BundleError(f"ONNX Runtime {onnxruntime.__version__} cannot load {path}: {error}") from error


def open_scorer(directory: Path, spec: StageSpec, threads: int) -> Scorer:
    graph = session(directory / GRAPH, threads, spec.options.get("graph", "all"))
    if spec.kind == "ranker":
        return RankerScorer(graph, spec)
    return EncoderScorer(graph, open_table(directory / "table", spec, threads), spec)


def open_table(directory: Path, spec: StageSpec, threads: int) -> Table:
    settings = dict(spec.table)
    module = find("tables", settings.pop("format"))
    table: Table = module.open_table(directory, module.Config(**settings), threads)
    return table


def taken(graph: onnxruntime.InferenceSession) -> tuple[str, ...]:
    """What the graph takes; an input that the answer does not depend on is no longer among it."""
    return tuple(argument.name for argument in graph.get_inputs())


class EncoderScorer:
    """Request -> vector (graph) -> scores (table)."""

    def __init__(self, graph: onnxruntime.InferenceSession, table: Table, spec: StageSpec) -> None:
        self._graph, self._table, self._spec = graph, table, spec
        self._takes = taken(graph)

    def encode(self, batch: Batch) -> FloatArray:
        inputs: dict[str, Any] = batch.inputs(self._spec)
        if self._spec.tied:
            inputs["vectors"] = self._vectors(inputs["history"])
        vector: FloatArray = self._graph.run(None, {name: inputs[name] for name in self._takes})[0]
        return vector

    def _vectors(self, tokens: IntArray) -> FloatArray:
        """The table's rows of the history: float32 [B, L, d], zeros where it is padded."""
        vectors = self._table.rows(np.maximum(tokens - 1, 0))
        if not tokens[:, 0].all():  # padding is on the left
            vectors[tokens == 0] = 0
        return vectors

    def scores(self, batch: Batch) -> FloatArray:
        return self._table.scores(self.encode(batch))

    def rescore(self, batch: Batch, candidates: IntArray) -> FloatArray:
        return self._table.rescore(self.encode(batch), np.maximum(candidates, 0))


class RankerScorer:
    """(Request, items) -> scores; a scan goes over the catalogue in chunks."""

    def __init__(self, graph: onnxruntime.InferenceSession, spec: StageSpec) -> None:
        self._graph, self._spec = graph, spec
        self._takes = taken(graph)
        self._tokens = np.arange(1, spec.n_items + 1, dtype=np.int64)[None]

    def scores(self, batch: Batch) -> FloatArray:
        width = max(1, SCAN_PAIRS // len(batch))
        chunks = [self._tokens[:, start : start + width] for start in range(0, self._spec.n_items, width)]
        inputs = batch.inputs(self._spec)
        return np.concatenate([self._run(inputs, chunk.repeat(len(batch), axis=0)) for chunk in chunks], axis=1)

    def rescore(self, batch: Batch, candidates: IntArray) -> FloatArray:
        return self._run(batch.inputs(self._spec), np.maximum(candidates + 1, 1))

    def _run(self, inputs: dict[str, IntArray], tokens: IntArray) -> FloatArray:
        given = {**inputs, "items": tokens}
        scores: FloatArray = self._graph.run(None, {name: given[name] for name in self._takes})[0]
        return scores

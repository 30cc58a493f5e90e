"""ONNX Runtime: the default, for every graph and every table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnxruntime

from recfit.runtimes import Scorer, StageSpec
from recfit.runtimes._scorers import scorer
from recfit.types import BundleError, FloatArray

GRAPH = "model.onnx"
SESSIONS = True
LEVELS = {
    "none": onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "basic": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "extended": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "all": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL,
}


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
    graph = Graph(session(directory / GRAPH, threads, spec.options.get("graph", "all")))
    return scorer(graph, spec, directory, threads, lambda table: table.scores)


class Graph:
    """A session that is asked for its first output, or for all."""

    def __init__(self, session: onnxruntime.InferenceSession) -> None:
        self._session = session
        self.takes = tuple(argument.name for argument in session.get_inputs())

    def __call__(self, inputs: Mapping[str, Any]) -> FloatArray:
        return self.outputs(inputs)[0]

    def outputs(self, inputs: Mapping[str, Any]) -> Sequence[FloatArray]:
        found: list[FloatArray] = self._session.run(None, inputs)
        return found

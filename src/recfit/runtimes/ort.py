"""ONNX Runtime: the default, for every graph and every table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import onnxruntime

from recfit.runtimes import Scorer, StageSpec
from recfit.runtimes._scorers import Scores, scorer
from recfit.tables import Table, _scan
from recfit.types import BundleError, FloatArray

GRAPH = "model.onnx"
SESSIONS = True
OPTIONS = ("graph", "arena", "spinning")
LEVELS = {
    "none": onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "basic": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "extended": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "all": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL,
}


def session(
    path: Path, threads: int = 1, graph: str = "all", arena: bool = True, spinning: bool = False
) -> onnxruntime.InferenceSession:
    """An inference session on the CPU with a fixed number of threads.

    With `arena` it keeps the memory of its activations for the next run, planned by their shapes; without, every run asks the
    system for it and gives it back. `spinning` threads wait for each other awake: they are there sooner, and take the cores
    that other sessions and the server need.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.graph_optimization_level = LEVELS[graph]
    options.log_severity_level = 3
    options.enable_cpu_mem_arena = options.enable_mem_pattern = arena
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spinning)))
    try:
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime raises half a dozen unrelated types here
        raise BundleError(f"ONNX Runtime {onnxruntime.__version__} cannot load {path}: {error}") from error


def stage_session(path: Path, spec: StageSpec, threads: int) -> onnxruntime.InferenceSession:
    """The session of a stage's graph, as the stage's options ask for it."""
    return session(path, threads, **_asked(spec, OPTIONS))


def _asked(spec: StageSpec, names: Sequence[str]) -> dict[str, Any]:
    return {name: spec.options[name] for name in names if name in spec.options}


def open_scorer(directory: Path, spec: StageSpec, threads: int) -> Scorer:
    graph = Graph(stage_session(directory / GRAPH, spec, threads))
    return scorer(graph, spec, directory, threads, partial(_scores, spec))


def _scores(spec: StageSpec, table: Table) -> Scores:
    """The table's scan, in a session like that of the encoder; `graph` is about the encoder alone."""
    _scan.configure(table, _asked(spec, ("arena", "spinning")))
    return table.scores


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

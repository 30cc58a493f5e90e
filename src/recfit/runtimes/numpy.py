"""NumPy alone, for small models: the process never loads ONNX Runtime, which is most of what it would hold.

At export the graph, optimized by ONNX Runtime once, becomes a plan: a list of steps and their constants. Graphs with an
operator that is not in `OPERATORS` are refused. BLAS is told its number of threads, for the whole process.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from threadpoolctl import threadpool_limits

from recfit.runtimes import Scorer, StageSpec
from recfit.runtimes._operators import OPERATORS
from recfit.runtimes._scorers import Scores, scorer
from recfit.tables import Table
from recfit.types import BundleError, FloatArray, Unsupported

GRAPH = "model.onnx"
PLAN = "plan.json"
CONSTANTS = "constants.npz"
ENDS = ("takes", "gives")
GRAPHS = ("float32",)


def convert(directory: Path, spec: StageSpec) -> None:
    """Replace the exported graph by a plan and its constants. Raises `Unsupported`. Needs `onnx`."""
    import onnx
    import onnxruntime
    from onnx import numpy_helper

    graph = directory / GRAPH
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    with tempfile.TemporaryDirectory() as folder:
        options.optimized_model_filepath = str(Path(folder) / "optimized.onnx")
        onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        found = onnx.load(options.optimized_model_filepath).graph
    if unknown := sorted({node.op_type for node in found.node} - OPERATORS.keys()):
        raise Unsupported(f"NumPy has no {', '.join(unknown)}; keep runtime name='ort'")
    constants = {weight.name: numpy_helper.to_array(weight) for weight in found.initializer}
    plan = {
        "takes": [given.name for given in found.input if given.name not in constants],
        "gives": found.output[0].name,
        "constants": list(constants),
        "steps": [_step(node) for node in found.node],
    }
    (directory / PLAN).write_text(json.dumps(plan), encoding="utf-8")
    np.savez(directory / CONSTANTS, *constants.values())
    graph.unlink()


def _step(node: Any) -> dict[str, Any]:
    from onnx import helper, numpy_helper

    settings = {part.name: helper.get_attribute_value(part) for part in node.attribute}
    if "value" in settings:
        settings["value"] = numpy_helper.to_array(settings["value"]).tolist()
    if "to" in settings:
        settings["to"] = helper.tensor_dtype_to_np_dtype(settings["to"]).name
    settings = {name: value.decode() if isinstance(value, bytes) else value for name, value in settings.items()}
    return {"op": node.op_type, "takes": list(node.input), "gives": list(node.output), "settings": settings}


def open_scorer(directory: Path, spec: StageSpec, threads: int) -> Scorer:
    threadpool_limits(threads, user_api="blas")
    return scorer(Graph(directory), spec, directory, threads, _scan)


def _scan(table: Table) -> Scores:
    matrix = table.matrix()
    if matrix is None:
        return lambda queries: queries
    columns = matrix.T
    return lambda queries: queries @ columns


class Step(NamedTuple):
    """A function, and the numbers of the values that it takes and gives."""

    function: Callable[..., Any]
    takes: list[int]
    gives: list[int]


class Graph:
    """A plan, ready to run."""

    def __init__(self, directory: Path) -> None:
        try:
            plan = json.loads((directory / PLAN).read_text(encoding="utf-8"))
            with np.load(directory / CONSTANTS, allow_pickle=False) as stored:
                constants = [stored[name] for name in stored.files]
        except (OSError, ValueError) as error:
            raise BundleError(f"{directory} holds no plan for NumPy: {error}; export it again") from error
        self.takes = tuple(plan["takes"])
        made = [name for step in plan["steps"] for name in step["gives"]]
        names = ["", *plan["constants"], *self.takes, *made]
        place = {name: index for index, name in enumerate(names)}
        self._values: list[Any] = [None, *constants, *[None] * (len(names) - 1 - len(constants))]
        self._first = 1 + len(constants)
        self._steps = [
            Step(OPERATORS[step["op"]](**step["settings"]), *([place[name] for name in step[key]] for key in ENDS))
            for step in plan["steps"]
        ]
        self._gives = place[plan["gives"]]

    def __call__(self, inputs: Mapping[str, npt.NDArray[Any]]) -> FloatArray:
        values = self._values.copy()
        for index, name in enumerate(self.takes, self._first):
            values[index] = inputs[name]
        for function, takes, gives in self._steps:
            found = function(*[values[index] for index in takes])
            if len(gives) == 1:
                values[gives[0]] = found
            else:
                for index, part in zip(gives, found, strict=True):
                    values[index] = part
        output: FloatArray = values[self._gives]
        return output

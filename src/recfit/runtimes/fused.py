"""ONNX Runtime with everything in one graph: history -> item rows -> encoder -> scan -> filter -> top-k.

Time goes by between the parts of a request too: sessions that start, arrays that pass through Python, a selection of a
dozen NumPy calls. Here one call answers. For encoders, and where these read item rows, for
tables that say in ONNX what a row is.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np

from recfit.registry import find
from recfit.runtimes import Batch, Scorer, StageSpec, ort
from recfit.runtimes._sessions import Sessions
from recfit.runtimes.ort import GRAPH
from recfit.tables import _scan, configured
from recfit.topk import Found
from recfit.types import FloatArray, IntArray, Rows, Unsupported

FUSED = "fused.onnx"
SESSIONS = True
OPTIONS = (*ort.OPTIONS, "ahead")
RESCORER = "ort"  # a fused graph gives lists: it scores single items by listing all


_NOTHING = np.empty(0, np.int32)


def check(kind: str, table: str, tied: bool) -> None:
    """Raise `Unsupported` for a stage that does not fit into one graph: of `kind`, its items in the format `table`, read by
    the encoder too if `tied`."""
    if kind != "encoder":
        raise Unsupported(f"a fused graph needs an encoder, this stage is a {kind}; keep runtime name='ort'")
    module = find("tables", table)
    if getattr(module, "APPROXIMATE", False):
        raise Unsupported(f"ONNX cannot search a table of format {table!r}; keep runtime name='ort'")
    if tied and not hasattr(module, "row_nodes"):
        raise Unsupported(f"ONNX has no single rows of a table of format {table!r}; keep runtime name='ort'")


def convert(directory: Path, spec: StageSpec) -> None:
    """Replace the graphs of encoder and item table in `directory` by one. Raises `Unsupported`. Needs `onnx`."""
    import onnx
    from onnx import TensorProto, compose, helper

    check(spec.kind, spec.table.get("format", ""), spec.tied)
    encoder = compose.add_prefix(onnx.load(directory / GRAPH), "encode.", rename_inputs=False)
    inputs = [part for part in encoder.graph.input if part.name not in ("vectors", "table")]
    nodes, constants = [*encoder.graph.node], [*encoder.graph.initializer]
    scores = "encode.output"
    if spec.table["format"] != "identity":
        table = onnx.load(directory / "table" / _scan.GRAPH, load_external_data=False)
        constants += [_below("table", part) for part in table.graph.initializer]
        tied = {part.name for part in encoder.graph.input} & {"vectors", "table"}
        read = [] if not tied else _every(spec) if "table" in tied else _lookup(spec)
        ask = helper.make_node("Identity", ["encode.output"], ["query"])
        fixed = [*takewhile(lambda node: "query" not in node.input, table.graph.node)]  # `read` may need what they make
        nodes, scores = [*fixed, *read, *nodes, ask, *table.graph.node[len(fixed) :]], "scores"
    filtering, more = _selection(scores)
    value = helper.make_tensor_value_info
    found = [
        value("top_scores", TensorProto.FLOAT, ["batch", "k"]),
        value("top_rows", TensorProto.INT64, ["batch", "k"]),
    ]
    more_inputs = [value("gone", TensorProto.INT64, ["pairs", 2]), value("k", TensorProto.INT64, [1])]
    found += encoder.graph.output[1:]  # what the events leave, where others go on from there
    graph = helper.make_graph([*nodes, *filtering], "fused", [*inputs, *more_inputs], found, [*constants, *more])
    opsets = {part.domain: part for part in (*encoder.opset_import, helper.make_opsetid("com.microsoft", 1))}
    model = helper.make_model(graph, opset_imports=opsets.values(), ir_version=9)
    (directory / FUSED).write_bytes(model.SerializeToString())
    (directory / GRAPH).unlink()
    (directory / "table" / _scan.GRAPH).unlink(missing_ok=True)


def _below(folder: str, tensor: Any) -> Any:
    """`tensor`, its file looked for in `folder`."""
    for entry in tensor.external_data:
        if entry.key == "location":
            entry.value = f"{folder}/{entry.value}"
    return tensor


def _lookup(spec: StageSpec) -> Sequence[Any]:
    """`history` [B, L] -> `vectors` [B, L, d]: the table's rows, zeros where the history is padded."""
    from onnx import TensorProto, helper

    one = helper.make_tensor("", TensorProto.INT64, [], [1])
    zero = helper.make_tensor("", TensorProto.INT64, [], [0])
    axis = helper.make_tensor("", TensorProto.INT64, [1], [2])
    return [
        helper.make_node("Constant", [], ["fused.one"], value=one),
        helper.make_node("Constant", [], ["fused.zero"], value=zero),
        helper.make_node("Constant", [], ["fused.axis"], value=axis),
        helper.make_node("Sub", ["history", "fused.one"], ["fused.shifted"]),
        helper.make_node("Max", ["fused.shifted", "fused.zero"], ["items"]),
        *_row_nodes(spec),
        helper.make_node("Greater", ["history", "fused.zero"], ["fused.real"]),
        helper.make_node("Cast", ["fused.real"], ["fused.weight"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["fused.weight", "fused.axis"], ["fused.weights"]),
        helper.make_node("Mul", ["fused.rows", "fused.weights"], ["vectors"]),
    ]


def _every(spec: StageSpec) -> Sequence[Any]:
    """The table's rows behind one of zeros, `table` [n_items + 1, d]: constant, like all that is made of it alone."""
    from onnx import helper, numpy_helper

    ends = {"fused.first": 0, "fused.items": spec.n_items, "fused.step": 1}
    nodes = [
        helper.make_node("Constant", [], [name], value=numpy_helper.from_array(np.array(value)))
        for name, value in ends.items()
    ]
    zeros = numpy_helper.from_array(np.zeros((1, spec.table["dim"]), np.float32))
    return [
        *nodes,
        helper.make_node("Range", [*ends], ["items"]),
        *_row_nodes(spec),
        helper.make_node("Constant", [], ["fused.zeros"], value=zeros),
        helper.make_node("Concat", ["fused.zeros", "fused.rows"], ["table"], axis=0),
    ]


def _row_nodes(spec: StageSpec) -> Sequence[Any]:
    """`fused.rows`: the table's rows at `items`."""
    module, config = configured(spec.table)
    found: Sequence[Any] = module.row_nodes("items", "fused.rows", config)
    return found


def _selection(scores: str) -> tuple[Sequence[Any], Sequence[Any]]:
    """Nodes and constants: `scores` [B, n] without the pairs `gone` (line, item row) -> the `k` best, ties to the lower row."""
    from onnx import helper, numpy_helper

    nodes = [
        helper.make_node("Shape", ["gone"], ["fused.pairs"], end=1),
        helper.make_node("Expand", ["fused.never", "fused.pairs"], ["fused.lowest"]),
        helper.make_node("ScatterND", [scores, "gone", "fused.lowest"], ["fused.open"]),
        helper.make_node("TopK", ["fused.open", "k"], ["top_scores", "top_rows"]),
    ]
    return nodes, [numpy_helper.from_array(np.array([-np.inf], np.float32), "fused.never")]


def open_scorer(directory: Path, spec: StageSpec, threads: int) -> Scorer:
    return Fused(ort.stage_session(directory / FUSED, spec, threads), spec)


class Fused:
    """A session that takes requests and gives lists."""

    def __init__(self, session: Any, spec: StageSpec) -> None:
        self._session, self._spec = session, spec
        self._takes = {given.name for given in session.get_inputs()}
        self.sessions = Sessions(spec.remembers, spec.max_history) if spec.remembers else None

    def top(self, batch: Batch, k: int, gone: Sequence[Rows]) -> list[Found]:
        if self.sessions is None:
            return self._run(batch, k, gone)[0]

        def run(lines: Sequence[int], part: Batch, past: FloatArray) -> tuple[list[Found], FloatArray]:
            found, [left] = self._run(part, k, [gone[line] for line in lines], past=past)
            return found, left

        return self.sessions.answers(batch, run)

    def _run(
        self, batch: Batch, k: int, gone: Sequence[Rows], **more: FloatArray
    ) -> tuple[list[Found], Sequence[FloatArray]]:
        """The lists, and what else the graph gives."""
        inputs = {name: values for name, values in batch.inputs(self._spec).items() if name in self._takes}
        width = np.array([min(k, self._spec.n_items)])
        values, rows, *left = self._session.run(None, {**inputs, **more, "gone": _pairs(gone), "k": width})
        return [_alive(*found) for found in zip(rows, values, strict=True)], left

    def rescore(self, batch: Batch, candidates: IntArray) -> FloatArray:
        scores = np.full((len(batch), self._spec.n_items), -np.inf, np.float32)
        for line, (rows, values) in zip(scores, self.top(batch, scores.shape[1], [_NOTHING] * len(batch)), strict=True):
            line[rows] = values
        return np.take_along_axis(scores, np.maximum(candidates, 0), axis=1)


def _pairs(gone: Sequence[Rows]) -> IntArray:
    """int64 [g, 2]: the line of a request, an item row."""
    pairs = np.empty((sum(map(len, gone)), 2), np.int64)
    start = 0
    for line, rows in enumerate(gone):
        stop = start + len(rows)
        pairs[start:stop, 0] = line
        pairs[start:stop, 1] = rows
        start = stop
    return pairs


def _alive(rows: IntArray, values: FloatArray) -> Found:
    """Without what is gone, which scores -inf, and without NaN, which `TopK` puts behind that."""
    if values[-1] > -np.inf:
        return rows, values
    alive = values > -np.inf
    return rows[alive], values[alive]

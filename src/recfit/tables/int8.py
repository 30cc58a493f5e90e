"""Rows as int8 with one float scale a row (symmetric): 1 byte a number + 4 bytes a row.

`scale_i = max|v_i| / 127`, `q_i = round(v_i / scale_i)`; each query is quantized on the fly to 7 bits, and the product
runs on integers (Gemmlowp scheme, arXiv 1712.05877, eq. 1-7, with a zero point of 0). Processors without VNNI add two
products in 16 bits: 2 * 127 * 127 fits, with a query of 8 bits they would saturate.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from recfit.tables import _scan
from recfit.types import FloatArray, IntArray


@dataclass(frozen=True)
class Config:
    dim: int


def write(vectors: FloatArray, directory: Path, config: Config) -> None:
    peaks = np.abs(vectors).max(axis=1)
    scales = np.where(peaks > 0, peaks / 127, 1.0).astype(np.float32)
    rows = np.rint(vectors / scales[:, None]).clip(-127, 127).astype(np.int8)
    constants = {"step": np.float32(1 / 63), "middle": np.uint8(64), "smallest": np.float32(1e-30)}
    _scan.write_graph(directory, _nodes(), config.dim, {"rows": rows, "scales": scales}, constants)


def _nodes() -> Sequence[Any]:
    """Queries are scaled to [-1, 1] one by one, where `DynamicQuantizeLinear` would give a batch one common scale.

    ONNX Runtime's products with scales of their own, `QGemm` and `MatMulIntegerToFloat`, take up to twice as long for one
    query, and less only for a few dozen; it does not make one of them out of these.
    """
    from onnx import TensorProto, helper

    return [
        helper.make_node("Transpose", ["rows"], ["columns"]),
        helper.make_node("Abs", ["query"], ["sizes"]),
        helper.make_node("ReduceMax", ["sizes"], ["largest"], axes=[1]),
        helper.make_node("Max", ["largest", "smallest"], ["peak"]),
        helper.make_node("Div", ["query", "peak"], ["unit"]),
        helper.make_node("QuantizeLinear", ["unit", "step", "middle"], ["q"]),
        helper.make_node("MatMulInteger", ["q", "columns", "middle"], ["sums"]),
        helper.make_node("Cast", ["sums"], ["units"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["units", "scales"], ["unit_scores"]),
        helper.make_node("Mul", ["peak", "step"], ["length"]),
        helper.make_node("Mul", ["unit_scores", "length"], ["scores"]),
    ]


def row_nodes(items: str, rows: str) -> list[Any]:
    from onnx import TensorProto, helper, numpy_helper

    last = numpy_helper.from_array(np.array([-1]))
    return [
        helper.make_node("Gather", ["rows", items], ["row.codes"]),
        helper.make_node("Cast", ["row.codes"], ["row.units"], to=TensorProto.FLOAT),
        helper.make_node("Gather", ["scales", items], ["row.scale"]),
        helper.make_node("Constant", [], ["row.last"], value=last),
        helper.make_node("Unsqueeze", ["row.scale", "row.last"], ["row.scales"]),
        helper.make_node("Mul", ["row.units", "row.scales"], [rows]),
    ]


def open_table(directory: Path, config: Config, threads: int) -> Int8:
    return Int8(directory, config, threads)


class Int8:
    def __init__(self, directory: Path, config: Config, threads: int) -> None:
        self._rows = _scan.open_array(directory, "rows", np.int8, config.dim)
        self._scales: FloatArray = _scan.open_array(directory, "scales", np.float32)
        self.scores = _scan.Scan(directory, threads)

    def rows(self, items: IntArray) -> FloatArray:
        return self._rows.take(items, axis=0) * self._scales.take(items)[..., None]

    def matrix(self) -> FloatArray:
        matrix: FloatArray = self._rows * self._scales[:, None]
        return matrix

    def rescore(self, queries: FloatArray, items: IntArray) -> FloatArray:
        return _scan.dot(self.rows(items), queries)

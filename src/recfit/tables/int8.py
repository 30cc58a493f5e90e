"""Rows as int8 with one float scale a row (symmetric): 1 byte a number + 4 bytes a row.

`scale_i = max|v_i| / 127`, `q_i = round(v_i / scale_i)`; each query is quantized on the fly to 7 bits, and the product
runs on integers (Gemmlowp scheme, arXiv 1712.05877, eq. 1-7, with a zero point of 0). Processors without VNNI add two
products in 16 bits: 2 * 127 * 128 fits, with a query of 8 bits they would saturate.

Asymmetric rows have a zero point each, 1 byte more: `scale_i = (max(v_i, 0) - min(v_i, 0)) / 255`, `z_i = round(-128 -
min(v_i, 0) / scale_i)`, `q_i = round(v_i / scale_i) + z_i`. A score is `scale_i (q_i . x - z_i sum(x))`; the integer product
takes the zero points and works out the sum once a query.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from recfit.tables import _scan
from recfit.types import FloatArray, IntArray

Codes = npt.NDArray[np.int8]


@dataclass(frozen=True)
class Config:
    """The steps of an `asymmetric` row go from its least number to its largest, 0 among them."""

    dim: int
    asymmetric: bool = False


def write(vectors: FloatArray, directory: Path, config: Config) -> None:
    arrays = _asymmetric(vectors) if config.asymmetric else _symmetric(vectors)
    constants = {"step": np.float32(1 / 63), "middle": np.uint8(64), "smallest": np.float32(1e-30)}
    _scan.write_graph(directory, _nodes("zeros" in arrays), config.dim, arrays, constants)


def _symmetric(vectors: FloatArray) -> dict[str, Any]:
    peaks = np.abs(vectors).max(axis=1)
    scales = np.where(peaks > 0, peaks / 127, 1.0).astype(np.float32)
    rows = np.rint(vectors / scales[:, None]).clip(-127, 127).astype(np.int8)
    return {"rows": rows, "scales": scales}


def _asymmetric(vectors: FloatArray) -> dict[str, Any]:
    low, high = vectors.min(axis=1).clip(max=0), vectors.max(axis=1).clip(min=0)
    scales = np.where(high > low, (high - low) / 255, 1.0).astype(np.float32)
    zeros = np.rint(-128 - low / scales)
    rows = (np.rint(vectors / scales[:, None]) + zeros[:, None]).clip(-128, 127).astype(np.int8)
    return {"rows": rows, "scales": scales, "zeros": zeros.astype(np.int8)}


def _nodes(asymmetric: bool) -> Sequence[Any]:
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
        helper.make_node("MatMulInteger", ["q", "columns", "middle", *(["zeros"] if asymmetric else [])], ["sums"]),
        helper.make_node("Cast", ["sums"], ["units"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["units", "scales"], ["unit_scores"]),
        helper.make_node("Mul", ["peak", "step"], ["length"]),
        helper.make_node("Mul", ["unit_scores", "length"], ["scores"]),
    ]


def row_nodes(items: str, rows: str, config: Config) -> list[Any]:
    from onnx import TensorProto, helper, numpy_helper

    last = numpy_helper.from_array(np.array([-1]))
    above = [
        helper.make_node("Gather", ["zeros", items], ["row.zero"]),
        helper.make_node("Cast", ["row.zero"], ["row.zero.unit"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["row.zero.unit", "row.last"], ["row.zeros"]),
        helper.make_node("Sub", ["row.units", "row.zeros"], ["row.above"]),
    ]
    return [
        helper.make_node("Gather", ["rows", items], ["row.codes"]),
        helper.make_node("Cast", ["row.codes"], ["row.units"], to=TensorProto.FLOAT),
        helper.make_node("Gather", ["scales", items], ["row.scale"]),
        helper.make_node("Constant", [], ["row.last"], value=last),
        helper.make_node("Unsqueeze", ["row.scale", "row.last"], ["row.scales"]),
        *(above if config.asymmetric else []),
        helper.make_node("Mul", ["row.above" if config.asymmetric else "row.units", "row.scales"], [rows]),
    ]


def open_table(directory: Path, config: Config, threads: int) -> Int8:
    return Int8(directory, config, threads)


class Int8:
    def __init__(self, directory: Path, config: Config, threads: int) -> None:
        self._rows = _scan.open_array(directory, "rows", np.int8, config.dim)
        self._scales: FloatArray = _scan.open_array(directory, "scales", np.float32)
        self._zeros = _scan.open_array(directory, "zeros", np.int8) if config.asymmetric else None
        self.scores = _scan.Scan(directory, threads)

    def rows(self, items: IntArray) -> FloatArray:
        zeros = None if self._zeros is None else self._zeros.take(items)
        return _widened(self._rows.take(items, axis=0), self._scales.take(items), zeros)

    def matrix(self) -> FloatArray:
        return _widened(self._rows, self._scales, self._zeros)

    def rescore(self, queries: FloatArray, items: IntArray) -> FloatArray:
        return _scan.dot(self.rows(items), queries)


def _widened(codes: Codes, scales: FloatArray, zeros: Codes | None) -> FloatArray:
    """`scale * (code - zero point)`: int8 [..., d], [...], [...] -> float32 [..., d]."""
    units = codes if zeros is None else np.subtract(codes, zeros[..., None], dtype=np.float32)
    rows: FloatArray = units * scales[..., None]
    return rows

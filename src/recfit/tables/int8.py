"""Rows as int8 with one float scale a row (symmetric): 1 byte a number + 4 bytes a row.

`scale_i = max|v_i| / 127`, `q_i = round(v_i / scale_i)`; the query is quantized to uint8 on the fly and the
product runs on integers (Gemmlowp scheme, arXiv 1712.05877, eq. 1-7, with a zero point of 0 for the rows).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from recfit.tables import _scan
from recfit.types import FloatArray, IntArray

SCALES = "scales.npy"


@dataclass(frozen=True)
class Config:
    dim: int


def write(vectors: FloatArray, directory: Path, config: Config) -> None:
    from onnx import helper, numpy_helper

    scales = np.maximum(np.abs(vectors).max(axis=1), np.finfo(np.float32).tiny) / 127
    rows = np.clip(np.rint(vectors / scales[:, None]), -127, 127).astype(np.int8)
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["query"], ["q", "q_scale", "q_zero"]),
        helper.make_node(
            "QGemm",
            ["q", "q_scale", "q_zero", "rows", "scales", "zeros"],
            ["scores"],
            domain="com.microsoft",
            transB=1,
        ),
    ]
    extra = [
        numpy_helper.from_array(scales.astype(np.float32), "scales"),
        numpy_helper.from_array(np.zeros(len(rows), np.int8), "zeros"),
    ]
    _scan.write_graph(directory, nodes, rows, extra)
    np.save(directory / SCALES, scales.astype(np.float32))


def open_table(directory: Path, config: Config, threads: int) -> Int8:
    return Int8(directory, config, threads)


class Int8:
    def __init__(self, directory: Path, config: Config, threads: int) -> None:
        self._rows = _scan.open_rows(directory, np.int8, config.dim)
        self._scales: FloatArray = np.load(directory / SCALES, mmap_mode="r")
        self.scores = _scan.Scan(directory, threads)

    def rows(self, items: IntArray) -> FloatArray:
        return self._rows[items] * self._scales[items][..., None]

    def rescore(self, queries: FloatArray, items: IntArray) -> FloatArray:
        return _scan.dot(self.rows(items), queries)

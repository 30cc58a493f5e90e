"""Rows as they were trained: 4 bytes a number, exact scores."""

from __future__ import annotations

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
    from onnx import helper

    gemm = helper.make_node("Gemm", ["query", "rows"], ["scores"], transB=1)
    _scan.write_graph(directory, [gemm], config.dim, {"rows": np.ascontiguousarray(vectors, dtype=np.float32)})


def row_nodes(items: str, rows: str, config: Config) -> list[Any]:
    from onnx import helper

    return [helper.make_node("Gather", ["rows", items], [rows])]


def open_table(directory: Path, config: Config, threads: int) -> Float32:
    return Float32(directory, config, threads)


class Float32:
    def __init__(self, directory: Path, config: Config, threads: int) -> None:
        self._rows = _scan.open_array(directory, "rows", np.float32, config.dim)
        self.scores = _scan.Scan(directory, threads)

    def rows(self, items: IntArray) -> FloatArray:
        return self._rows.take(items, axis=0)

    def matrix(self) -> FloatArray:
        return self._rows

    def rescore(self, queries: FloatArray, items: IntArray) -> FloatArray:
        return _scan.dot(self.rows(items), queries)

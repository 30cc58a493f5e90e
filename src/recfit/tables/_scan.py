"""An ONNX Runtime session that scores every row of a matrix kept beside the graph as raw bytes.

The matrix lives once on disk, row by row, so that single rows can be read through a memory map too.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from recfit.types import FloatArray

ROWS = "rows.bin"
GRAPH = "scan.onnx"


def write_graph(directory: Path, nodes: Sequence[Any], rows: npt.NDArray[Any], extra: Sequence[Any] = ()) -> None:
    """Store `rows` [n, d] and the graph `query [B, d] -> scores [B, n]` whose initializer `rows` points at them."""
    from onnx import TensorProto, helper

    directory.mkdir(parents=True, exist_ok=True)
    rows.tofile(directory / ROWS)
    matrix = TensorProto(name="rows", dims=rows.shape, data_type=helper.np_dtype_to_tensor_dtype(rows.dtype))
    matrix.data_location = TensorProto.EXTERNAL
    matrix.external_data.add(key="location", value=ROWS)
    graph = helper.make_graph(
        list(nodes),
        "scan",
        [helper.make_tensor_value_info("query", TensorProto.FLOAT, ["batch", rows.shape[1]])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", rows.shape[0]])],
        [matrix, *extra],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    (directory / GRAPH).write_bytes(model.SerializeToString())


class Scan:
    """Runs the graph of `write_graph`; ONNX Runtime comes in with the first call."""

    def __init__(self, directory: Path, threads: int) -> None:
        self._directory, self._threads = directory, threads

    @cached_property
    def _session(self) -> Any:
        from recfit.runtimes import ort

        return ort.session(self._directory / GRAPH, threads=self._threads)

    def __call__(self, queries: FloatArray) -> FloatArray:
        scores: FloatArray = self._session.run(None, {"query": queries})[0]
        return scores


def open_rows(directory: Path, dtype: npt.DTypeLike, dim: int) -> npt.NDArray[Any]:
    """The matrix as a read-only memory map [n, dim]."""
    # A plain array over the map: `np.memmap` itself makes every gather several times slower.
    return np.asarray(np.memmap(directory / ROWS, dtype=dtype, mode="r")).reshape(-1, dim)


def dot(rows: FloatArray, queries: FloatArray) -> FloatArray:
    """Scores of gathered rows [B, C, d] for queries [B, d]: float32 [B, C]."""
    scores: FloatArray = np.matmul(rows, queries[:, :, None])[:, :, 0]
    return scores

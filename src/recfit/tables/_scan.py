"""An ONNX Runtime session that scores every row of a matrix kept beside the graph as raw bytes.

Arrays of one entry an item live once on disk, so that single rows can be read through a memory map too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from recfit.types import FloatArray

GRAPH = "scan.onnx"


def write_graph(
    directory: Path,
    nodes: Sequence[Any],
    dim: int,
    arrays: Mapping[str, npt.NDArray[Any]],
    constants: Mapping[str, Any] | None = None,
) -> None:
    """Store the graph `query [B, dim] -> scores [B, n]`, whose initializers are `arrays` [n, ...], each a file of its
    own, and small `constants`."""
    from onnx import helper, numpy_helper

    directory.mkdir(parents=True, exist_ok=True)
    kept = [_kept(name, values, directory) for name, values in arrays.items()]
    count = len(next(iter(arrays.values())))
    graph = helper.make_graph(
        list(nodes),
        "scan",
        [helper.make_tensor_value_info("query", 1, ["batch", dim])],
        [helper.make_tensor_value_info("scores", 1, ["batch", count])],
        [*kept, *(numpy_helper.from_array(np.asarray(value), name) for name, value in (constants or {}).items())],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    (directory / GRAPH).write_bytes(model.SerializeToString())


def _kept(name: str, values: npt.NDArray[Any], directory: Path) -> Any:
    """An initializer whose numbers are in the file `name`.bin."""
    from onnx import TensorProto, helper

    values.tofile(directory / f"{name}.bin")
    tensor = TensorProto(name=name, dims=values.shape, data_type=helper.np_dtype_to_tensor_dtype(values.dtype))
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=f"{name}.bin")
    return tensor


class Scan:
    """Runs the graph of `write_graph`; ONNX Runtime comes in with the first call, with `settings` of `ort.session`."""

    def __init__(self, directory: Path, threads: int) -> None:
        self._directory, self._threads = directory, threads
        self.settings: Mapping[str, Any] = {}

    @cached_property
    def _session(self) -> Any:
        from recfit.runtimes import ort

        return ort.session(self._directory / GRAPH, self._threads, **self.settings)

    def __call__(self, queries: FloatArray) -> FloatArray:
        scores: FloatArray = self._session.run(None, {"query": queries})[0]
        return scores


def configure(table: object, settings: Mapping[str, Any]) -> None:
    """Give `settings` to every scan that `table` holds, before its first call."""
    for part in getattr(table, "__dict__", {}).values():
        if isinstance(part, Scan):
            part.settings = settings


def open_array(directory: Path, name: str, dtype: npt.DTypeLike, *shape: int) -> npt.NDArray[Any]:
    """One of the arrays as a read-only memory map [n, *shape]."""
    # A plain array over the map: `np.memmap` itself makes every gather several times slower.
    return np.asarray(np.memmap(directory / f"{name}.bin", dtype=dtype, mode="r")).reshape(-1, *shape)


def dot(rows: FloatArray, queries: FloatArray) -> FloatArray:
    """Scores of gathered rows [B, C, d] for queries [B, d]: float32 [B, C]."""
    scores: FloatArray = np.matmul(rows, queries[:, :, None])[:, :, 0]
    return scores

"""Constants of a graph that hold many zeros are stored as their other numbers and one bit for every place.

The file stays plain ONNX: a few nodes put the numbers back, and ONNX Runtime runs them once, when it opens the graph and
folds what is constant. (ONNX's own sparse constants take 8 bytes for every place that is not zero: more than the zeros of
float32 up to two in three.)
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

NODES = 1000  # bytes of the nodes that put a constant together
GAIN = 0.9  # the share of its bytes below which a constant is packed


def pack(path: Path) -> None:
    """Rewrite the graph at `path` where that makes it smaller. Needs `onnx`."""
    import onnx
    from onnx import numpy_helper

    model = onnx.load(path)
    graph = model.graph
    dense = {part.name: numpy_helper.to_array(part) for part in graph.initializer}
    chosen = {name: values for name, values in dense.items() if _packed_bytes(values) < GAIN * values.nbytes}
    if not chosen:
        return
    constants = [part for part in graph.initializer if part.name not in chosen]
    constants += [numpy_helper.from_array(values, name) for name, values in SHARED.items()]
    nodes = []
    for name, values in chosen.items():
        steps, parts = _packed(name, values)
        nodes += steps
        constants += parts
    nodes += graph.node
    for field, parts in (("initializer", constants), ("node", nodes)):
        graph.ClearField(field)
        getattr(graph, field).extend(parts)
    path.write_bytes(model.SerializeToString())


def _packed_bytes(values: npt.NDArray[Any]) -> int:
    return values.size // 8 + int(np.count_nonzero(values)) * values.itemsize + NODES


SHARED: dict[str, npt.NDArray[Any]] = {
    "sparse.shifts": np.arange(8, dtype=np.uint8),
    "sparse.two": np.array(2, np.uint8),
    "sparse.axis": np.array(0, np.int64),
    "sparse.first": np.array([0], np.int64),
    "sparse.flat": np.array([-1], np.int64),
}


def _packed(name: str, values: npt.NDArray[Any]) -> tuple[list[Any], list[Any]]:
    """Nodes that make `name`, and their constants: place i holds number `bits[0] + ... + bits[i]` if its bit is set, else 0."""
    from onnx import TensorProto, helper, numpy_helper

    there = values.ravel() != 0
    own = {
        "bits": np.packbits(there, bitorder="little")[:, None],
        "numbers": np.concatenate((np.zeros(1, values.dtype), values.ravel()[there])),
        "size": np.array([values.size], np.int64),
        "shape": np.array(values.shape, np.int64),
    }

    def made(step: str, takes: str, gives: str, **settings: Any) -> Any:
        names = [f"sparse.{part}" if f"sparse.{part}" in SHARED else f"{name}.{part}" for part in takes.split()]
        return helper.make_node(step, names, [f"{name}.{gives}" if gives else name], **settings)

    nodes = [
        made("BitShift", "bits shifts", "shifted", direction="RIGHT"),
        made("Mod", "shifted two", "bit"),
        made("Cast", "bit", "wide", to=TensorProto.INT32),
        made("Reshape", "wide flat", "all"),
        made("Slice", "all first size", "there"),
        made("CumSum", "there axis", "count"),
        made("Mul", "count there", "place"),
        made("Gather", "numbers place", "filled"),
        made("Reshape", "filled shape", ""),
    ]
    return nodes, [numpy_helper.from_array(part, f"{name}.{key}") for key, part in own.items()]

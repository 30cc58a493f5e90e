"""Constants of a graph that hold many zeros are stored as their other numbers and one bit for every place.

The file stays plain ONNX: a few nodes put the numbers back, and ONNX Runtime runs these once, when it opens the graph and
folds what is constant. (ONNX's own sparse constants take 8 bytes for every place that is not zero: of float32, up to two
zeros in three, more than the zeros did.)
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

STREAM = 2000  # bytes of the nodes that take constants apart
NODES = 200  # bytes that each constant costs beside its numbers
GAIN = 0.9  # the share of its bytes below which a constant is packed
WEIGHTS = ("float32", "int8", "uint8")  # what weights are stored as; other constants are sizes and places
COUNTED: Mapping[str, Array] = {
    "shifts": np.arange(8, dtype=np.uint8),
    "two": np.array(2, np.uint8),
    "axis": np.array(0, np.int64),
    "first": np.array([0], np.int64),
    "flat": np.array([-1], np.int64),
}


def pack(path: Path) -> None:
    """Rewrite the graph at `path` where that makes it smaller. Needs `onnx`."""
    import onnx
    from onnx import numpy_helper

    model = onnx.load(path)
    graph = model.graph
    dense = {part.name: numpy_helper.to_array(part) for part in graph.initializer}
    chosen = {name: values for name, values in dense.items() if _pays(values)}
    if sum(values.nbytes - _packed_bytes(values) for values in chosen.values()) < STREAM:
        return
    nodes, constants = [], [part for part in graph.initializer if part.name not in chosen]
    for kind in sorted({values.dtype.name for values in chosen.values()}):
        alike = {name: values for name, values in chosen.items() if values.dtype.name == kind}
        steps, needed = _stream(f"sparse.{kind}", alike)
        nodes += steps
        constants += [numpy_helper.from_array(values, name) for name, values in needed.items()]
    nodes += graph.node
    for field, parts in (("initializer", constants), ("node", nodes)):
        graph.ClearField(field)
        getattr(graph, field).extend(parts)
    path.write_bytes(model.SerializeToString())


def _pays(values: Array) -> bool:
    return values.dtype.name in WEIGHTS and _packed_bytes(values) < GAIN * values.nbytes


def _packed_bytes(values: Array) -> int:
    return values.size // 8 + int(np.count_nonzero(values)) * values.itemsize + NODES


def _stream(stream: str, chosen: Mapping[str, Array]) -> tuple[list[Any], dict[str, Array]]:
    """Nodes that make the constants of one type, which lie one after the other in `stream`, and what these nodes need.

    Place i holds number `bit 0 + ... + bit i` if its bit is set, else number 0, which is zero.
    """
    from onnx import TensorProto, helper

    flat = np.concatenate([values.ravel() for values in chosen.values()])
    constants: dict[str, Array] = {
        **COUNTED,
        "bits": np.packbits(flat != 0, bitorder="little")[:, None],
        "numbers": np.concatenate((np.zeros(1, flat.dtype), flat[flat != 0])),
        "size": np.array([flat.size], np.int64),
        "sizes": np.array([values.size for values in chosen.values()], np.int64),
    }

    def made(step: str, takes: str, gives: str, **settings: Any) -> Any:
        return helper.make_node(step, [f"{stream}.{part}" for part in takes.split()], [f"{stream}.{gives}"], **settings)

    nodes = [
        made("BitShift", "bits shifts", "shifted", direction="RIGHT"),
        made("Mod", "shifted two", "bit"),
        made("Cast", "bit", "wide", to=TensorProto.INT32),
        made("Reshape", "wide flat", "whole"),
        made("Slice", "whole first size", "there"),
        made("CumSum", "there axis", "count"),
        made("Mul", "count there", "place"),
        made("Gather", "numbers place", "all"),
        helper.make_node("Split", [f"{stream}.all", f"{stream}.sizes"], [f"{name}.flat" for name in chosen], axis=0),
        *(helper.make_node("Reshape", [f"{name}.flat", f"{name}.shape"], [name]) for name in chosen),
    ]
    shapes = {f"{name}.shape": np.array(values.shape, np.int64) for name, values in chosen.items()}
    return nodes, {f"{stream}.{name}": values for name, values in constants.items()} | shapes

"""Where a graph keeps its weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from recfit.options import check_choice
from recfit.types import FloatArray, Unsupported

# Which input of a node holds its weights.
PLACES = {"MatMul": 1, "Gemm": 1, "Gather": 0}


@dataclass(frozen=True)
class Layer:
    """The node `name` and its weights: the initializer `weight` of the given shape.

    `channels` is the axis that counts what the layer gives: columns of a product, rows of a look-up. A `transposed`
    product has its weights as [out, in].
    """

    name: str
    op: str
    weight: str
    shape: tuple[int, ...]
    transposed: bool = False

    @property
    def channels(self) -> int:
        return 0 if self.op == "Gather" or self.transposed else len(self.shape) - 1

    @property
    def size(self) -> int:
        """How many numbers."""
        count = 1
        for length in self.shape:
            count *= length
        return count


def layers(graph: Any) -> list[Layer]:
    """Every layer of `graph`, in the order in which they run."""
    from onnx import TensorProto

    constants = {part.name: tuple(part.dims) for part in graph.initializer if part.data_type == TensorProto.FLOAT}
    found = []
    for node in graph.node:
        place = PLACES.get(node.op_type)
        if place is not None and len(shape := constants.get(node.input[place], ())) >= 2:
            transposed = any(part.name == "transB" and part.i for part in node.attribute)
            found.append(Layer(node.name, node.op_type, node.input[place], shape, transposed))
    return found


def chosen(graph: Any, skip: Sequence[str], fits: Callable[[Layer], bool] = lambda layer: True) -> list[Layer]:
    """The layers that are to be quantized: those that fit and are not skipped."""
    every = layers(graph)
    for name in skip:
        check_choice("graph.skip", name, tuple(layer.name for layer in every))
    left = [layer for layer in every if layer.name not in skip and fits(layer)]
    if not left:
        raise Unsupported("the graph has no weights left to store in fewer bits; leave it float32")
    return left


def initializer(graph: Any, name: str) -> Any:
    """The constant `name` of `graph` as an array."""
    from onnx import numpy_helper

    for part in graph.initializer:
        if part.name == name:
            return numpy_helper.to_array(part)
    raise KeyError(name)


def add_constant(graph: Any, name: str, values: Any) -> str:
    """Give `graph` a constant, unless it has it already; returns its name."""
    from onnx import numpy_helper

    if not any(part.name == name for part in graph.initializer):
        graph.initializer.append(numpy_helper.from_array(values, name))
    return name


def rewire(graph: Any, nodes: Sequence[Any]) -> None:
    """`graph` with other nodes, without the constants that none of them reads."""
    read = {name for node in nodes for name in node.input}
    kept = [part for part in graph.initializer if part.name in read]
    nodes = list(nodes)
    del graph.initializer[:], graph.node[:]
    graph.initializer.extend(kept)
    graph.node.extend(nodes)


def matrix(layer: Layer, weights: FloatArray) -> FloatArray:
    """The weights of a product as [in, out]."""
    return weights.T if layer.transposed else weights

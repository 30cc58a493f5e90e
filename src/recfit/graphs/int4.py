"""Weights as 4-bit numbers with one scale for every `block` of a column, products with float32 activations (weight only):
the scheme of the `int4` table, in ONNX Runtime's `MatMulNBits`.

Looked-up rows stay float32. Stacks of matrices, which ONNX Runtime multiplies in float32 only, are 8 bits on disk (`_stacks`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from recfit.graphs import _stacks
from recfit.graphs._feed import Feed
from recfit.graphs._layers import Layer, add_constant, chosen, initializer, matrix, rewire
from recfit.tables import int4
from recfit.types import FloatArray


@dataclass(frozen=True)
class Config:
    """`block` numbers of a column share a scale."""

    block: int = 32
    skip: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        int4.Config(1, self.block)


def convert(path: Path, config: Config, feed: Feed) -> None:
    import onnx
    from onnx import helper

    model = onnx.load(path)
    wanted = chosen(model.graph, config.skip, lambda layer: layer.op != "Gather")
    _stacks.store(model.graph, [layer for layer in wanted if _stacks.is_stack(layer)])
    layers = {layer.name: layer for layer in wanted if not _stacks.is_stack(layer)}
    nodes: list[Any] = []
    for node in model.graph.node:
        layer = layers.get(node.name)
        nodes += [node] if layer is None else _narrowed(model.graph, node, layer, config.block)
    rewire(model.graph, nodes)
    if not any(part.domain == "com.microsoft" for part in model.opset_import):
        model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    onnx.save(model, path)


def _narrowed(graph: Any, node: Any, layer: Layer, block: int) -> list[Any]:
    """The product of `layer` in 4 bits, and its bias if it has one."""
    from onnx import helper

    columns = np.ascontiguousarray(matrix(layer, initializer(graph, layer.weight)).T)
    config = int4.Config(columns.shape[1], block)
    codes, scales = int4.packed(columns, config)
    names = [
        add_constant(graph, f"{layer.weight}.{part}", values)
        for part, values in (("codes", codes), ("scales", scales.ravel()))
    ]
    biased = len(node.input) == 3
    product = f"{node.output[0]}.product" if biased else node.output[0]
    settings: dict[str, Any] = {"K": config.dim, "N": len(columns), "bits": 4, "block_size": block, "accuracy_level": 1}
    narrow = helper.make_node(
        "MatMulNBits", [node.input[0], *names], [product], node.name, domain="com.microsoft", **settings
    )
    return [narrow, *([helper.make_node("Add", [product, node.input[2]], [node.output[0]])] if biased else [])]


def weights(graph: Any, layer: Layer) -> FloatArray:
    if _stacks.is_stack(layer):
        return _stacks.weights(graph, layer)
    codes, scales = (initializer(graph, f"{layer.weight}.{part}") for part in ("codes", "scales"))
    taken, given = matrix(layer, np.empty(layer.shape, np.float32)).shape
    config = int4.Config(taken, 2 * codes.shape[-1])
    columns = int4.widened(codes.reshape(given, -1), scales.reshape(given, -1), config)
    return columns if layer.transposed else columns.T

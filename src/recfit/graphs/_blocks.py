"""Products with `MatMulNBits` of ONNX Runtime: columns in few bits, with a scale for every block of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from recfit.graphs import _stacks
from recfit.graphs._layers import Layer, add_constant, chosen, initializer, matrix, rewire
from recfit.types import FloatArray

FLOAT, INT8 = 1, 4
"""What the products are computed in: `accuracy_level` of the operator."""

Packed = Callable[[FloatArray], tuple[Any, FloatArray]]
"""Columns [out, in] -> codes uint8 [out, blocks, bytes], scales [out, blocks]."""


def convert(path: Path, skip: Sequence[str], packed: Packed, *, bits: int, block: int, level: int) -> None:
    """Rewrite the products of the graph at `path`; looked-up rows stay as they are, stacks become `_stacks`."""
    import onnx
    from onnx import helper

    model = onnx.load(path)
    wanted = chosen(model.graph, skip, lambda layer: layer.op != "Gather")
    _stacks.store(model.graph, [layer for layer in wanted if _stacks.is_stack(layer)])
    layers = {layer.name: layer for layer in wanted if not _stacks.is_stack(layer)}
    settings = {"bits": bits, "block_size": block, "accuracy_level": level}
    nodes: list[Any] = []
    for node in model.graph.node:
        layer = layers.get(node.name)
        nodes += [node] if layer is None else _narrowed(model.graph, node, layer, packed, settings)
    rewire(model.graph, nodes)
    if not any(part.domain == "com.microsoft" for part in model.opset_import):
        model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    onnx.save(model, path)


def _narrowed(graph: Any, node: Any, layer: Layer, packed: Packed, settings: dict[str, Any]) -> list[Any]:
    """The product of `layer` in few bits, and its bias if it has one."""
    from onnx import helper

    columns = columns_of(graph, layer)
    codes, scales = packed(columns)
    names = [
        add_constant(graph, f"{layer.weight}.{part}", values)
        for part, values in (("codes", codes), ("scales", scales.ravel()))
    ]
    biased = len(node.input) == 3
    product = f"{node.output[0]}.product" if biased else node.output[0]
    sizes = {"K": columns.shape[1], "N": len(columns)}
    narrow = helper.make_node(
        "MatMulNBits", [node.input[0], *names], [product], node.name, domain="com.microsoft", **sizes, **settings
    )
    return [narrow, *([helper.make_node("Add", [product, node.input[2]], [node.output[0]])] if biased else [])]


def columns_of(graph: Any, layer: Layer) -> FloatArray:
    """The weights of a product as [out, in], one row after the other in memory."""
    columns: FloatArray = matrix(layer, initializer(graph, layer.weight)).T.copy()
    return columns


def weights(graph: Any, layer: Layer, widened: Callable[[Any, FloatArray, int], FloatArray]) -> FloatArray:
    """What the codes of a layer stand for; `widened(codes, scales, in)` gives the columns [out, in]."""
    if _stacks.is_stack(layer):
        return _stacks.weights(graph, layer)
    codes, scales = (initializer(graph, f"{layer.weight}.{part}") for part in ("codes", "scales"))
    given, taken = layer.shape if layer.transposed else layer.shape[::-1]
    columns = widened(codes, scales.reshape(given, -1), taken)
    return columns if layer.transposed else columns.T

"""Stacks of matrices, one for each head, in 8 bits: `w ~ s q` with `s = max|w| / 127` of each channel of each matrix.

ONNX Runtime has no integer product of a stack. It widens the codes once, when it opens the graph, and runs float32 from
then on: this saves their bytes on disk and nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from recfit.graphs._layers import Layer, add_constant, initializer, rewire
from recfit.types import FloatArray

STEPS = 127


def is_stack(layer: Layer) -> bool:
    return layer.op != "Gather" and len(layer.shape) > 2


def store(graph: Any, layers: Sequence[Layer]) -> None:
    """Put codes, scales and the nodes that widen them in the place of the weights of `layers`."""
    from onnx import TensorProto, helper

    widening: list[Any] = []
    wide = {layer.weight: f"{layer.weight}.wide" for layer in layers}
    for name, result in wide.items():
        values = initializer(graph, name)
        scales = np.maximum(np.abs(values).max(axis=-2, keepdims=True), 1e-30) / STEPS
        codes = add_constant(graph, f"{name}.codes", np.rint(values / scales).astype(np.int8))
        scale = add_constant(graph, f"{name}.scales", scales.astype(np.float32))
        widening.append(helper.make_node("Cast", [codes], [f"{name}.units"], to=TensorProto.FLOAT))
        widening.append(helper.make_node("Mul", [f"{name}.units", scale], [result]))
    stacked = {layer.name for layer in layers}
    for node in graph.node:
        if node.name in stacked:
            node.input[:] = [wide.get(name, name) for name in node.input]
    rewire(graph, [*widening, *graph.node])


def store_at(path: Path, layers: Sequence[Layer]) -> list[Layer]:
    """`store` those of `layers` that are stacks in the graph at `path`; returns the others."""
    import onnx

    if stacks := [layer for layer in layers if is_stack(layer)]:
        model = onnx.load(path)
        store(model.graph, stacks)
        onnx.save(model, path)
    return [layer for layer in layers if not is_stack(layer)]


def weights(graph: Any, layer: Layer) -> FloatArray:
    """What the codes of a stored layer stand for."""
    codes, scales = (initializer(graph, f"{layer.weight}.{part}") for part in ("codes", "scales"))
    widened: FloatArray = codes * scales
    return widened

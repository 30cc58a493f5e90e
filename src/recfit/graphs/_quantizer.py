"""What the formats that ONNX Runtime's own quantizer makes have in common."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from recfit.graphs._layers import Layer, initializer
from recfit.types import FloatArray

GRANULARITIES = ("channel", "tensor")
RANGES = ("symmetric", "asymmetric")


def named(layers: Sequence[Layer]) -> list[str]:
    """The nodes of `layers`, also by the name of the product that the quantizer puts in the place of a `Gemm`."""
    return [name for layer in layers for name in (layer.name, f"{layer.name}_MatMul")]


def stored(graph: Any, layer: Layer) -> FloatArray:
    """`scale * (code - zero point)` of the codes that a quantized graph has for a layer, by channel or all alike."""
    parts = (initializer(graph, f"{layer.weight}_{part}") for part in ("quantized", "scale", "zero_point"))
    codes, scales, zeros = (np.asarray(part, np.float32) for part in parts)
    along = [1] * codes.ndim
    along[layer.channels] = -1
    widened: FloatArray = (codes - zeros.reshape(along)) * scales.reshape(along)
    return widened


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """The quantizer advises a pre-processing step that does nothing for these graphs, and prints what it is at."""
    log = logging.getLogger()
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        log.setLevel(level)

"""Weights as 4-bit numbers with one scale for every `block` of a column, products with float32 activations (weight only):
the scheme of the `int4` table, in ONNX Runtime's `MatMulNBits`.

Looked-up rows stay float32. Stacks of matrices, which ONNX Runtime multiplies in float32 only, are 8 bits on disk
(`_stacks`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recfit.graphs import _blocks
from recfit.graphs._feed import Feed
from recfit.graphs._layers import Layer
from recfit.tables import int4
from recfit.types import FloatArray

FOLDED = False


@dataclass(frozen=True)
class Config:
    """`block` numbers of a column share a scale."""

    block: int = 32
    skip: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        int4.Config(1, self.block)


def convert(path: Path, config: Config, feed: Feed) -> None:
    def packed(columns: FloatArray) -> tuple[Any, FloatArray]:
        return int4.packed(columns, int4.Config(columns.shape[1], config.block))

    _blocks.convert(path, config.skip, packed, bits=4, block=config.block, level=_blocks.FLOAT)


def weights(graph: Any, layer: Layer) -> FloatArray:
    def widened(codes: Any, scales: FloatArray, taken: int) -> FloatArray:
        return int4.widened(codes.reshape(len(codes), -1), scales, int4.Config(taken, 2 * codes.shape[-1]))

    return _blocks.weights(graph, layer, widened)

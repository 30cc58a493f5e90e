"""Weights as 8-bit numbers with one scale for every `block` of a column, and activations that are quantized in the same
blocks, each row for itself: `MatMulNBits` of ONNX Runtime with products of integers.

Blocks of 32 round half as much as a scale for a whole channel and a whole activation (`int8`), and no request depends on
the others of its batch. One row at a time, as the newest position of a history passes the last layer of a Transformer, it
is as fast as `int8`; many rows at a time, as the positions of deeper models, it is several times slower.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from recfit.graphs import _blocks
from recfit.graphs._feed import Feed
from recfit.graphs._layers import Layer
from recfit.tables import int4
from recfit.types import FloatArray

MIDDLE, STEPS = 128, 127
FOLDED = False


@dataclass(frozen=True)
class Config:
    """`block` numbers of a column share a scale."""

    block: int = 32
    skip: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        int4.Config(1, self.block)  # the operator's blocks


def convert(path: Path, config: Config, feed: Feed) -> None:
    def packed(columns: FloatArray) -> tuple[Any, FloatArray]:
        return _packed(columns, config.block)

    _blocks.convert(path, config.skip, packed, bits=8, block=config.block, level=_blocks.INT8)


def _packed(columns: FloatArray, block: int) -> tuple[Any, FloatArray]:
    """Codes uint8 [out, blocks, block] around `MIDDLE`, the last block filled up, and scales [out, blocks]."""
    padded = np.pad(columns, ((0, 0), (0, -columns.shape[1] % block)))
    parts = padded.reshape(len(columns), -1, block)
    scales = np.maximum(np.abs(parts).max(axis=2), 1e-30) / STEPS
    codes = np.rint(parts / scales[:, :, None]) + MIDDLE
    return codes.astype(np.uint8), scales.astype(np.float32)


def weights(graph: Any, layer: Layer) -> FloatArray:
    def widened(codes: Any, scales: FloatArray, taken: int) -> FloatArray:
        columns = (codes.astype(np.float32) - MIDDLE) * scales[:, :, None]
        whole: FloatArray = columns.reshape(len(codes), -1)[:, :taken]
        return whole

    return _blocks.weights(graph, layer, widened)

"""Rows as 4-bit numbers with one float scale for every `block` of a row: (1/2 + 4/block) bytes a number.

`scale = v / -8` for the number v of the block that is largest in size, `q_i = round(v_i / scale)` in -8 to 7 (the Q4_0
scheme of llama.cpp; row-wise 4 bits keep a production model's quality: arXiv 1911.02079). ONNX Runtime's `MatMulNBits`
multiplies the stored nibbles with float queries.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from recfit.tables import _scan
from recfit.types import ConfigError, FloatArray, IntArray

MIDDLE = 8
BLOCKS = (16, 32, 64, 128, 256)  # what MatMulNBits takes


@dataclass(frozen=True)
class Config:
    """`block` numbers of a row share a scale."""

    dim: int
    block: int = 32

    def __post_init__(self) -> None:
        if self.block not in BLOCKS:
            raise ConfigError(f"int4.block = {self.block}; allowed: {', '.join(map(str, BLOCKS))}")

    @property
    def blocks(self) -> int:
        return -(-self.dim // self.block)


def write(vectors: FloatArray, directory: Path, config: Config) -> None:
    from onnx import helper

    codes, scales = packed(vectors, config)
    settings: dict[str, Any] = {
        "K": config.dim,
        "N": len(vectors),
        "bits": 4,
        "block_size": config.block,
        "accuracy_level": 1,
    }
    node = helper.make_node("MatMulNBits", ["query", "rows", "scales"], ["scores"], domain="com.microsoft", **settings)
    _scan.write_graph(directory, [node], config.dim, {"rows": codes, "scales": scales}, {"row.dim": [config.dim]})


def row_nodes(items: str, rows: str) -> list[Any]:
    """As `widened`: two numbers of each byte, times their block's scale, without what fills the last block."""
    from onnx import TensorProto, helper, numpy_helper

    def constant(name: str, value: Any) -> Any:
        return helper.make_node("Constant", [], [name], value=numpy_helper.from_array(value))

    return [
        constant("row.radix", np.int32(16)),
        constant("row.middle", np.float32(MIDDLE)),
        constant("row.last", np.array([-1])),
        constant("row.pair", np.array([-1, -2])),
        constant("row.first", np.array([0])),
        helper.make_node("Gather", ["rows", items], ["row.bytes"]),
        helper.make_node("Cast", ["row.bytes"], ["row.codes"], to=TensorProto.INT32),
        helper.make_node("Mod", ["row.codes", "row.radix"], ["row.low"]),
        helper.make_node("Div", ["row.codes", "row.radix"], ["row.high"]),
        helper.make_node("Unsqueeze", ["row.low", "row.last"], ["row.even"]),
        helper.make_node("Unsqueeze", ["row.high", "row.last"], ["row.odd"]),
        helper.make_node("Concat", ["row.even", "row.odd"], ["row.pairs"], axis=-1),
        helper.make_node("Cast", ["row.pairs"], ["row.digits"], to=TensorProto.FLOAT),
        helper.make_node("Sub", ["row.digits", "row.middle"], ["row.units"]),
        helper.make_node("Gather", ["scales", items], ["row.scale"]),
        helper.make_node("Unsqueeze", ["row.scale", "row.pair"], ["row.scales"]),
        helper.make_node("Mul", ["row.units", "row.scales"], ["row.blocks"]),
        helper.make_node("Shape", [items], ["row.shape"]),
        helper.make_node("Concat", ["row.shape", "row.last"], ["row.flat"], axis=0),
        helper.make_node("Reshape", ["row.blocks", "row.flat"], ["row.whole"]),
        helper.make_node("Slice", ["row.whole", "row.first", "row.dim", "row.last"], [rows]),
    ]


def packed(vectors: FloatArray, config: Config) -> tuple[npt.NDArray[np.uint8], FloatArray]:
    """Nibbles [n, blocks, block / 2] and scales [n, blocks] of `vectors` [n, dim]."""
    padded = np.zeros((len(vectors), config.blocks * config.block), np.float32)
    padded[:, : config.dim] = vectors
    parts = padded.reshape(len(vectors), config.blocks, config.block)
    largest = np.take_along_axis(parts, np.abs(parts).argmax(axis=2)[:, :, None], axis=2)
    scales = (largest / -MIDDLE).astype(np.float32)
    codes = np.rint(np.divide(parts, scales, out=np.zeros_like(parts), where=scales != 0)).clip(-8, 7) + MIDDLE
    nibbles = codes.astype(np.uint8)
    return (nibbles[:, :, 0::2] | (nibbles[:, :, 1::2] << 4)).astype(np.uint8), scales[:, :, 0]


def widened(codes: npt.NDArray[np.uint8], scales: FloatArray, config: Config) -> FloatArray:
    """The vectors that `packed` stored, of any leading shape: [..., blocks * block / 2], [..., blocks] -> [..., dim]."""
    pairs = np.stack((codes & 15, codes >> 4), axis=-1).astype(np.float32) - MIDDLE
    parts = pairs.reshape(*codes.shape[:-1], config.blocks, config.block) * scales[..., None]
    rows: FloatArray = parts.reshape(*codes.shape[:-1], -1)[..., : config.dim]
    return rows


def open_table(directory: Path, config: Config, threads: int) -> Int4:
    return Int4(directory, config, threads)


class Int4:
    def __init__(self, directory: Path, config: Config, threads: int) -> None:
        self._config = config
        self._packed: npt.NDArray[np.uint8] = _scan.open_array(
            directory, "rows", np.uint8, config.blocks * config.block // 2
        )
        self._scales: FloatArray = _scan.open_array(directory, "scales", np.float32, config.blocks)
        self.scores = _scan.Scan(directory, threads)

    def rows(self, items: IntArray) -> FloatArray:
        return widened(self._packed.take(items, axis=0), self._scales.take(items, axis=0), self._config)

    def matrix(self) -> FloatArray:
        return widened(self._packed, self._scales, self._config)

    def rescore(self, queries: FloatArray, items: IntArray) -> FloatArray:
        return _scan.dot(self.rows(items), queries)

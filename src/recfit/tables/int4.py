"""Rows as 4-bit numbers with one float scale for every `block` of a row: (1/2 + 4/block) bytes a number.

`scale = v / -8` for the number v of the block that is largest in size, `q_i = round(v_i / scale)` cut to -8 to 7, so that
what lies beyond 7.5 steps on the other side of 0 moves by more than half a step (the Q4_0 scheme of llama.cpp; row-wise 4
bits keep a production model's quality: arXiv 1911.02079). ONNX Runtime's `MatMulNBits` multiplies the stored nibbles with
float queries.

Asymmetric blocks have a zero point each, 4 bits more: `scale = (max(v, 0) - min(v, 0)) / 15`, `z = round(-min(v, 0) /
scale)`, `q_i = round(v_i / scale) + z` in 0 to 15. A block adds `scale (q . x - z sum(x))` to a score (Q4_1, with a whole
number for its minimum).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from recfit.tables import _scan
from recfit.types import ConfigError, FloatArray, IntArray

Nibbles = npt.NDArray[np.uint8]
MIDDLE, LARGEST = 8, 15
BLOCKS = (16, 32, 64, 128, 256)  # what MatMulNBits takes


@dataclass(frozen=True)
class Config:
    """`block` numbers of a row share a scale. The steps of an `asymmetric` block go from its least number to its largest, 0
    among them; otherwise eight lie on the side of its largest number and seven on the other."""

    dim: int
    block: int = 32
    asymmetric: bool = False

    def __post_init__(self) -> None:
        if self.block not in BLOCKS:
            raise ConfigError(f"int4.block = {self.block}; allowed: {', '.join(map(str, BLOCKS))}")

    @property
    def blocks(self) -> int:
        return -(-self.dim // self.block)


def write(vectors: FloatArray, directory: Path, config: Config) -> None:
    from onnx import helper

    arrays = _asymmetric(vectors, config) if config.asymmetric else _symmetric(vectors, config)
    settings: dict[str, Any] = {
        "K": config.dim,
        "N": len(vectors),
        "bits": 4,
        "block_size": config.block,
        "accuracy_level": 1,
    }
    node = helper.make_node("MatMulNBits", ["query", *arrays], ["scores"], domain="com.microsoft", **settings)
    _scan.write_graph(directory, [node], config.dim, arrays, {"row.dim": [config.dim]})


def row_nodes(items: str, rows: str, config: Config) -> list[Any]:
    """As `widened`: two numbers of each byte, times their block's scale, without what fills the last block."""
    from onnx import helper, numpy_helper

    def constant(name: str, value: Any) -> Any:
        return helper.make_node("Constant", [], [name], value=numpy_helper.from_array(value))

    flat = [
        helper.make_node("Shape", [items], ["row.shape"]),
        helper.make_node("Concat", ["row.shape", "row.last"], ["row.flat"], axis=0),
    ]
    zeros = [
        constant("row.zero.count", np.array([config.blocks])),
        helper.make_node("Gather", ["zeros", items], ["row.zero.bytes"]),
        *_digits("row.zero"),
        helper.make_node("Reshape", ["row.zero.digits", "row.flat"], ["row.zero.whole"]),
        helper.make_node("Slice", ["row.zero.whole", "row.first", "row.zero.count", "row.last"], ["row.zero"]),
        helper.make_node("Unsqueeze", ["row.zero", "row.pair"], ["row.zeros"]),
    ]
    return [
        constant("row.radix", np.int32(16)),
        constant("row.middle", np.float32(MIDDLE)),
        constant("row.last", np.array([-1])),
        constant("row.pair", np.array([-1, -2])),
        constant("row.first", np.array([0])),
        helper.make_node("Gather", ["rows", items], ["row.bytes"]),
        *_digits("row"),
        *([*flat, *zeros] if config.asymmetric else []),
        helper.make_node("Sub", ["row.digits", "row.zeros" if config.asymmetric else "row.middle"], ["row.units"]),
        helper.make_node("Gather", ["scales", items], ["row.scale"]),
        helper.make_node("Unsqueeze", ["row.scale", "row.pair"], ["row.scales"]),
        helper.make_node("Mul", ["row.units", "row.scales"], ["row.blocks"]),
        *([] if config.asymmetric else flat),
        helper.make_node("Reshape", ["row.blocks", "row.flat"], ["row.whole"]),
        helper.make_node("Slice", ["row.whole", "row.first", "row.dim", "row.last"], [rows]),
    ]


def _digits(name: str) -> list[Any]:
    """Of `name`.bytes [..., b] the nibbles `name`.digits, float32 [..., b, 2]."""
    from onnx import TensorProto, helper

    return [
        helper.make_node("Cast", [f"{name}.bytes"], [f"{name}.codes"], to=TensorProto.INT32),
        helper.make_node("Mod", [f"{name}.codes", "row.radix"], [f"{name}.low"]),
        helper.make_node("Div", [f"{name}.codes", "row.radix"], [f"{name}.high"]),
        helper.make_node("Unsqueeze", [f"{name}.low", "row.last"], [f"{name}.even"]),
        helper.make_node("Unsqueeze", [f"{name}.high", "row.last"], [f"{name}.odd"]),
        helper.make_node("Concat", [f"{name}.even", f"{name}.odd"], [f"{name}.pairs"], axis=-1),
        helper.make_node("Cast", [f"{name}.pairs"], [f"{name}.digits"], to=TensorProto.FLOAT),
    ]


def packed(vectors: FloatArray, config: Config) -> tuple[Nibbles, FloatArray]:
    """Nibbles [n, blocks, block / 2] and scales [n, blocks] of `vectors` [n, dim], 0 at `MIDDLE`."""
    parts = _blocks(vectors, config)
    largest = np.take_along_axis(parts, np.abs(parts).argmax(axis=2)[:, :, None], axis=2)
    scales = (largest / -MIDDLE).astype(np.float32)
    codes = np.rint(np.divide(parts, scales, out=np.zeros_like(parts), where=scales != 0)).clip(-8, 7) + MIDDLE
    return _bytes(codes.astype(np.uint8)), scales[:, :, 0]


def _symmetric(vectors: FloatArray, config: Config) -> dict[str, Any]:
    codes, scales = packed(vectors, config)
    return {"rows": codes, "scales": scales}


def _asymmetric(vectors: FloatArray, config: Config) -> dict[str, Any]:
    """As `_symmetric`, with the zero points of the blocks, two in a byte."""
    parts = _blocks(vectors, config)
    low, high = parts.min(axis=2).clip(max=0), parts.max(axis=2).clip(min=0)
    scales = np.where(high > low, (high - low) / LARGEST, 1.0).astype(np.float32)
    zeros = np.rint(-low / scales)
    codes = (np.rint(parts / scales[:, :, None]) + zeros[:, :, None]).clip(0, LARGEST)
    pairs = np.pad(zeros, ((0, 0), (0, config.blocks % 2)))
    return {"rows": _bytes(codes.astype(np.uint8)), "scales": scales, "zeros": _bytes(pairs.astype(np.uint8))}


def _blocks(vectors: FloatArray, config: Config) -> FloatArray:
    """[n, dim] -> [n, blocks, block], zeros behind the last number."""
    padded = np.zeros((len(vectors), config.blocks * config.block), np.float32)
    padded[:, : config.dim] = vectors
    return padded.reshape(len(vectors), config.blocks, config.block)


def _bytes(nibbles: Nibbles) -> Nibbles:
    """Two in a byte, the first of them low."""
    return (nibbles[..., 0::2] | (nibbles[..., 1::2] << 4)).astype(np.uint8)


def _nibbles(held: Nibbles) -> Nibbles:
    return np.stack((held & 15, held >> 4), axis=-1).reshape(*held.shape[:-1], -1)


def widened(codes: Nibbles, scales: FloatArray, config: Config, zeros: Nibbles | None = None) -> FloatArray:
    """The vectors that were stored, of any leading shape: [..., blocks * block / 2], [..., blocks] and the bytes of zero
    points, if blocks have their own -> [..., dim]."""
    units = _nibbles(codes).astype(np.float32).reshape(*codes.shape[:-1], config.blocks, config.block)
    units -= MIDDLE if zeros is None else _nibbles(zeros)[..., : config.blocks, None]
    rows: FloatArray = (units * scales[..., None]).reshape(*codes.shape[:-1], -1)[..., : config.dim]
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
        self._zeros: Nibbles | None = None
        if config.asymmetric:
            self._zeros = _scan.open_array(directory, "zeros", np.uint8, -(-config.blocks // 2))
        self.scores = _scan.Scan(directory, threads)

    def rows(self, items: IntArray) -> FloatArray:
        zeros = None if self._zeros is None else self._zeros.take(items, axis=0)
        return widened(self._packed.take(items, axis=0), self._scales.take(items, axis=0), self._config, zeros)

    def matrix(self) -> FloatArray:
        return widened(self._packed, self._scales, self._config, self._zeros)

    def rescore(self, queries: FloatArray, items: IntArray) -> FloatArray:
        return _scan.dot(self.rows(items), queries)

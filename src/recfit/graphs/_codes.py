"""Weights as codes into a small book of numbers. The graph holds the codes, packed, and the nodes that widen them; all
that these take are constants, so ONNX Runtime widens once, when it opens the graph, and runs float32 from then on."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from recfit.graphs._layers import Layer, add_constant, chosen, initializer, rewire
from recfit.types import ConfigError, FloatArray

Books = npt.NDArray[np.float32]
"""[groups, 2 ** bits], ascending: the numbers that each group of channels may hold."""

# A layer of fewer numbers stays as it is: the nodes that widen it would take more than its codes save.
SMALLEST = 256


def check_bits(where: str, bits: int, allowed: Sequence[int]) -> None:
    """Codes of other widths don't fill a byte."""
    if bits not in allowed:
        raise ConfigError(f"{where} = {bits}; allowed: {', '.join(map(str, allowed))}")


def convert(path: Path, skip: Sequence[str], bits: int, groups: int, book_of: Callable[[FloatArray], Any]) -> None:
    """Rewrite the graph at `path`: each layer's numbers, by groups of channels [groups, n], as the nearest of `book_of`
    them. There are as many groups as divide the channels, `groups` at most."""
    import onnx

    model = onnx.load(path)
    layers = {layer.name: layer for layer in chosen(model.graph, skip, lambda layer: layer.size >= SMALLEST)}
    widening: dict[str, Sequence[Any]] = {}
    for node in model.graph.node:
        if layer := layers.get(node.name):
            if layer.weight not in widening:
                widening[layer.weight] = _stored(model.graph, layer, bits, groups, book_of)
            node.input[:] = [f"{name}.wide" if name == layer.weight else name for name in node.input]
    rewire(model.graph, [*(node for nodes in widening.values() for node in nodes), *model.graph.node])
    onnx.save(model, path)


def weights(graph: Any, layer: Layer) -> FloatArray:
    """What the codes of a layer stand for."""
    packed, books = (initializer(graph, f"{layer.weight}.{part}") for part in ("codes", "books"))
    codes = _pieces(int(math.log2(books.shape[1])))[packed].reshape(len(books), -1)[:, : layer.size // len(books)]
    return _joined(np.take_along_axis(books, codes, axis=1), layer)


def _stored(graph: Any, layer: Layer, bits: int, groups: int, book_of: Callable[[FloatArray], Any]) -> Sequence[Any]:
    """Nodes that make `weight.wide` of the constants that they are given here."""
    from onnx import TensorProto, helper

    parts = _parted(initializer(graph, layer.weight), layer, groups)
    books: Books = np.stack([book_of(part) for part in parts]).astype(np.float32)
    codes = np.stack([nearest(part, book) for part, book in zip(parts, books, strict=True)])
    constants = {
        "codes": _packed(codes, bits),
        "books": books,
        "flat": np.array([len(books), -1]),
        "stop": np.array([parts.shape[1]]),
        "shape": np.array(_moved(layer)),
    }
    packed, book, flat, stop, shape = (
        add_constant(graph, f"{layer.weight}.{name}", value) for name, value in constants.items()
    )
    zero, one = (add_constant(graph, f"number.{number}", np.array([number])) for number in (0, 1))
    pieces = add_constant(graph, f"pieces.{bits}", _pieces(bits))
    step = [f"{layer.weight}.step.{number}" for number in range(6)]
    back = [*range(1, layer.channels + 1), 0, *range(layer.channels + 1, len(layer.shape))]
    return [
        helper.make_node("Cast", [packed], [step[0]], to=TensorProto.INT32),
        helper.make_node("Gather", [pieces, step[0]], [step[1]]),
        helper.make_node("Reshape", [step[1], flat], [step[2]]),
        helper.make_node("Slice", [step[2], zero, stop, one], [step[3]]),
        helper.make_node("GatherElements", [book, step[3]], [step[4]], axis=1),
        helper.make_node("Reshape", [step[4], shape], [step[5]]),
        helper.make_node("Transpose", [step[5]], [f"{layer.weight}.wide"], perm=back),
    ]


def _moved(layer: Layer) -> tuple[int, ...]:
    """The shape with the channels first."""
    rest = [length for axis, length in enumerate(layer.shape) if axis != layer.channels]
    return (layer.shape[layer.channels], *rest)


def _parted(values: FloatArray, layer: Layer, groups: int) -> FloatArray:
    """The weights of `layer` by groups of channels, [groups, n]."""
    count = math.gcd(groups, layer.shape[layer.channels])
    return np.moveaxis(values, layer.channels, 0).reshape(count, -1)


def _joined(parts: FloatArray, layer: Layer) -> FloatArray:
    return np.moveaxis(parts.reshape(_moved(layer)), 0, layer.channels)


def nearest(values: FloatArray, book: FloatArray) -> npt.NDArray[np.uint8]:
    """The places of the numbers of `book`, ascending, that are nearest to `values`."""
    return np.searchsorted((book[1:] + book[:-1]) / 2, values).astype(np.uint8)


def _pieces(bits: int) -> npt.NDArray[np.int32]:
    """The codes in every byte, the lowest bits first: int32 [256, 8 / bits]."""
    shifts = np.arange(0, 8, bits)
    pieces: npt.NDArray[np.int32] = ((np.arange(256)[:, None] >> shifts) & (2**bits - 1)).astype(np.int32)
    return pieces


def _packed(codes: npt.NDArray[np.uint8], bits: int) -> npt.NDArray[np.uint8]:
    """Codes [groups, n] as bytes, the last one of a group filled up with zeros."""
    shifts = np.arange(0, 8, bits)
    whole = np.pad(codes, ((0, 0), (0, -codes.shape[1] % len(shifts)))).astype(np.int64)
    packed: npt.NDArray[np.uint8] = (whole.reshape(len(codes), -1, len(shifts)) << shifts).sum(axis=-1).astype(np.uint8)
    return packed

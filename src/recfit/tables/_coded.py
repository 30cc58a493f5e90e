"""Tables whose rows are codes: every part of a row is one of the centroids of that part's codebook.

A table of up to `WIDENED` numbers is widened to floats when it is opened, because the plain product is the fastest scan
of it. Of a larger one the codes stay codes: a query adds up entries of its table `query_j . C_j[c]`, more than `FEW`
queries share rows that are widened block by block.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from recfit.tables import _scan
from recfit.tables._learning import Codes, decoded, in_parts, starts
from recfit.types import FloatArray, IntArray

WIDENED = 1 << 24  # numbers: 64 MB of floats
BLOCK = 1 << 14  # rows at a time
FEW = 4  # queries that look up faster than rows are widened
OUTSIDE = ("query", "scores", "codes", "centroids", "scales", "rotation")  # names of ends and files of the graph


@dataclass(frozen=True)
class Layout:
    """`parts` codes a row, `width` numbers each, zeros behind the last of `dim`; two codes a byte where `packed`."""

    dim: int
    parts: int
    width: int
    packed: bool = False

    @property
    def bytes(self) -> int:
        """Of the codes of one row."""
        return -(-self.parts // 2) if self.packed else self.parts

    def pack(self, codes: Codes) -> Codes:
        """[n, parts] -> [n, bytes]."""
        if not self.packed:
            return codes
        even = np.pad(codes, ((0, 0), (0, self.parts % 2)))
        return (even[:, 0::2] | even[:, 1::2] << 4).astype(np.uint8)

    def unpack(self, held: Codes) -> Codes:
        """[..., bytes] -> [..., parts]."""
        if not self.packed:
            return held
        pairs = np.stack((held & 15, held >> 4), axis=-1)
        return pairs.reshape(*held.shape[:-1], -1)[..., : self.parts]


def write(
    directory: Path,
    layout: Layout,
    codes: Codes,
    centroids: FloatArray,
    *,
    scales: FloatArray | None = None,
    basis: FloatArray | None = None,
    known: bool = False,
) -> None:
    """Store `codes` [n, parts] of `centroids` [parts, count, width] in half precision (`known` ones, small integers, are in
    the graph alone), `scales` [n] of rows, and the `basis` [d, d] that turned the vectors, in half precision too."""
    arrays: dict[str, Any] = {"codes": layout.pack(codes)}
    constants: dict[str, Any] = {
        "starts": starts(layout.parts, centroids).astype(np.int32),
        "flat": np.array([-1, layout.width]),
        "joined": np.array([-1, layout.parts * layout.width]),
        "first": np.array([0]),
        "end": np.array([layout.dim]),
        "axis": np.array([1]),
    }
    if layout.packed:
        column = np.arange(layout.parts)
        constants |= {"byte": column // 2, "shift": (16 ** (column % 2)).astype(np.int32), "radix": np.int32(16)}
    if known:
        constants["centroids"] = centroids.astype(np.int8)
    else:
        arrays["centroids"] = centroids.astype(np.float16)
    if scales is not None:
        arrays["scales"] = scales
    if basis is not None:
        arrays["rotation"] = basis.astype(np.float16)
    nodes = _nodes(layout.packed, scales is not None, basis is not None)
    named = {_named(name): value for name, value in constants.items()}
    _scan.write_graph(directory, nodes, layout.dim, arrays, named)


def _nodes(packed: bool, scaled: bool, turned: bool) -> list[Any]:
    """All but the last depend on no query: ONNX Runtime computes them once, when it loads the graph."""
    from onnx import TensorProto, helper

    def node(operator: str, takes: list[str], gives: list[str], **settings: Any) -> Any:
        return helper.make_node(operator, [*map(_named, takes)], [*map(_named, gives)], **settings)

    real = TensorProto.FLOAT
    digits = [
        node("Gather", ["bytes", "byte"], ["held"], axis=1),
        node("Div", ["held", "shift"], ["shifted"]),
        node("Mod", ["shifted", "radix"], ["digits"]),
    ]
    sized = [node("Unsqueeze", ["scales", "axis"], ["sizes"]), node("Mul", ["cut", "sizes"], ["sized"])]
    back = [node("Cast", ["rotation"], ["basis"], to=real), node("Gemm", ["sized", "basis"], ["widened"], transB=1)]
    return [
        node("Cast", ["codes"], ["bytes"], to=TensorProto.INT32),
        *(digits if packed else [node("Identity", ["bytes"], ["digits"])]),
        node("Add", ["digits", "starts"], ["places"]),
        node("Cast", ["centroids"], ["books"], to=real),
        node("Reshape", ["books", "flat"], ["book"]),
        node("Gather", ["book", "places"], ["found"]),
        node("Reshape", ["found", "joined"], ["whole"]),
        node("Slice", ["whole", "first", "end", "axis"], ["cut"]),
        *(sized if scaled else [node("Identity", ["cut"], ["sized"])]),
        *(back if turned else [node("Identity", ["sized"], ["widened"])]),
        node("Gemm", ["query", "widened"], ["scores"], transB=1),
    ]


def _named(name: str) -> str:
    """What the graph and its files don't share with others gets names that no graph around it has."""
    return name if name in OUTSIDE else f"code.{name}"


def row_nodes(items: str, rows: str, config: object) -> list[Any]:
    """Of the rows that the scan's graph has widened."""
    from onnx import helper

    return [helper.make_node("Gather", [_named("widened"), items], [rows])]


class Coded:
    """An opened table; `centroids` are those that `directory` holds unless they are given."""

    def __init__(
        self,
        directory: Path,
        layout: Layout,
        threads: int,
        *,
        centroids: FloatArray | None = None,
        scaled: bool = False,
        turned: bool = False,
    ) -> None:
        self._layout = layout
        self._held: Codes = _scan.open_array(directory, "codes", np.uint8, layout.bytes)
        if centroids is None:
            stored = _scan.open_array(directory, "centroids", np.float16).astype(np.float32)
            centroids = stored.reshape(layout.parts, -1, layout.width)
        self._centroids = centroids
        self._scales: FloatArray | None = _scan.open_array(directory, "scales", np.float32) if scaled else None
        self._basis: FloatArray | None = None
        if turned:
            self._basis = _scan.open_array(directory, "rotation", np.float16, layout.dim).astype(np.float32)
        self._scan = _scan.Scan(directory, threads)

    def rows(self, items: IntArray) -> FloatArray:
        return self._widened(self._held.take(items, axis=0), None if self._scales is None else self._scales.take(items))

    def matrix(self) -> FloatArray:
        return self._widened(self._held, self._scales)

    def _widened(self, held: Codes, scales: FloatArray | None) -> FloatArray:
        rows = decoded(self._layout.unpack(held), self._centroids)[..., : self._layout.dim]
        sized: FloatArray = rows if scales is None else rows * scales[..., None]
        return sized if self._basis is None else sized @ self._basis.T

    def rescore(self, queries: FloatArray, items: IntArray) -> FloatArray:
        return _scan.dot(self.rows(items), queries)

    def scores(self, queries: FloatArray) -> FloatArray:
        if len(self._held) * self._layout.dim <= WIDENED:
            return self._scan(queries)
        turned = queries if self._basis is None else queries @ self._basis
        parts = in_parts(turned, self._layout.parts, self._layout.width)
        scan = self._shared(parts) if len(queries) > FEW else self._looked_up(parts)
        found = np.empty((len(queries), len(self._held)), np.float32)
        for start in range(0, len(self._held), BLOCK):
            rows = slice(start, start + BLOCK)
            scan(self._layout.unpack(self._held[rows]), found[:, rows])
        if self._scales is not None:
            found *= self._scales
        return found

    def _shared(self, queries: FloatArray) -> Callable[[Codes, FloatArray], None]:
        whole = queries.reshape(len(queries), -1)

        def scan(codes: Codes, scores: FloatArray) -> None:
            scores[:] = whole @ decoded(codes, self._centroids).T

        return scan

    def _looked_up(self, queries: FloatArray) -> Callable[[Codes, FloatArray], None]:
        """`score = sum over the parts of table[part, code]`, `table[part, c] = query[part] . centroids[part, c]`."""
        tables = np.matmul(queries.swapaxes(0, 1), self._centroids.swapaxes(1, 2)).swapaxes(0, 1)

        def scan(codes: Codes, scores: FloatArray) -> None:
            columns = np.ascontiguousarray(codes.T)
            for line, table in zip(scores, tables, strict=True):
                line[:] = table[0].take(columns[0])
                for part in range(1, len(columns)):
                    line += table[part].take(columns[part])

        return scan

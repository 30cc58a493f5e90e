"""Item tables: one file a storage format, the file's name is its key in a bundle.

A format's file offers

* `Config`: a frozen dataclass of its settings, `dim` among them;
* `write(vectors, directory, config)`: stores `vectors` (float32 [n_items, dim], row order) in `directory`, or
  refuses with `Unsupported` what it cannot hold;
* `open_table(directory, config, threads) -> Table`;
* optionally `row_nodes(items, rows, config)`: ONNX nodes that read the rows at the value `items` of any shape from the
  arrays of `_scan.write_graph` and name them `rows`, so that one graph may hold a whole request;
* `APPROXIMATE = True` where its tables are `Searchable` and may miss an item that an exact scan would find.

Reading needs NumPy, and ONNX Runtime to score (FAISS to search, where the format says so); `write` may import `onnx`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from recfit.registry import find
from recfit.topk import Found
from recfit.types import FloatArray, IntArray, Rows


class Table(Protocol):
    """The item side of an encoder, as it is stored and scanned. What a query scores never depends on its batch."""

    def rows(self, items: IntArray) -> FloatArray:
        """The vectors of item rows of any shape: float32 [*items.shape, dim]."""
        ...

    def scores(self, queries: FloatArray) -> FloatArray:
        """Every item's score for float32 queries [B, dim]: float32 [B, n_items]."""
        ...

    def matrix(self) -> FloatArray | None:
        """All rows, float32 [n_items, dim], as a view where they are stored so; None where a query is its own scores."""
        ...

    def rescore(self, queries: FloatArray, items: IntArray) -> FloatArray:
        """The scores of item rows int64 [B, C]: float32 [B, C]."""
        ...


@runtime_checkable
class Searchable(Protocol):
    """A table that finds the best items without scoring all of them."""

    def search(self, queries: FloatArray, k: int, gone: Sequence[Rows]) -> list[Found]:
        """For every query [B, dim] its `k` >= 1 best items that are not in its `gone`, with the scores of `rescore`; fewer
        where there are no more."""
        ...


def opened(directory: Path, described: Mapping[str, Any], threads: int) -> Table:
    """The table in `directory`, `described` by its `format` and the settings of that."""
    module, config = configured(described)
    table: Table = module.open_table(directory, config, threads)
    return table


def configured(described: Mapping[str, Any]) -> tuple[Any, Any]:
    """The file of the `format` that a table is `described` by, and its `Config`."""
    settings = dict(described)
    module = find("tables", settings.pop("format"))
    return module, module.Config(**settings)

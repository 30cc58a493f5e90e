"""Items like an item, by the vectors of an item table."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from recfit.bundle import Bundle
from recfit.tables import Table, opened
from recfit.topk import Found, top_k
from recfit.types import FloatArray

CHUNK = 2048  # items whose vectors are held at a time: so many stay in a core's cache


class Neighbours:
    """The items of `table`, by the cosine of their vectors. Looks at all of them: what searches for inner products leaves out
    is what is short, and no less like an item for that. 4 bytes an item are kept once one was asked for."""

    def __init__(self, table: Table, n_items: int) -> None:
        self._table, self._n_items = table, n_items
        self._lengths: FloatArray | None = None  # [n_items], once one was asked for

    def nearest(self, row: int, k: int) -> Found:
        """The `k` other items with the highest cosine to the item in `row`, best first."""
        query = self._table.rows(np.array([row]))[0]
        scores, lengths = self._products(query)
        scores /= np.maximum(lengths * np.linalg.norm(query), np.float32(1e-30))
        scores[row] = -np.inf
        return top_k(scores, k)

    def _products(self, query: FloatArray) -> tuple[FloatArray, FloatArray]:
        """float32 [n_items] each: inner products with `query`, and lengths, which the first look at the vectors gives too."""
        if (lengths := self._lengths) is not None:
            return np.concatenate([vectors @ query for vectors in self._parts()]), lengths
        both = [(vectors @ query, np.linalg.norm(vectors, axis=1)) for vectors in self._parts()]
        products, lengths = map(np.concatenate, zip(*both, strict=True))
        self._lengths = lengths
        return products, lengths

    def _parts(self) -> Iterator[FloatArray]:
        for at in range(0, self._n_items, CHUNK):
            yield self._table.rows(np.arange(at, min(at + CHUNK, self._n_items)))


def neighbours(bundle: Bundle) -> Neighbours | None:
    """Those of the bundle's items; None where a model has no vectors of them, or keeps them elsewhere."""
    spec, directory = bundle.stages["retrieve"], bundle.directory / "retrieve" / "table"
    if spec.kind != "encoder" or spec.table.get("format", "identity") == "identity" or not directory.is_dir():
        return None
    return Neighbours(opened(directory, spec.table, bundle.threads), bundle.n_items)

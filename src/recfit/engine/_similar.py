"""Items like an item, by the vectors of an item table."""

from __future__ import annotations

import numpy as np

from recfit.bundle import Bundle
from recfit.tables import Table, opened
from recfit.topk import Found, top_k
from recfit.types import FloatArray

CHUNK = 32_768  # items whose vectors are held at a time


def item_table(bundle: Bundle) -> Table | None:
    """The vectors of the bundle's items; None where a model has none, or keeps them elsewhere."""
    spec, directory = bundle.stages["retrieve"], bundle.directory / "retrieve" / "table"
    known = spec.kind == "encoder" and spec.table.get("format", "identity") != "identity" and directory.is_dir()
    return opened(directory, spec.table, bundle.threads) if known else None


def nearest(table: Table, n_items: int, row: int, k: int) -> Found:
    """The `k` other items with the highest cosine to the item in `row`, best first."""
    query = table.rows(np.array([row]))[0]
    parts = [_cosines(table.rows(np.arange(at, min(at + CHUNK, n_items))), query) for at in range(0, n_items, CHUNK)]
    scores = np.concatenate(parts)
    scores[row] = -np.inf
    return top_k(scores, k)


def _cosines(vectors: FloatArray, query: FloatArray) -> FloatArray:
    lengths = np.linalg.norm(vectors, axis=1) * np.linalg.norm(query)
    cosines: FloatArray = (vectors @ query) / np.maximum(lengths, np.float32(1e-30))
    return cosines

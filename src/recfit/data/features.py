"""Columns of a features file as integer codes.

* a few distinct values, and declared tokens: one code a value;
* numbers of more than 16 distinct values: quantile buckets, at most 16; names ending in `id` are no quantities;
* lists (Parquet lists, RecBole `token_seq`, `a|b|c` in text): up to 4 columns that share a vocabulary;
* nothing to learn from, left out: constants, and texts of which more than half are distinct (keys, free text).
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recfit.data.table import Table
from recfit.data.values import Column, Doubles, numbers, texts
from recfit.types import Features, IntArray, Rows, Values

TITLES = ("title", "movie_title", "item_title", "product_title", "name", "item_name", "product_name")
BUCKETS = 16
LIST_COLUMNS = 4

Coded = tuple[list[Rows], int, Values]
NOTHING: Coded = ([], 0, ())


def rows_of(ids: tuple[str, ...], keys: pa.Array, rows: IntArray) -> pa.Array:
    """For each id the table row that describes it (null: none); `keys[i]` is the id at table row `rows[i]`."""
    place = pc.index_in(pa.array(ids, pa.string()), value_set=keys)
    return pc.take(pa.array(rows), place)


def encode(table: Table, key: str, rows: pa.Array, titled: bool) -> tuple[Features | None, tuple[str, ...] | None]:
    """Codes [len(rows), columns] of every column but `key`; with `titled`, a title column becomes titles instead."""
    names: list[str] = []
    codes: list[Rows] = []
    sizes: list[int] = []
    values: list[Values] = []
    titles = None
    for name in table.data.column_names:
        column = pc.take(table.data[name], rows)
        if titled and titles is None and name.lower() in TITLES:
            titles = tuple(texts(_joined(column)).to_pylist())
        elif name != key:
            spread, size, vocabulary = _codes(name, column, table.kinds.get(name))
            names += [name] if len(spread) == 1 else [f"{name}.{i}" for i in range(len(spread))]
            codes += spread
            sizes += [size] * len(spread)
            values += [vocabulary] * len(spread)
    return Features(tuple(names), np.stack(codes, axis=1), tuple(sizes), tuple(values)) if names else None, titles


def _joined(column: Column) -> Column:
    return pc.binary_join(column, " ") if pa.types.is_list(column.type) else column


def _codes(name: str, column: Column, kind: str | None) -> Coded:
    """Columns of codes int32 [n], their common size and vocabulary; no columns where there is nothing to learn from."""
    if kind == "float_seq":
        return NOTHING
    if pa.types.is_list(column.type) or kind == "token_seq" or (kind is None and _has_bars(column)):
        return _lists(column, " " if kind == "token_seq" else "|")
    values = numbers(column)
    readable = kind == "float" or (kind is None and _all_numbers(column, values) and not name.lower().endswith("id"))
    if readable and len(np.unique(values[~np.isnan(values)])) > BUCKETS:
        return _buckets(values)
    return _categories(column)


def _has_bars(column: Column) -> bool:
    return pa.types.is_string(column.type) and bool(pc.any(pc.match_substring(column, "|")).as_py())


def _all_numbers(column: Column, values: Doubles) -> bool:
    """Are all values that are there numbers?"""
    if not pa.types.is_string(column.type):
        return not pa.types.is_temporal(column.type)
    filled = np.array([bool(text) for text in texts(column).to_pylist()], dtype=bool)
    return bool(np.isfinite(values[filled]).all())


def _categories(column: Column) -> Coded:
    values = pc.if_else(pc.equal(texts(column), ""), None, texts(column))
    known = sorted(value for value in pc.unique(values).to_pylist() if value is not None)
    if len(known) < 2 or len(known) > max(BUCKETS, len(column) / 2):
        return NOTHING
    codes = pc.fill_null(pc.index_in(values, value_set=pa.array(known)), -1)
    return [(np.asarray(codes.to_numpy()) + 1).astype(np.int32)], len(known) + 1, tuple(known)


def _buckets(values: Doubles) -> Coded:
    """Codes 1..16 by quantile; equal values share a bucket."""
    known = values[np.isfinite(values)]
    edges = np.unique(np.quantile(known, np.linspace(0, 1, BUCKETS + 1)[1:-1]))
    codes = np.searchsorted(edges, values, side="right") + 1
    return [np.where(np.isfinite(values), codes, 0).astype(np.int32)], len(edges) + 2, tuple(edges.tolist())


def _lists(column: Column, separator: str) -> Coded:
    is_list = pa.types.is_list(column.type)
    rows = [_words(value if is_list else str(value or "").split(separator)) for value in column.to_pylist()]
    known = sorted({word for words in rows for word in words})
    if len(known) < 2 or len(known) > max(BUCKETS, len(rows) / 2):
        return NOTHING
    code = {word: number for number, word in enumerate(known, 1)}
    codes = np.zeros((len(rows), LIST_COLUMNS), dtype=np.int32)
    for row, words in enumerate(rows):
        codes[row, : len(words)] = [code[word] for word in words]
    return list(codes[:, : max(map(len, rows))].T), len(known) + 1, tuple(known)


def _words(values: Iterable[object] | None) -> list[str]:
    return [str(value) for value in values or () if str(value or "").strip()][:LIST_COLUMNS]

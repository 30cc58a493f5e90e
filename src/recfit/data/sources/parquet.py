"""Parquet files, one row an event."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
from pyarrow import parquet

from recfit.data.table import Raw, Table, existing
from recfit.data.values import Column
from recfit.types import DataError

ACCEPTS = "*.parquet"


def claims(source: str) -> bool:
    return Path(source).suffix.lower() in (".parquet", ".pq")


def read(source: str, cache: Path) -> Raw:
    path = existing(Path(source))
    try:
        data = parquet.read_table(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{path} can't be read as Parquet: {error}") from error
    plain = pa.table({name: _plain(data[name]) for name in data.column_names})
    return Raw(path.stem, Table(str(path), plain, lambda row: f"row {row + 1}"))


def _plain(column: Column) -> Column:
    """Text and lists as pyarrow's default types; pandas and polars also write dictionaries and large types."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        return _plain(column.cast(kind.value_type))
    if pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return column.cast(pa.string())
    return column.cast(pa.list_(kind.value_type)) if pa.types.is_large_list(kind) else column

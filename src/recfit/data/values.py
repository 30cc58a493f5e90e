"""Columns of unknown type as numbers and as times; what can't be read becomes NaN."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

Doubles = npt.NDArray[np.float64]
Column = Any  # a pyarrow ChunkedArray; pyarrow has no type information


def texts(column: Column) -> Column:
    """Every value as text; missing ones, NaN among them, as the empty text."""
    if pa.types.is_floating(column.type):
        column = pc.if_else(pc.is_nan(column), None, column)
    return pc.fill_null(pc.cast(column, pa.string()), "")


def numbers(column: Column) -> Doubles:
    """float64 [n]; NaN where the value is missing or not a number."""
    try:
        return _doubles(pc.cast(column, pa.float64()))
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return _each(column, _number)


def seconds(column: Column) -> Doubles:
    """Times as float64 [n] seconds; NaN where unreadable.

    Numbers keep their value. ISO 8601 dates without a zone are UTC. A column that mixes the two is read as whichever
    fits more of it, so that one bad line doesn't change what the others mean.
    """
    if not pa.types.is_string(column.type) and not pa.types.is_temporal(column.type):
        return numbers(column)
    for zone in (None, "UTC"):
        try:
            nanoseconds = pc.cast(pc.cast(column, pa.timestamp("ns", zone)), pa.int64())
            return _doubles(pc.divide(pc.cast(nanoseconds, pa.float64(), safe=False), 1e9))
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            continue
    plain = numbers(column)
    if 2 * np.isnan(plain).sum() <= len(plain):
        return plain
    dates = _each(column, _date)
    return dates if np.isnan(dates).sum() < np.isnan(plain).sum() else plain


def since_1970(times: Doubles) -> Doubles:
    """Clock times in milli-, micro- or nanoseconds as seconds: 1e11 s is the year 5138, so what is beyond is finer."""
    size = float(np.median(times))
    return times / next((unit for unit in (1e9, 1e6, 1e3) if size > 1e8 * unit), 1.0)


def _doubles(column: Column) -> Doubles:
    return np.asarray(column.to_numpy(), dtype=np.float64)


def _each(column: Column, read: Callable[[object], float]) -> Doubles:
    return np.array([read(value) for value in column.to_pylist()], dtype=np.float64)


def _number(value: object) -> float:
    try:
        # float() also takes 1_000, which no data file means
        return float("nan" if "_" in str(value) else str(value))
    except ValueError:
        return float("nan")


def _date(value: object) -> float:
    try:
        moment = datetime.fromisoformat(str(value).strip())
    except ValueError:
        return float("nan")
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()

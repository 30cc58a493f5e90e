"""What a source hands over: columns that have not been judged yet, and a way to say where each row stood."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa

from recfit.types import DataError


@dataclass(frozen=True)
class Table:
    """The columns of one file. Text files give strings, so that a bad value can still be quoted.

    `where(row)` says where a row stood (`line 17`; slow, errors only). `kinds` are types the file declares
    (`token, token_seq, float, float_seq`). `malformed`: place and reason of rows that could not be cut into columns.
    """

    file: str
    data: pa.Table
    where: Callable[[int], str]
    kinds: Mapping[str, str] = field(default_factory=dict)
    malformed: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Raw:
    """Events and, where the source has them, features of users and of items."""

    name: str
    events: Table
    users: Table | None = None
    items: Table | None = None


def existing(path: Path) -> Path:
    """`path` itself, or a `DataError` where there is no such file or nothing in it."""
    if not path.is_file():
        raise DataError(f"there is no file {path}; check the path (it was looked for in {Path.cwd()})")
    if path.stat().st_size == 0:
        raise DataError(f"{path} is empty; it needs a header and one line an event")
    return path

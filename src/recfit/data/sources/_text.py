"""Delimited text of any dialect, read by pyarrow; every column stays text."""

from __future__ import annotations

import csv
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pyarrow as pa
from pyarrow import csv as arrow_csv

from recfit.data.table import Table, existing
from recfit.types import DataError


@dataclass(frozen=True)
class Dialect:
    """How a line is cut. `quoted`: fields may be in double quotes, and then hold the delimiter or a line break."""

    delimiter: str
    quoted: bool = True

    def rows(self, path: Path) -> Iterator[tuple[int, list[str]]]:
        """Line number and fields of every line that is not blank; slow, for headers and errors."""
        with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
            reader = csv.reader(
                file, delimiter=self.delimiter, quoting=csv.QUOTE_MINIMAL if self.quoted else csv.QUOTE_NONE
            )
            yield from ((reader.line_num, fields) for fields in reader if fields)


def read_text(path: Path, dialect: Dialect) -> Table:
    """The file as columns of text. The first line names them; where it holds numbers alone they are `0, 1, ...`."""
    header = next(dialect.rows(existing(path)), (0, [""]))[1]
    headless = all(_is_number(name) for name in header)
    names = [str(i) for i in range(len(header))] if headless else header
    if len(set(names)) < len(names):
        raise DataError(f"{path}: the header names a column twice: {', '.join(names)}; rename one")
    skipped: list[str] = []
    data = _read(path, dialect, names, headless, skipped)
    malformed = _malformed(path, dialect, len(names)) if skipped else ()
    where = partial(_where, path, dialect, len(names), 0 if headless else 1)
    return Table(str(path), data, where, malformed=malformed)


def _read(path: Path, dialect: Dialect, names: list[str], headless: bool, skipped: list[str]) -> pa.Table:
    """The well-formed rows; the text of the others is appended to `skipped`."""

    def skip(row: arrow_csv.InvalidRow) -> str:
        skipped.append(row.text)
        return "skip"

    try:
        return arrow_csv.read_csv(
            path,
            arrow_csv.ReadOptions(column_names=names if headless else None),
            arrow_csv.ParseOptions(
                delimiter=dialect.delimiter,
                quote_char='"' if dialect.quoted else False,
                newlines_in_values=dialect.quoted,
                invalid_row_handler=skip,
            ),
            arrow_csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=False),
        )
    except pa.ArrowInvalid as error:
        raise DataError(_unreadable(path, error)) from error


def _unreadable(path: Path, error: Exception) -> str:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                line.decode()
            except UnicodeDecodeError as bad:
                return f"{path}, line {number}: byte {line[bad.start]:#04x} is not UTF-8; convert the file to UTF-8"
    return f"{path} can't be read as delimited text: {error}"


def _where(path: Path, dialect: Dialect, width: int, header: int, row: int) -> str:
    lines = (line for line, fields in dialect.rows(path) if len(fields) == width)
    return f"line {next(itertools.islice(lines, row + header, None))}"


def _malformed(path: Path, dialect: Dialect, width: int) -> tuple[tuple[str, str], ...]:
    rows = ((line, len(fields)) for line, fields in dialect.rows(path))
    return tuple((f"line {line}", f"{size} fields, the first line has {width}") for line, size in rows if size != width)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True

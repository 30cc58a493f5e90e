"""CSV and TSV with a header line; UTF-8, fields optionally in double quotes."""

from __future__ import annotations

from pathlib import Path

from recfit.data.sources._text import Dialect, read_text
from recfit.data.table import Raw, existing

ACCEPTS = "*.csv, *.tsv"


def claims(source: str) -> bool:
    return Path(source).suffix.lower() in (".csv", ".tsv")


def read(source: str, cache: Path) -> Raw:
    path = existing(Path(source))
    return Raw(path.stem, read_text(path, Dialect(_delimiter(path))))


def _delimiter(path: Path) -> str:
    """The candidate that the first line holds most of; `.csv` is written with semicolons and tabs as well."""
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        first = file.readline()
    return max(",\t;|", key=first.count)

"""Interactions from files and public sets, splits, requests."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from recfit import config
from recfit.registry import find, names
from recfit.types import DataError, Interactions

SOURCES = "data.sources"


def load(
    source: str | Path,
    *,
    format: str | None = None,
    columns: Mapping[str, str] | None = None,
    bad_rows: str = "error",
    user_features: Path | None = None,
    item_features: Path | None = None,
    min_weight: float | None = None,
    cache: Path | None = None,
) -> Interactions:
    """Interactions from a file, a directory of RecBole files or a public set by name (`ml-100k`).

    `format` names the reader where the file's suffix does not. `columns` maps `user_id, item_id, weight, timestamp` to
    the names in the file where the usual ones don't do. `bad_rows="drop"` leaves bad rows out, counted in `dropped`.
    Events below `min_weight` are left out, too. Public sets are kept in `cache` ($RECFIT_CACHE, else ~/.cache/recfit).
    Raises `DataError` naming file, row, column and value.
    """
    # pyarrow comes with these; the serving install has none and still reads requests from this package
    from recfit.data.parsing import Rules, interactions, table

    rules = Rules(columns or {}, bad_rows, min_weight)
    raw = find(SOURCES, format or _format(str(source))).read(str(source), cache or _cache())
    users = table(user_features) if user_features else raw.users
    items = table(item_features) if item_features else raw.items
    return interactions(raw.name, raw.events, users, items, rules)


def from_config(settings: config.Data) -> Interactions:
    """The interactions that the `[data]` table of a recfit.toml names."""
    return load(
        settings.source,
        format=settings.format,
        columns=settings.columns,
        bad_rows=settings.bad_rows,
        user_features=Path(settings.user_features) if settings.user_features else None,
        item_features=Path(settings.item_features) if settings.item_features else None,
        min_weight=settings.min_weight,
    )


def _format(source: str) -> str:
    """The reader that claims `source`."""
    for name in names(SOURCES):
        if find(SOURCES, name).claims(source):
            return name
    known = "; ".join(f"{name}: {find(SOURCES, name).ACCEPTS}" for name in names(SOURCES))
    raise DataError(f"no reader for {source!r}; there are {known}. Name one with format=")


def _cache() -> Path:
    return Path(os.environ.get("RECFIT_CACHE") or Path.home() / ".cache" / "recfit")

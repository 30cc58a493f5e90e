"""RecBole atomic files: tab-separated, a header of `name:type`; features lie beside `x.inter` in `x.user` and `x.item`.

Format: https://recbole.io/docs/user_guide/data/atomic_files.html
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from recfit.data.sources._text import Dialect, read_text
from recfit.data.table import Raw, Table, existing
from recfit.types import DataError

ACCEPTS = "*.inter (with *.user, *.item beside it), a directory that holds one, or the path without suffix"
TYPES = ("token", "token_seq", "float", "float_seq")


def claims(source: str) -> bool:
    path = Path(source)
    return path.suffix in (".inter", ".user", ".item") or path.is_dir() or _with(path, ".inter").is_file()


def read(source: str, cache: Path) -> Raw:
    path = _inter(Path(source))
    if path.suffix != ".inter":
        return Raw(path.stem, _typed(path))
    users, items = (_typed(p) if p.is_file() else None for p in (path.with_suffix(".user"), path.with_suffix(".item")))
    return Raw(path.stem, _typed(path), users, items)


def _inter(path: Path) -> Path:
    if path.is_dir():
        found = sorted(path.glob("*.inter"))
        if len(found) != 1:
            names = ", ".join(p.name for p in found) or "none"
            raise DataError(f"{path} should hold one .inter file and holds: {names}; give the path of the one to read")
        return found[0]
    return path if path.suffix in (".inter", ".user", ".item") else _with(path, ".inter")


def _with(path: Path, suffix: str) -> Path:
    return path.parent / (path.name + suffix)


def _typed(path: Path) -> Table:
    """The table with `name:type` cut apart."""
    table = read_text(existing(path), Dialect("\t", quoted=False))
    pairs = [column.rpartition(":") for column in table.data.column_names]
    for name, _, kind in pairs:
        if not name or kind not in TYPES:
            raise DataError(
                f"{path}, line 1: {name or kind!r} has no type; write name:type, types are {', '.join(TYPES)}"
            )
    names = [name for name, _, _ in pairs]
    return replace(table, data=table.data.rename_columns(names), kinds={name: kind for name, _, kind in pairs})

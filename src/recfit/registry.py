"""A folder listing is the registry: the file's name is the key, import is on demand, no list is edited.

The folders that `RECFIT_PLUGINS` names (separated as in PATH) may hold rooms of their own: `my_folder/techniques/mine.py`.
"""

from __future__ import annotations

import difflib
import importlib
import os
import pkgutil
from functools import cache
from pathlib import Path
from types import ModuleType

from recfit.types import ConfigError


@cache
def names(room: str) -> tuple[str, ...]:
    """The keys of a room such as `models` or `techniques`: its files, without those that start with `_`."""
    package = importlib.import_module(f"recfit.{room}")
    folders = [Path(folder) / room for folder in os.environ.get("RECFIT_PLUGINS", "").split(os.pathsep) if folder]
    package.__path__.extend(str(folder) for folder in folders if folder.is_dir())
    return tuple(sorted(m.name for m in pkgutil.iter_modules(package.__path__) if not m.name.startswith("_")))


def find(room: str, name: str) -> ModuleType:
    """The module of `name` in `room`; an unknown name is answered with the nearest and the whole list."""
    if name not in names(room):
        near = difflib.get_close_matches(name, names(room), n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ";"
        raise ConfigError(f"no {room[:-1]} named {name!r}{hint} there are: {', '.join(names(room))}")
    return importlib.import_module(f"recfit.{room}.{name}")

"""The folder listing is the registry."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import recfit
from recfit.registry import find, names
from recfit.types import ConfigError

ROOMS = ("models", "techniques", "tables", "runtimes")


@pytest.mark.parametrize("room", ROOMS)
def test_every_file_is_a_name_and_loads(room: str) -> None:
    files = (Path(recfit.__file__).parent / room).glob("[!_]*.py")
    assert names(room) == tuple(sorted(path.stem for path in files))
    for name in names(room):
        assert find(room, name).__name__ == f"recfit.{room}.{name}"


def test_an_unknown_name_is_answered_with_the_nearest_and_all() -> None:
    with pytest.raises(ConfigError) as near:
        find("models", "sasrek")
    assert str(near.value).startswith("no model named 'sasrek'; did you mean 'sasrec'? there are: als, custom, ")
    with pytest.raises(ConfigError, match=rf"^no runtime named 'zzz'; there are: {', '.join(names('runtimes'))}$"):
        find("runtimes", "zzz")


@pytest.mark.parametrize("name", ["", "_scan", "../types", "int8.os", "Int8"])
def test_nothing_but_the_listed_files_is_imported(name: str) -> None:
    before = set(sys.modules)
    with pytest.raises(ConfigError, match="no table named"):
        find("tables", name)
    assert set(sys.modules) == before

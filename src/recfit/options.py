"""A mapping of settings, from TOML or JSON, becomes a frozen dataclass; a mistake is answered with what is allowed."""

from __future__ import annotations

import difflib
import tomllib
import types
from collections.abc import Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from recfit.types import ConfigError

T = TypeVar("T")
KINDS = {
    str: "a text in quotes",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    tuple: "a list",
    Mapping: "a table",
}


def from_options(cls: type[T], options: Mapping[str, Any], where: str) -> T:
    """`cls(**options)` with names and types checked; `where` names the place in the message, such as `model.sasrec`."""
    if not isinstance(options, Mapping):
        raise ConfigError(f"{where} = {options!r}; it must be {KINDS[Mapping]}")
    allowed = [field.name for field in fields(cls)]  # type: ignore[arg-type]
    for key in options:
        if key not in allowed:
            raise ConfigError(f"{where} has no setting {key!r}{_nearest(key, allowed)}; allowed: {_listed(allowed)}")
    for field in fields(cls):  # type: ignore[arg-type]
        if field.name not in options and field.default is MISSING and field.default_factory is MISSING:
            raise ConfigError(f"{where} needs the setting {field.name!r}; add it")
    hints = get_type_hints(cls)
    return cls(**{key: _typed(value, hints[key], f"{where}.{key}") for key, value in options.items()})


def read_toml(path: Path, missing: str) -> dict[str, Any]:
    """The tables of a TOML file. Raises ConfigError, which says `missing` where there is no file."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"there is no file {path}{missing}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 ({error.reason} at byte {error.start}); convert it") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from None


def check_ranges(where: str, config: object, **limits: tuple[float, float]) -> None:
    """Raise ConfigError unless each named field, or each number that it lists, lies in its closed range."""
    for name, (low, high) in limits.items():
        value = getattr(config, name)
        if not all(low <= number <= high for number in (value if isinstance(value, tuple) else (value,))):
            raise ConfigError(f"{where}.{name} = {value!r} is outside {low:g} to {high:g}; set it within")


def check_choice(where: str, value: str, allowed: tuple[str, ...]) -> None:
    """Raise ConfigError unless `value` is one of `allowed`."""
    if value not in allowed:
        raise ConfigError(f"{where} = {value!r}{_nearest(value, allowed)}; allowed: {_listed(allowed)}")


def _listed(allowed: list[str] | tuple[str, ...]) -> str:
    return ", ".join(allowed) or "none"


def _nearest(key: str, allowed: list[str] | tuple[str, ...]) -> str:
    near = difflib.get_close_matches(key, allowed, n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""


def _typed(value: Any, hint: Any, where: str) -> Any:
    """`value` as `hint` wants it: ints count as floats, lists as tuples; anything else must match."""
    origin = get_origin(hint) or hint
    if origin is types.UnionType:
        kind = tuple if isinstance(value, list) else type(value)
        fits = [part for part in get_args(hint) if (get_origin(part) or part) is kind]
        return _typed(value, (fits or get_args(hint))[0], where)
    if origin is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if origin is tuple and isinstance(value, list | tuple):
        return tuple(_typed(part, get_args(hint)[0], f"{where}[{at}]") for at, part in enumerate(value))
    if not isinstance(value, origin) or (isinstance(value, bool) and origin is not bool):
        raise ConfigError(f"{where} = {value!r}; it must be {KINDS[origin]}")
    return value

"""A request's context: values of user features become the codes that a stage reads."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import numpy.typing as npt

from recfit.bundle import Bundle
from recfit.types import ConfigError, IntArray, RequestContext, Values


class Vocabulary:
    """What the stages of a bundle read of a request's context, by the names and values of the data it was made from."""

    def __init__(self, bundle: Bundle) -> None:
        reads = any("user_features" in spec.inputs for spec in bundle.stages.values())
        features = bundle.user_features if reads else None
        values = None if features is None else features.values
        names = () if features is None or values is None else features.names
        self._width, self._columns = len(names), _columns(names)
        self._code = {name: _coder(values[columns[0]]) for name, columns in self._columns.items()} if values else {}
        self._lacks = "reads no user features; leave"
        if reads:
            self._lacks = "does not know the values of its features; export it again, or leave"

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._columns)

    def refusal(self, context: RequestContext | None) -> str:
        """What is wrong with `context`; empty where nothing is."""
        if not context:
            return ""
        if not self._columns:
            return f"a context is given and this bundle {self._lacks} `context` out"
        unknown = [name for name in context if name not in self._columns]
        return (
            f"context: there is no feature {unknown[0][:100]!r}; there are {', '.join(self.names)}" if unknown else ""
        )

    def row(self, context: RequestContext) -> IntArray:
        """Codes [columns]: 0 for an unknown value, -1 where nothing is said. Raises `ConfigError` for what is refused."""
        if refusal := self.refusal(context):
            raise ConfigError(refusal)
        row = np.full(self._width, -1, np.int64)
        for name, value in context.items():
            columns, code, text = self._columns[name], self._code[name], _text(value)
            parts = [part for part in text.split("|") if part.strip()] if len(columns) > 1 else [text]
            codes = [code(part) for part in parts[: len(columns)]]
            row[columns] = codes + [0] * (len(columns) - len(codes))
        return row


def _columns(names: Sequence[str]) -> dict[str, list[int]]:
    """Columns by their name in the data, where a list is one column: here it is `genre.0`, `genre.1`, ..."""
    columns: dict[str, list[int]] = {}
    for column, name in enumerate(names):
        stem, _, place = name.rpartition(".")
        spread = place == str(len(columns.get(stem, ())))
        columns.setdefault(stem if spread else name, []).append(column)
    return columns


def _text(value: str | float) -> str:
    """Numbers as the data spells them, whole ones without a point."""
    return value if isinstance(value, str) else str(value).removesuffix(".0")


def _coder(values: Values) -> Callable[[str], int]:
    """From the text of a value to its code, 0 where it is unknown."""
    if isinstance(values[0], str):
        codes = {value: code for code, value in enumerate(values, 1)}
        return lambda text: codes.get(text, 0)
    return partial(_bucket, np.array(values, np.float64))


def _bucket(edges: npt.NDArray[np.float64], text: str) -> int:
    try:
        number = float(text)
    except ValueError:
        return 0
    return int(np.searchsorted(edges, number, side="right")) + 1 if math.isfinite(number) else 0

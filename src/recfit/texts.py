"""Texts by row and rows by text, from files that processes share: the ids and titles of a bundle.

Up to `FEW` texts become Python strings, which are fastest and take some 200 bytes each. Of more a process keeps 12 bytes each,
and a few thousand strings that were asked for lately.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Protocol, overload

import numpy as np

FEW = 100_000
LATELY = 1 << 13
"""Lookups of each kind that are remembered where there are more texts than `FEW`."""
AT_ONCE = 1 << 16
SUFFIXES = (".texts.npy", ".ends.npy")


def write_texts(texts: Iterable[str], stem: Path) -> None:
    """Two files that start with `stem`: the bytes of all, UTF-8, and where each ends."""
    coded = [text.encode() for text in texts]
    ends = np.cumsum([len(text) for text in coded], dtype=np.int64)
    size = np.min_scalar_type(int(ends[-1]) if len(ends) else 0)
    data, places = (stem.with_name(stem.name + suffix) for suffix in SUFFIXES)
    np.save(data, np.frombuffer(b"".join(coded), np.uint8))
    np.save(places, ends.astype(size))


def texts_of(data: Any, ends: Any) -> Sequence[str]:
    """What `write_texts` wrote, from its arrays. Raises `ValueError` where they do not belong together."""
    if len(data) != (int(ends[-1]) if len(ends) else 0):
        raise ValueError(f"{len(ends)} texts end elsewhere than their {len(data)} bytes")
    texts = Texts(data, ends)
    return tuple(texts) if len(texts) <= FEW else texts


class Texts(Sequence[str]):
    """The texts in `data` uint8 [bytes], UTF-8; `ends` uint [n] tells where each ends."""

    def __init__(self, data: Any, ends: Any) -> None:
        self._data, self._ends = memoryview(data), ends
        self._text = lru_cache(LATELY)(partial(_read, self._data, memoryview(ends)))

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, at: int) -> str: ...
    @overload
    def __getitem__(self, at: slice) -> tuple[str, ...]: ...
    def __getitem__(self, at: int | slice) -> str | tuple[str, ...]:
        rows = range(len(self))[at]
        return self._text(rows) if isinstance(rows, int) else tuple([self._text(row) for row in rows])

    def __iter__(self) -> Iterator[str]:
        begin = 0
        for start in range(0, len(self), AT_ONCE):
            for end in self._ends[start : start + AT_ONCE].tolist():
                yield str(self._data[begin:end], "utf-8")
                begin = end


def _read(data: memoryview, ends: memoryview, row: int) -> str:
    return str(data[ends[row - 1] if row else 0 : ends[row]], "utf-8")


class Lookup(Protocol):
    """Rows by text: a dict is one."""

    def __contains__(self, text: object, /) -> bool: ...

    @overload
    def get(self, text: str, /) -> int | None: ...
    @overload
    def get(self, text: str, other: int, /) -> int: ...


def lookup(texts: Sequence[str]) -> Lookup:
    """The rows of `texts`, all different."""
    if isinstance(texts, Texts):
        return HashedRows(texts)
    rows = {text: row for row, text in enumerate(texts)}
    return rows


class HashedRows:
    """Rows by text without the texts: they are sorted by Python's hash, 8 bytes each and 4 for the row."""

    def __init__(self, texts: Texts) -> None:
        hashes = np.fromiter((hash(text) for text in texts), np.int64, len(texts))
        order: Any = np.argsort(hashes).astype(np.int32)
        hashes_in_order: Any = hashes[order]
        self._row = lru_cache(LATELY)(partial(_find, texts, memoryview(hashes_in_order), memoryview(order)))

    def __contains__(self, text: object) -> bool:
        return isinstance(text, str) and self.get(text) is not None

    @overload
    def get(self, text: str) -> int | None: ...
    @overload
    def get(self, text: str, other: int) -> int: ...
    def get(self, text: str, other: int | None = None) -> int | None:
        try:
            return self._row(text)
        except KeyError:  # so that what is not there is not remembered either
            return other


def _find(texts: Texts, hashes: memoryview, order: memoryview, text: str) -> int:
    """Raises `KeyError` for a text that is not there."""
    wanted = hash(text)
    at = bisect_left(hashes, wanted)
    while at < len(hashes) and hashes[at] == wanted:
        if texts[order[at]] == text:
            return int(order[at])
        at += 1
    raise KeyError(text)

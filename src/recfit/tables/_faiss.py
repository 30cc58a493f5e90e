"""What the formats that FAISS searches share (Johnson et al., arXiv 1702.08734): the index proposes, the kept rows decide.

A table of the format `rows` lies beside the index, in `rows/`. The index holds codes of its own, made to be searched; the
`k_factor * k` items it thinks best are scored again from the rows, so that what a search says of an item is what `rescore`
says. Where it leaves fewer than k items that may be shown, every item is scored.

FAISS comes in when such a table is written or opened, never before.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from recfit.registry import find
from recfit.tables import opened
from recfit.topk import Found, best, top_k
from recfit.types import BundleError, ConfigError, FloatArray, IntArray, Rows

INDEX = "index.faiss"
ROWS = ("int8", "float32")
CODES = ("sq8", "float32")


class Settings(Protocol):
    """What every format here is told."""

    @property
    def dim(self) -> int: ...
    @property
    def rows(self) -> str: ...
    @property
    def k_factor(self) -> int: ...


def check(settings: Settings, **limits: tuple[int, int]) -> None:
    """Raise `ConfigError` for a setting that is out of its range or none of its choices."""
    where = type(settings).__module__.rsplit(".", 1)[1]
    for name, choices in (("rows", ROWS), ("codes", CODES)):
        if (value := getattr(settings, name, choices[0])) not in choices:
            raise ConfigError(f"{where}.{name} = {value!r}; allowed: {', '.join(choices)}")
    for name, (low, high) in {"k_factor": (1, 1000), **limits}.items():
        if not low <= (value := getattr(settings, name)) <= high:
            raise ConfigError(f"{where}.{name} = {value!r} is outside {low} to {high}; set it within")


@cache
def library() -> Any:
    """FAISS itself."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of its generated types, which say no module
            import faiss
    except ImportError as error:
        raise BundleError("this item table needs FAISS, which is not installed; pip install 'recfit[faiss]'") from error
    return faiss


@contextmanager
def limited(threads: int) -> Iterator[None]:
    """What the calling thread asks of FAISS meanwhile runs on `threads` OpenMP threads."""
    faiss = library()
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(threads)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


def fill(index: Any, vectors: FloatArray) -> None:
    """Train `index` on `vectors` and add them. One thread: more would give another index every time."""
    given = np.ascontiguousarray(vectors, dtype=np.float32)
    with limited(1):
        index.train(given)
        index.add(given)


def write(index: Any, vectors: FloatArray, directory: Path, settings: Settings) -> None:
    """Store a filled `index`, and `vectors` as rows."""
    table = find("tables", settings.rows)
    table.write(vectors, directory / "rows", table.Config(settings.dim))
    library().write_index(index, str(directory / INDEX))


def read(directory: Path) -> Any:
    """The index that `write` stored, in place: its codes, lists and links stay in the file, so that processes share them.
    (`IO_FLAG_MMAP` would do that for inverted lists alone, and start threads that read ahead for every search.)"""
    faiss = library()
    try:
        return faiss.read_index(str(directory / INDEX), faiss.IO_FLAG_MMAP_IFC)
    except RuntimeError as error:
        raise BundleError(f"FAISS cannot read {directory / INDEX}: {error}; export the bundle again") from error


class Indexed:
    """An index over the rows of another table."""

    def __init__(self, index: Any, directory: Path, settings: Settings, threads: int) -> None:
        table = opened(directory / "rows", {"format": settings.rows, "dim": settings.dim}, threads)
        self._index, self._k_factor, self._threads = index, settings.k_factor, threads
        self.rows, self.scores, self.matrix, self.rescore = table.rows, table.scores, table.matrix, table.rescore

    def search(self, queries: FloatArray, k: int, gone: Sequence[Rows]) -> list[Found]:
        asked = self._k_factor * k + max(map(len, gone))
        if asked >= self._index.ntotal:
            return best(self.scores(queries), k, gone)
        with limited(self._threads):
            items: IntArray = self._index.search(queries, asked)[1]
        items.sort(axis=1)  # so that ties go to the lower row; -1 where the index found no more
        scores = self.rescore(queries, np.maximum(items, 0))
        scores[items < 0] = -np.inf
        found = []
        for query, line, values, rows in zip(queries, items, scores, gone, strict=True):
            place = np.minimum(np.searchsorted(line, rows), len(line) - 1)  # where it is, if it is among them
            values[place[line[place] == rows]] = -np.inf
            at, kept = top_k(values, k)
            found.append((line[at], kept) if len(at) == k else best(self.scores(query[None]), k, [rows])[0])
        return found

"""A navigable graph of items: a search walks from neighbour to neighbour towards the query (Malkov and Yashunin, arXiv
1603.09320; FAISS). About 8 m bytes an item for the links, and the codes that the walk compares: d bytes (`sq8`) or 4 d.

Inner products are no distance: items of small norm have few links that lead to them, and where norms differ much they are
missed more often than the recall over all says.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from recfit.tables import _faiss
from recfit.types import FloatArray

APPROXIMATE = True


@dataclass(frozen=True)
class Config:
    """`m` links an item (twice as many on the lowest layer), the best of `ef_construction`; a search keeps the `ef_search`
    best it has seen. The rows kept are `rows`, and score the `k_factor * k` items that come out of the walk."""

    dim: int
    rows: str = "int8"
    codes: str = "sq8"
    m: int = 16
    ef_construction: int = 40
    ef_search: int = 64
    k_factor: int = 2

    def __post_init__(self) -> None:
        _faiss.check(self, m=(2, 256), ef_construction=(1, 10_000), ef_search=(1, 100_000))


def write(vectors: FloatArray, directory: Path, config: Config) -> None:
    faiss = _faiss.library()
    metric = faiss.METRIC_INNER_PRODUCT
    if config.codes == "sq8":
        index = faiss.IndexHNSWSQ(config.dim, faiss.ScalarQuantizer.QT_8bit, config.m, metric)
    else:
        index = faiss.IndexHNSWFlat(config.dim, config.m, metric)
    index.hnsw.efConstruction = config.ef_construction
    _faiss.fill(index, vectors)
    _faiss.write(index, vectors, directory, config)


def open_table(directory: Path, config: Config, threads: int) -> _faiss.Indexed:
    index = _faiss.read(directory)
    index.hnsw.efSearch = config.ef_search
    return _faiss.Indexed(index, directory, config, threads)

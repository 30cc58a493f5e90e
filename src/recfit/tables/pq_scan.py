"""All items scanned as product-quantized codes of 4 bits, 32 items at a time, with look-up tables that stay in registers
(Jegou et al., TPAMI 2011; André et al., VLDB 2015; FAISS's fast scan). d / (2 `width`) bytes an item: at `width` 2 a
sixteenth of float32. So coarse a scan only proposes; the kept rows score what it found again.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from recfit.tables import _faiss
from recfit.types import FloatArray, Unsupported

APPROXIMATE = True
BITS = 4
CENTROIDS = 2**BITS


@dataclass(frozen=True)
class Config:
    """`width` numbers of a row share a code of 4 bits. The rows kept are `rows`, and score the `k_factor * k` items that
    the codes like best."""

    dim: int
    rows: str = "int8"
    width: int = 2
    k_factor: int = 20

    def __post_init__(self) -> None:
        _faiss.check(self, width=(1, 64))


def write(vectors: FloatArray, directory: Path, config: Config) -> None:
    if len(vectors) < CENTROIDS:
        raise Unsupported(
            f"codes of {BITS} bits need {CENTROIDS} items, these are {len(vectors)}; keep them as float32"
        )
    if config.dim % config.width:
        raise Unsupported(f"rows of {config.dim} numbers do not part into codes of {config.width}; pass another width")
    faiss = _faiss.library()
    index = faiss.IndexPQFastScan(config.dim, config.dim // config.width, BITS, faiss.METRIC_INNER_PRODUCT)
    index.pq.cp.min_points_per_centroid = 1
    _faiss.fill(index, vectors)
    _faiss.write(index, vectors, directory, config)


def open_table(directory: Path, config: Config, threads: int) -> _faiss.Indexed:
    return _faiss.Indexed(_faiss.read(directory), directory, config, threads)

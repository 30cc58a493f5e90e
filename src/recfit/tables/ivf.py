"""Inverted lists: every item is in the list of the centroid nearest to it, a search scans the `nprobe` lists nearest to the
query (Sivic and Zisserman, ICCV 2003; FAISS). Codes of d bytes (`sq8`, of what is left of a row without its centroid) or
4 d, and 8 bytes for an item's number.

Lists are made by distance, probes chosen by inner product. Made by inner product too, as FAISS does by default, lists mix
short rows with long ones, and as many probes find less (`benchmarks/probes.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isqrt
from pathlib import Path

from recfit.tables import _faiss
from recfit.types import FloatArray

APPROXIMATE = True
# Items a centroid is trained on: at least, for there to be something to average; at most, for more changes nothing.
FEWEST, MOST = 39, 64


@dataclass(frozen=True)
class Config:
    """`nlist` lists (0: four times the root of the number of items), `nprobe` of them are scanned. The rows kept are
    `rows`, and score the `k_factor * k` best of what was scanned."""

    dim: int
    rows: str = "int8"
    codes: str = "sq8"
    nlist: int = 0
    nprobe: int = 32
    k_factor: int = 2

    def __post_init__(self) -> None:
        _faiss.check(self, nlist=(0, 10**7), nprobe=(1, 10**7))


def write(vectors: FloatArray, directory: Path, config: Config) -> None:
    faiss = _faiss.library()
    metric, centroids = faiss.METRIC_INNER_PRODUCT, faiss.IndexFlatL2(config.dim)
    nlist = max(1, min(config.nlist or 4 * isqrt(len(vectors)), len(vectors) // FEWEST))
    if config.codes == "sq8":
        bits = faiss.ScalarQuantizer.QT_8bit
        index = faiss.IndexIVFScalarQuantizer(centroids, config.dim, nlist, bits, metric)
    else:
        index = faiss.IndexIVFFlat(centroids, config.dim, nlist, metric)
    index.cp.min_points_per_centroid, index.cp.max_points_per_centroid = 1, MOST
    index.cp.spherical = False
    _faiss.fill(index, vectors)
    probes = faiss.IndexFlatIP(config.dim)
    probes.add(centroids.reconstruct_n(0, nlist))
    index.quantizer = probes
    _faiss.write(index, vectors, directory, config)


def open_table(directory: Path, config: Config, threads: int) -> _faiss.Indexed:
    index = _faiss.read(directory)
    index.nprobe = config.nprobe
    return _faiss.Indexed(index, directory, config, threads)

"""Rows as one code for each part of the vector, each code a row of that part's codebook (product quantization: Jégou,
Douze and Schmid, TPAMI 2011): `parts` bytes a row, half of that for 16 codes, + 2 bytes for each number of the codebooks.

With `rotate` the codes are those of `vectors @ R`, R learned with them (OPQ: Ge et al., CVPR 2013) and stored, 2 bytes a
number. Learning takes FAISS, reading does not.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from recfit.tables import _coded
from recfit.tables._coded import Coded, Layout, row_nodes
from recfit.tables._learning import Codes, codebooks, coded_rotation, in_parts
from recfit.types import ConfigError, FloatArray, Unsupported

__all__ = ["Config", "open_table", "row_nodes", "write", "write_codes"]

PACKED = 16  # codes of which two fit in a byte


@dataclass(frozen=True)
class Config:
    """`parts` codes a row, each one of `codes` centroids."""

    dim: int
    parts: int = 8
    codes: int = 256
    rotate: bool = False

    def __post_init__(self) -> None:
        if self.parts < 1 or not 2 <= self.codes <= 256:
            raise ConfigError(f"pq has parts = {self.parts}, codes = {self.codes}; give 1 part or more, 2 to 256 codes")

    @property
    def layout(self) -> Layout:
        """Parts that would hold nothing but zeros are left out."""
        width = -(-self.dim // self.parts)
        return Layout(self.dim, -(-self.dim // width), width, self.codes <= PACKED)


def write(vectors: FloatArray, directory: Path, config: Config) -> None:
    parts, width = config.layout.parts, config.layout.width
    basis = coded_rotation(vectors, parts, config.codes) if config.rotate else None
    turned = vectors if basis is None else vectors @ basis
    write_codes(*codebooks(in_parts(turned, parts, width), config.codes), directory, config, basis)


def write_codes(
    codes: Codes, centroids: FloatArray, directory: Path, config: Config, basis: FloatArray | None = None
) -> None:
    """Store `codes` [n, parts] of `centroids` [parts, count, width], the numbers of these in half precision."""
    if not np.abs(centroids).max() <= np.finfo(np.float16).max:
        raise Unsupported("the item vectors are too large for the half precision of a codebook; store table='int8'")
    _coded.write(directory, config.layout, codes, centroids, basis=basis)


def open_table(directory: Path, config: Config, threads: int) -> Coded:
    return Coded(directory, config.layout, threads, turned=config.rotate)

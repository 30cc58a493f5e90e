"""Rows as the signs of their numbers with one float scale a row: 1 bit a number + 4 bytes a row.

`scale_i = mean|v_i|` makes `scale_i * sign(v_i)` the nearest such row (Rastegari et al., arXiv 1603.05279). With
`rotate` the signs are those of `vectors @ R`, R learned so that they hold the most (ITQ: Gong and Lazebnik, CVPR 2011) and
stored, 2 bytes a number. Eight signs are one of 256 codes, so that the scans of `_coded` serve here too.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from recfit.tables import _coded
from recfit.tables._coded import Coded, Layout, row_nodes
from recfit.tables._learning import SAMPLE, rotation
from recfit.types import FloatArray

__all__ = ["Config", "open_table", "row_nodes", "write"]

# What a byte stands for, its lowest bit first; every part's codebook: float32 [1, 256, 8].
SIGNS = ((np.arange(256)[:, None] >> np.arange(8) & 1) * 2 - 1).astype(np.float32)[None]


@dataclass(frozen=True)
class Config:
    dim: int
    rotate: bool = True

    @property
    def layout(self) -> Layout:
        return Layout(self.dim, -(-self.dim // 8), 8)


def write(vectors: FloatArray, directory: Path, config: Config) -> None:
    basis = rotation(vectors[:: -(-len(vectors) // SAMPLE)], _nearest) if config.rotate else None
    turned = vectors if basis is None else vectors @ basis
    codes = np.packbits(turned > 0, axis=1, bitorder="little")
    scales = np.abs(turned).mean(axis=1).astype(np.float32)
    _coded.write(directory, config.layout, codes, SIGNS, scales=scales, basis=basis, known=True)


def _nearest(vectors: FloatArray) -> FloatArray:
    """Signs with one scale a row."""
    nearest: FloatArray = np.where(vectors > 0, 1.0, -1.0) * np.abs(vectors).mean(axis=1, keepdims=True)
    return nearest


def open_table(directory: Path, config: Config, threads: int) -> Coded:
    return Coded(directory, config.layout, threads, centroids=SIGNS, scaled=True, turned=config.rotate)

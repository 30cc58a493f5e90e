"""The graph as it was exported: 4 bytes a number."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recfit.graphs._feed import Feed
from recfit.graphs._layers import Layer, initializer
from recfit.types import FloatArray


@dataclass(frozen=True)
class Config:
    pass


def convert(path: Path, config: Config, feed: Feed) -> None:
    """Nothing to do."""


def weights(graph: Any, layer: Layer) -> FloatArray:
    found: FloatArray = initializer(graph, layer.weight)
    return found

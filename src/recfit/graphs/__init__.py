"""Storage formats of a stage's ONNX graph: one file each, the file's name is its key in a pipeline.

A format's file offers

* `Config`: a frozen dataclass of its settings; where it quantizes, `skip` names the layers that stay float32;
* `convert(path, config, feed)`: rewrites the float32 graph at `path`, or refuses with `Unsupported` one in which it finds
  nothing to store in fewer bits. `feed()` gives inputs of the graph, for formats that look at activations;
* `ALONE = True` where activations of requests that run together share numbers, so that each must run alone;
* `FOLDED = False` where ONNX Runtime does not work out products with constants once, when it opens a graph;
* `weights(graph, layer)`: what a converted graph keeps of a layer's weights, widened to float32.

A *layer* is a node of the graph that meets a matrix of constants: a product with it, or a look-up of its rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from recfit.graphs._feed import Feed, Inputs, calibration
from recfit.graphs._layers import Layer, layers
from recfit.graphs._report import LayerError, report
from recfit.options import from_options
from recfit.registry import find, names

__all__ = [
    "Feed",
    "Inputs",
    "Layer",
    "LayerError",
    "calibration",
    "config_of",
    "convert",
    "folded",
    "layers",
    "report",
    "runnable",
]


def folded(name: str) -> bool:
    """Whether what a graph of this format makes of constants alone is worked out once, when it is opened."""
    return bool(getattr(find("graphs", name), "FOLDED", True))


def config_of(name: str, options: Mapping[str, Any]) -> Any:
    """The settings of the format `name`; a wrong one is answered with what is allowed."""
    return from_options(find("graphs", name).Config, options, f"graph.{name}")


def convert(path: Path, name: str, options: Mapping[str, Any], feed: Feed) -> None:
    """Rewrite the float32 graph at `path` in the format `name`."""
    find("graphs", name).convert(path, config_of(name, options), feed)


def runnable(runtime: str) -> tuple[str, ...]:
    """The formats that a file of `runtimes/` runs: all, unless it names them in `GRAPHS`."""
    found: tuple[str, ...] = getattr(find("runtimes", runtime), "GRAPHS", names("graphs"))
    return found

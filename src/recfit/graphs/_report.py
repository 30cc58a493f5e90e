"""What a format does to each layer of a graph, alone."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from recfit.graphs._feed import Feed
from recfit.graphs._layers import initializer, layers
from recfit.options import from_options
from recfit.registry import find
from recfit.runtimes import ort
from recfit.types import Unsupported

Outputs = list[npt.NDArray[np.float64]]


@dataclass(frozen=True)
class LayerError:
    """`sqnr_db = 10 log10(sum w^2 / sum (w - w_q)^2)` and `max_error = max |w - w_q|` of a layer's weights, and
    `divergence = |y - y_q| / |y|` of the graph's output when this layer alone is quantized: its sensitivity."""

    layer: str
    sqnr_db: float
    max_error: float
    divergence: float


def report(path: Path, name: str, options: Mapping[str, Any], feed: Feed) -> list[LayerError]:
    """What the format `name` does to each layer of the float32 graph at `path` that it would quantize, whatever
    `options["skip"]` says; the layer that moves the output most comes first."""
    import onnx

    module, graph = find("graphs", name), onnx.load(path).graph
    every, wanted = layers(graph), _outputs(path, feed)
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for layer in every:
            alone = Path(folder) / "alone.onnx"
            alone.write_bytes(path.read_bytes())
            others = [other.name for other in every if other != layer]
            config = from_options(module.Config, {**options, "skip": others}, f"graph.{name}")
            try:
                module.convert(alone, config, feed)
            except Unsupported:  # a layer that this format leaves as it is
                continue
            weights = initializer(graph, layer.weight).astype(np.float64)
            error = weights - module.weights(onnx.load(alone).graph, layer)
            moved = _distance(wanted, _outputs(alone, feed))
            found.append(LayerError(layer.name, _decibels(weights, error), float(np.abs(error).max()), moved))
    return sorted(found, key=lambda part: -part.divergence)


def _outputs(path: Path, feed: Feed) -> Outputs:
    session = ort.session(path)
    return [session.run(None, inputs)[0].astype(np.float64).ravel() for inputs in feed()]


def _distance(wanted: Outputs, given: Outputs) -> float:
    """The relative error of all outputs together."""
    whole = np.concatenate(wanted)
    return float(np.linalg.norm(whole - np.concatenate(given)) / max(float(np.linalg.norm(whole)), 1e-30))


def _decibels(weights: npt.NDArray[np.float64], error: npt.NDArray[np.float64]) -> float:
    """The ratio of signal to noise, 200 at most: float32 itself has 140 to 150."""
    noise, signal = float(np.square(error).sum()), float(np.square(weights).sum())
    return 200.0 if noise == 0 else min(200.0, 10 * float(np.log10(max(signal, 1e-300) / noise)))

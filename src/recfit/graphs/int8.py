"""int8 weights, and activations that are quantized to 8 bits in every run (dynamic): `x w ~ s_x s_w (q_x - z_x) q_w` with
`s_w = max|w| / 64` (Jacob et al., arXiv 1712.05877, eq. 1-7). Asymmetric weights have a zero point too: `s_w (q_w - z_w)`
with `s_w = (max(w, 0) - min(w, 0)) / 128`.

Weights of products keep to 7 bits, -64 to 64 either way: processors without VNNI add two products of 8 bits in 16, where
larger ones saturate; what zero points take off is added up in 32 bits.
Looked-up rows are 8 bits with a zero point. Stacks of matrices are 8 bits on disk and float32 in a run (`_stacks`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recfit.graphs import _stacks
from recfit.graphs._feed import Feed
from recfit.graphs._layers import Layer, chosen
from recfit.graphs._quantizer import GRANULARITIES, RANGES, named, quiet, stored
from recfit.options import check_choice
from recfit.types import FloatArray

ALONE = True


@dataclass(frozen=True)
class Config:
    """Weights of a product share a scale `per` channel of its output, or all of them (`tensor`); their steps go from
    `-max|w|` to `max|w|`, or from the least to the largest (`asymmetric`)."""

    per: str = "channel"
    weights: str = "symmetric"
    skip: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_choice("graph.int8.per", self.per, GRANULARITIES)
        check_choice("graph.int8.weights", self.weights, RANGES)


def convert(path: Path, config: Config, feed: Feed) -> None:
    from onnx import TensorProto, load
    from onnxruntime.quantization import QuantType, quantize_dynamic

    matrices = _stacks.store_at(path, chosen(load(path).graph, config.skip))
    if not matrices:
        return
    with quiet():
        quantize_dynamic(
            path,
            path,
            weight_type=QuantType.QInt8,
            per_channel=config.per == "channel",
            reduce_range=True,
            op_types_to_quantize=["MatMul", "Gemm", "Gather"],
            nodes_to_quantize=named(matrices),
            extra_options={
                "DefaultTensorType": TensorProto.FLOAT,  # of what comes out of ONNX Runtime's own operators
                "WeightSymmetric": config.weights == "symmetric",
            },
        )


def weights(graph: Any, layer: Layer) -> FloatArray:
    if _stacks.is_stack(layer):
        return _stacks.weights(graph, layer)
    # A `Gemm` has become a product with the transposed matrix.
    plain = Layer(layer.name, layer.op, layer.weight, layer.shape)
    found = stored(graph, plain)
    return found.T if layer.transposed else found

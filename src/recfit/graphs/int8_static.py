"""int8 weights as in `int8`, and activations with scales that are set once, from what they were on calibration requests
(static): nothing is looked at in a run, so that requests of a batch don't meet.

The range of an activation is its extremes (`minmax`), what all but a few of its values keep to (`percentile`), or the one
whose histogram in 8 bits diverges least from the full one (`entropy`; Migacz, "8-bit inference with TensorRT", GTC 2017).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recfit.graphs import _stacks
from recfit.graphs._feed import Feed, Inputs
from recfit.graphs._layers import Layer, chosen
from recfit.graphs._quantizer import GRANULARITIES, RANGES, named, quiet, stored
from recfit.options import check_choice
from recfit.types import FloatArray

METHODS = {"minmax": "MinMax", "percentile": "Percentile", "entropy": "Entropy"}
PERCENTILE = 99.99
PRODUCTS = ["MatMul", "Gemm"]

FOLDED = False


@dataclass(frozen=True)
class Config:
    """`activations` are 0 to 255 with a zero point of their own, or 128 (`symmetric`); `per` and `weights` as in `int8`."""

    calibration: str = "minmax"
    activations: str = "asymmetric"
    per: str = "channel"
    weights: str = "symmetric"
    skip: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_choice("graph.int8_static.calibration", self.calibration, tuple(METHODS))
        check_choice("graph.int8_static.activations", self.activations, RANGES[::-1])
        check_choice("graph.int8_static.per", self.per, GRANULARITIES)
        check_choice("graph.int8_static.weights", self.weights, RANGES)


def convert(path: Path, config: Config, feed: Feed) -> None:
    import onnx
    from onnxruntime.quantization import CalibrationMethod, QuantType, quantize_static

    matrices = _stacks.store_at(path, chosen(onnx.load(path).graph, config.skip))
    if not matrices:
        return
    model = onnx.load(path)
    _declare(model.graph, matrices)
    onnx.save(model, path)
    symmetric = config.activations == "symmetric"
    with quiet():
        quantize_static(
            path,
            path,
            _Reader(list(feed())),
            calibrate_method=CalibrationMethod[METHODS[config.calibration]],
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            per_channel=config.per == "channel",
            reduce_range=True,
            op_types_to_quantize=[*PRODUCTS, "Gather"],
            nodes_to_quantize=named(matrices),
            extra_options={
                "ActivationSymmetric": symmetric,
                "CalibTensorRangeSymmetric": symmetric,
                "CalibPercentile": PERCENTILE,
                "CalibStridedMinMax": 1,  # each request has a length of its own
                "OpTypesToExcludeOutputQuantization": PRODUCTS,  # sums, norms and attention run in float32
                "TensorQuantOverrides": _ranges(matrices, config),
            },
        )


def _ranges(layers: Sequence[Layer], config: Config) -> dict[str, Any]:
    """What the quantizer is told of each asymmetric weight. It would keep channels symmetric, for a product that gives
    8 bits; these give float32 and take a zero point for each channel."""
    if config.weights == "symmetric":
        return {}
    return {
        layer.weight: [{"symmetric": False, **({"axis": layer.channels} if config.per == "channel" else {})}]
        for layer in layers
        if layer.op in PRODUCTS
    }


def _declare(graph: Any, layers: Sequence[Layer]) -> None:
    """Say that what `layers` take is float32, where ONNX can't know: it comes out of ONNX Runtime's own operators."""
    from onnx import TensorProto, helper

    known = {value.name for value in (*graph.value_info, *graph.input)}
    names = {layer.name for layer in layers if layer.op in PRODUCTS}
    taken = dict.fromkeys(node.input[0] for node in graph.node if node.name in names)
    graph.value_info.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in taken if name not in known
    )


class _Reader:
    """Calibration requests, in parts."""

    def __init__(self, requests: Sequence[Inputs]) -> None:
        self._requests, self._left = requests, iter(requests)

    def __len__(self) -> int:
        return len(self._requests)

    def set_range(self, start_index: int, end_index: int) -> None:
        self._left = iter(self._requests[start_index:end_index])

    def get_next(self) -> Inputs | None:
        return next(self._left, None)


def weights(graph: Any, layer: Layer) -> FloatArray:
    return _stacks.weights(graph, layer) if _stacks.is_stack(layer) else stored(graph, layer)

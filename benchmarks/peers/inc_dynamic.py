"""Intel Neural Compressor for ONNX: dynamic quantization."""

from __future__ import annotations

from benchmarks.peers.given import Given

SHOWN = "Neural Compressor, dynamic int8"
NEEDS = ("onnx_neural_compressor", "onnxruntime")
RUNTIME = "ort"
CANNOT = "what the static row cannot"


def make(given: Given) -> None:
    # user code
    from onnx_neural_compressor.quantization import config, quantize
    from onnxruntime.quantization import QuantType

    settings = config.DynamicQuantConfig(weight_type=QuantType.QUInt8)
    quantize(str(given.graph), str(given.output / "model.onnx"), settings)
    # end of user code

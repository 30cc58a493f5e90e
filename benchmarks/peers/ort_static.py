"""ONNX Runtime's static quantization: activations have the scales of calibration histories."""

from __future__ import annotations

from benchmarks.peers.given import Given

SHOWN = "ONNX Runtime, static int8"
NEEDS = ("onnxruntime", "onnx")
RUNTIME = "ort"
CANNOT = (
    "what the dynamic row cannot; calibrate by percentile or entropy with histories of different lengths; quantize a "
    "product of activations in the operator format"
)


def make(given: Given) -> None:
    # user code
    from onnx import TensorProto, load
    from onnxruntime.quantization import (
        CalibrationDataReader,
        CalibrationMethod,
        QuantFormat,
        QuantType,
        quantize_static,
    )

    class Histories(CalibrationDataReader):
        def __init__(self) -> None:
            self.left = iter(given.calibration)

        def get_next(self) -> dict[str, object] | None:
            tokens = next(self.left, None)
            return None if tokens is None else {"history": tokens}

    graph = load(given.graph).graph
    stacked = {weight.name for weight in graph.initializer if len(weight.dims) > 2}
    quantize_static(
        given.graph,
        given.output / "model.onnx",
        Histories(),
        quant_format=QuantFormat.QDQ,
        calibrate_method=CalibrationMethod.MinMax,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QUInt8,  # and one scale a matrix: a scale a column takes twice the time here
        op_types_to_quantize=["MatMul", "Gemm", "Gather"],
        nodes_to_exclude=[node.name for node in graph.node if stacked & set(node.input)],
        extra_options={"DefaultTensorType": TensorProto.FLOAT},
    )
    # end of user code

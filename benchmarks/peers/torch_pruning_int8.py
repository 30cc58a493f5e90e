"""The peers chained: what Torch-Pruning left, quantized by ONNX Runtime."""

from __future__ import annotations

from benchmarks.peers import torch_pruning
from benchmarks.peers.given import Given

SHOWN = "Torch-Pruning, then ONNX Runtime, dynamic int8"
NEEDS = torch_pruning.NEEDS
RUNTIME = "ort"
CANNOT = "be found but by hand: neither knows the other, nor the time or the quality of the whole"
AFTER = "torch_pruning"


def make(given: Given) -> None:
    torch_pruning.make(given)
    # user code
    from onnx import TensorProto, load
    from onnxruntime.quantization import QuantType, quantize_dynamic

    path = given.output / "model.onnx"
    graph = load(path).graph
    stacked = {weight.name for weight in graph.initializer if len(weight.dims) > 2}
    quantize_dynamic(
        path,
        path,
        weight_type=QuantType.QUInt8,
        op_types_to_quantize=["MatMul", "Gemm", "Gather"],
        nodes_to_exclude=[node.name for node in graph.node if stacked & set(node.input)],
        extra_options={"DefaultTensorType": TensorProto.FLOAT},
    )
    # end of user code

"""ONNX Runtime's dynamic quantization of the whole graph, item table included."""

from __future__ import annotations

from benchmarks.peers.given import Given

SHOWN = "ONNX Runtime, dynamic int8"
NEEDS = ("onnxruntime", "onnx")
RUNTIME = "ort"
CANNOT = (
    "shrink a model; keep the item table once (its lookup and its product get a copy each); look at quality or time"
)


def make(given: Given) -> None:
    # user code
    from onnx import TensorProto, load
    from onnxruntime.quantization import QuantType, quantize_dynamic

    graph = load(given.graph).graph
    stacked = {weight.name for weight in graph.initializer if len(weight.dims) > 2}
    quantize_dynamic(
        given.graph,
        given.output / "model.onnx",
        weight_type=QuantType.QUInt8,  # without VNNI, products of 8 x 8 bits saturate where one side is signed
        op_types_to_quantize=["MatMul", "Gemm", "Gather"],
        nodes_to_exclude=[node.name for node in graph.node if stacked & set(node.input)],  # no int8 kernel for these
        extra_options={"DefaultTensorType": TensorProto.FLOAT},
    )
    # end of user code

"""Olive: a workflow of one pass. Its dynamic quantization is ONNX Runtime's, after its own shape inference."""

from __future__ import annotations

from benchmarks.peers.given import Given

SHOWN = "Olive, dynamic int8"
NEEDS = ("olive", "onnxruntime")
RUNTIME = "ort"
CANNOT = (
    "quantize better than ONNX Runtime does; prune or distil what is no language model; install whole (`requests` is "
    "missing); say by an exit code that nothing met a goal"
)


def make(given: Given) -> None:
    # user code
    from olive import run

    quantize = {
        "type": "OnnxDynamicQuantization",
        "precision": "uint8",
        "op_types_to_quantize": ["MatMul", "Gemm", "Gather"],
    }
    run(
        {
            "input_model": {"type": "ONNXModel", "model_path": str(given.graph)},
            "passes": {"quantize": quantize},
            "output_dir": str(given.output),
            "cache_dir": str(given.output.with_suffix(".cache")),
        }
    )
    # end of user code

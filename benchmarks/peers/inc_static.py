"""Intel Neural Compressor for ONNX (onnx-neural-compressor; INC itself dropped ONNX with 3.0): static quantization."""

from __future__ import annotations

from benchmarks.peers.given import Given

SHOWN = "Neural Compressor, static int8"
NEEDS = ("onnx_neural_compressor", "onnxruntime")
RUNTIME = "ort"
CANNOT = (
    "install beside NumPy 2 without --no-deps, though it runs there; shrink a model (pruning, distillation and search "
    "went with 3.0); measure time or bytes: its tuning ends at the first setting that keeps the accuracy, and "
    "the process with exit code 0 where none does"
)


def make(given: Given) -> None:
    # user code
    from onnx import load
    from onnx_neural_compressor import data_reader
    from onnx_neural_compressor.quantization import config, quantize
    from onnxruntime.quantization import QuantType

    class Histories(data_reader.CalibrationDataReader):
        def __init__(self) -> None:
            self.rewind()

        def get_next(self) -> dict[str, object] | None:
            tokens = next(self.left, None)
            return None if tokens is None else {"history": tokens}

        def rewind(self) -> None:
            self.left = iter(given.calibration)

    graph = load(given.graph).graph
    stacked = {weight.name for weight in graph.initializer if len(weight.dims) > 2}
    settings = config.StaticQuantConfig(
        Histories(),
        calibration_sampling_size=len(given.calibration),
        weight_type=QuantType.QUInt8,
        per_channel=True,
        nodes_to_exclude=[node.name for node in graph.node if stacked & set(node.input)],  # would not load
    )
    quantize(str(given.graph), str(given.output / "model.onnx"), settings)
    # end of user code

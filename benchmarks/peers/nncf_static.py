"""NNCF's post-training quantization, served by OpenVINO."""

from __future__ import annotations

from benchmarks.peers.given import Given

SHOWN = "NNCF, static int8 (OpenVINO)"
NEEDS = ("nncf", "openvino")
RUNTIME = "openvino_scores"
CANNOT = (
    "shrink a model (pruning, distillation and search left with NNCF 3.0); measure time; be served without OpenVINO"
)


def make(given: Given) -> None:
    # user code
    import nncf
    import openvino
    import torch

    original = openvino.convert_model(given.model, example_input=torch.ones(1, 4, dtype=torch.long))
    histories = nncf.Dataset(given.calibration)
    quantized = nncf.quantize(
        original, histories, model_type=nncf.ModelType.TRANSFORMER, preset=nncf.QuantizationPreset.MIXED
    )
    openvino.save_model(quantized, given.output / "model.xml")
    # end of user code

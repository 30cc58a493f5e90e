"""NNCF's weight compression: 8 bits in store, products in float."""

from __future__ import annotations

from benchmarks.peers.given import Given

SHOWN = "NNCF, weights int8 (OpenVINO)"
NEEDS = ("nncf", "openvino")
RUNTIME = "openvino_scores"
CANNOT = "what the static row cannot"


def make(given: Given) -> None:
    # user code
    import nncf
    import openvino
    import torch

    original = openvino.convert_model(given.model, example_input=torch.ones(1, 4, dtype=torch.long))
    compressed = nncf.compress_weights(original, mode=nncf.CompressWeightsMode.INT8_ASYM)
    openvino.save_model(compressed, given.output / "model.xml")
    # end of user code

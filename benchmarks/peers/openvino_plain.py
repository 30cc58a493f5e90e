"""OpenVINO with nothing compressed: what the runtime alone is worth."""

from __future__ import annotations

from benchmarks.peers.given import Given

SHOWN = "OpenVINO, as it comes"
NEEDS = ("openvino",)
RUNTIME = "openvino_scores"
CANNOT = "compress by itself beyond storing halves"


def make(given: Given) -> None:
    # user code
    import openvino
    import torch

    original = openvino.convert_model(given.model, example_input=torch.ones(1, 4, dtype=torch.long))
    openvino.save_model(original, given.output / "model.xml", compress_to_fp16=False)
    # end of user code

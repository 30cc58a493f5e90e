"""NNCF's quantization with accuracy control: layers go back to float until no more than 1 % of NDCG@10 is lost."""

from __future__ import annotations

from collections.abc import Iterable

from benchmarks.peers.given import Given, Judged

SHOWN = "NNCF, accuracy control (OpenVINO)"
NEEDS = ("nncf", "openvino")
RUNTIME = "openvino_scores"
CANNOT = "what the static row cannot; say by a return value that the limit was missed"


def make(given: Given) -> None:
    # user code
    import nncf
    import openvino
    import torch

    def ndcg(model: openvino.CompiledModel, requests: Iterable[Judged]) -> tuple[float, list[float]]:
        found = [request.ndcg(model(request.tokens)[0]) for request in requests]
        return sum(found) / len(found), found

    original = openvino.convert_model(given.model, example_input=torch.ones(1, 4, dtype=torch.long))
    quantized = nncf.quantize_with_accuracy_control(
        original,
        nncf.Dataset(given.calibration),
        nncf.Dataset(given.judged, lambda request: request.tokens),
        ndcg,
        max_drop=0.01,
        drop_type=nncf.DropType.RELATIVE,
        model_type=nncf.ModelType.TRANSFORMER,
    )
    openvino.save_model(quantized, given.output / "model.xml")
    # end of user code

"""Every family exports to ONNX with a free batch size and a free history length."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from conftest import VARIANTS, requests, rows_of
from recfit.models import Model, Ranker, as_module

Make = Callable[[str], Model]

METHODS = [(name, "score" if kind == "neumf" else "encode") for name, (kind, _) in VARIANTS.items()]
METHODS += [(name, "encode_vectors") for name, (kind, _) in VARIANTS.items() if kind in ("sasrec", "mlp", "als")]


class Call(nn.Module):
    """One method of a model as `forward` with positional arguments."""

    def __init__(self, model: Model, method: str, names: list[str]) -> None:
        super().__init__()
        self.model, self.method, self.names = as_module(model), method, names

    def forward(self, *arguments: Tensor) -> Tensor:
        answer: Tensor = getattr(self.model, self.method)(**dict(zip(self.names, arguments, strict=True)))
        return answer


def arguments(model: Model, method: str, batch: int, length: int) -> dict[str, Tensor]:
    given = requests(model, batch, length)
    if isinstance(model, Ranker):
        items = torch.randint(0, 26, (batch, length + 1), generator=torch.Generator().manual_seed(0))
        return {"items": items, **given}
    if method == "encode_vectors":
        given["vectors"] = rows_of(model, given["history"])
    return given


def session(model: Model, method: str) -> tuple[Any, Call]:
    example = arguments(model, method, 2, 4)
    call = Call(model, method, list(example)).eval()
    axes = {
        name: {0: "batch"} | ({1: "length"} if name != "user" else {}) for name in example if name != "user_features"
    }
    target = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch announces that this exporter will change
        torch.onnx.export(
            call,
            tuple(example.values()),
            target,  # type: ignore[arg-type]
            input_names=list(example),
            output_names=["output"],
            dynamic_axes={**axes, "user_features": {0: "batch"}, "output": {0: "batch"}},
            opset_version=17,
            dynamo=False,
        )
    return onnxruntime.InferenceSession(target.getvalue(), providers=["CPUExecutionProvider"]), call


@pytest.mark.parametrize(("name", "method"), METHODS)
def test_onnx_agrees_at_every_batch_and_length(make: Make, name: str, method: str) -> None:
    model = make(name)
    runtime, call = session(model, method)
    for batch, length in ((1, 1), (1, 9), (3, 1), (5, 6), (2, 9)):
        given = arguments(model, method, batch, length)
        feeds = {key: value.numpy() for key, value in given.items()}
        assert {node.name for node in runtime.get_inputs()} == set(feeds)
        (output,) = runtime.run(None, feeds)
        np.testing.assert_allclose(output, call(*given.values()).detach().numpy(), rtol=1e-4, atol=1e-4)

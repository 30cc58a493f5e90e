"""A stage's model as an ONNX graph with dynamic batch, history and candidate lengths."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from recfit.models import Tied
from recfit.pipeline import Stage

OPSET = 17


def write_graph(stage: Stage, path: Path, *, remembers: int = 0, ahead: bool = False) -> None:
    """The ONNX graph of a stage, with dynamic batch, history and candidate lengths.

    With `remembers` it goes on from so many numbers of each event before, `past`, and gives those of the new ones, `left`. With
    `ahead` it takes the vectors of all tokens, `table`, instead of a history's, `vectors`.
    """
    names, arguments = example_inputs(stage)
    outputs = {"output": {0: "batch"}}
    if remembers:
        names.append("past")
        arguments.append(torch.zeros(2, 3, remembers))
        outputs["left"] = {0: "batch", 1: "history"}
    if ahead:
        names[-1], arguments[-1] = "table", torch.zeros(2, arguments[-1].shape[-1])
    axes = {
        name: dict(enumerate(("batch", name)[: argument.ndim])) for name, argument in zip(names, arguments, strict=True)
    }
    if "vectors" in axes:
        axes["vectors"] = axes["history"]
    if "table" in axes:
        axes["table"] = {0: "tokens"}
    module = _Graph(stage, names).eval()
    with warnings.catch_warnings(), torch.inference_mode():
        # The TorchScript exporter takes 0.3 s where the newer one takes 3.6 s; a search exports dozens of graphs.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module,
            tuple(arguments),
            str(path),
            input_names=names,
            output_names=[*outputs],
            dynamic_axes={**axes, **outputs},
            opset_version=OPSET,
            dynamo=False,
        )


def example_inputs(stage: Stage) -> tuple[list[str], list[Tensor]]:
    """Names and example values of what the graph of `stage` takes, in order."""
    model, names, values = stage.model, [], []
    if stage.kind == "ranker":
        names.append("items")
        values.append(torch.ones(2, 3, dtype=torch.long))
    for name in model.inputs:
        names.append(name)
        values.append(_example(name, stage))
    if stage.kind == "encoder" and isinstance(model, Tied):
        names.append("vectors")
        values.append(torch.zeros(2, _length(stage), model.item_vectors().shape[1]))  # type: ignore[attr-defined]
    return names, values


def _example(name: str, stage: Stage) -> Tensor:
    if name == "user":
        return torch.ones(2, dtype=torch.long)
    if name == "user_features":
        features = stage.model.catalogue.user_features
        assert features is not None
        return torch.zeros(2, len(features.names), dtype=torch.long)
    return torch.ones(2, _length(stage), dtype=torch.long)


def _length(stage: Stage) -> int:
    """Events in the example history: no more than the model reads."""
    return min(4, max(1, stage.model.max_history))


class _Graph(nn.Module):
    """Presents `score`, or one of the ways to `encode`, as a `forward` with positional arguments."""

    def __init__(self, stage: Stage, names: list[str]) -> None:
        super().__init__()
        self.stage, self.names = stage, names
        self.model: Any = stage.model

    def forward(self, *arguments: Tensor) -> Any:
        given = dict(zip(self.names, arguments, strict=True))
        if self.stage.kind == "ranker":
            return self.model.score(**given)
        if "past" in given:
            return self.model.encode_on(**given)
        if "table" in given:
            return self.model.encode_items(**given)
        return self.model.encode_vectors(**given) if isinstance(self.model, Tied) else self.model.encode(**given)

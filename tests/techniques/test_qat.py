"""Training sees the rounding that the int8 graph will have, and leaves no trace of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

import toys
from recfit import models
from recfit.graphs import int8, layers
from recfit.pipeline import Pipeline
from recfit.runtimes import ort
from recfit.techniques import Context, make
from recfit.techniques.qat import rounding
from recfit.types import Unsupported

Exported = Callable[[Pipeline], Path]
SASREC, MLP = toys.original("sasrec"), toys.original("mlp")


@pytest.mark.parametrize("pipeline", [SASREC, MLP], ids=["sasrec", "mlp"])
@pytest.mark.parametrize("weights", ["symmetric", "asymmetric"])
@pytest.mark.parametrize("per", ["channel", "tensor"])
def test_training_computes_what_will_be_served(pipeline: Pipeline, weights: str, per: str, exported: Exported) -> None:
    model, float32 = pipeline.main.model, exported(pipeline) / "retrieve" / "model.onnx"
    no_linear = [
        layer.name
        for layer in layers(onnx.load(float32).graph)
        if layer.op == "Gather" or len(layer.shape) > 2  # looked-up rows and stacks of matrices
    ]
    options = {"per": per, "weights": weights}
    stored = replace(pipeline.main, graph="int8", graph_options={**options, "skip": no_linear})
    path = exported(Pipeline(stored)) / "retrieve" / "model.onnx"
    history = torch.tensor([[3, 9, 4, 17, 22]])
    vectors = models.as_module(model).items.lookup(history).detach()  # type: ignore[operator, union-attr]
    served = ort.session(path).run(None, {"history": history.numpy(), "vectors": vectors.numpy()})[0]
    with torch.no_grad():
        exact = model.encode_vectors(history, vectors).numpy()  # type: ignore[attr-defined]
        with rounding(model, int8.Config(**options)):
            seen = model.encode_vectors(history, vectors).numpy()  # type: ignore[attr-defined]
        again = model.encode_vectors(history, vectors).numpy()  # type: ignore[attr-defined]
    np.testing.assert_array_equal(again, exact)
    assert np.linalg.norm(seen - served) < 0.2 * np.linalg.norm(exact - served)


def test_gradients_pass_the_rounding() -> None:
    layer = torch.nn.Linear(6, 4)
    given = torch.randn(3, 6, requires_grad=True)
    layer(given).square().sum().backward()
    assert given.grad is not None
    plain, given.grad = given.grad.clone(), None
    with rounding(layer, int8.Config()):  # type: ignore[arg-type]
        layer(given).square().sum().backward()
    torch.testing.assert_close(given.grad, plain, rtol=0.1, atol=0.05)


def test_what_has_nothing_to_train_is_refused() -> None:
    for kind in ("ease", "als"):
        pipeline = toys.original(kind)
        context = Context(toys.split(), pipeline, toys.FIT)
        with pytest.raises(
            Unsupported, match=f"{kind} has no linear layers that learn from their rounding; use quantize"
        ):
            make("qat", {}).apply(pipeline, context)


def test_the_rounding_is_learned_from(monkeypatch: pytest.MonkeyPatch) -> None:
    """While it trains the model computes with rounded weights; what is stored are the exact ones."""
    seen = []

    def note(model: models.Model, *_: object, **__: object) -> None:
        layer = next(part for part in models.as_module(model).modules() if isinstance(part, torch.nn.Linear))
        seen.append(layer(torch.eye(layer.in_features)).detach() - layer.weight.detach().T)

    monkeypatch.setattr("recfit.techniques.train", note)
    step = make("qat", {"table": "int4", "graph_options": {"per": "tensor"}})
    out = step.apply(SASREC, Context(toys.split(), SASREC, toys.FIT))
    assert 0 < float(seen[0].abs().max()) < 0.02
    assert (out.main.graph, out.main.table, out.main.graph_options) == ("int8", "int4", {"per": "tensor"})
    assert models.fingerprint(out.main.model) == models.fingerprint(SASREC.main.model)

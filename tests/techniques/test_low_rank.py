"""Linear layers of low rank: what is decomposed, how ranks are chosen, and that the model is a real, smaller one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

import toys
from recfit import models
from recfit.models import Model
from recfit.models._layers import LowRank, linear_layers  # noqa: PLC2701
from recfit.pipeline import Pipeline, Stage
from recfit.techniques import Context, applied, make
from recfit.techniques.low_rank import Parts, by_budget, by_energy, decomposed
from recfit.types import ConfigError, Unsupported

Exported = Callable[[Pipeline], Path]
SHAPES: Mapping[str, dict[str, Any]] = {
    "sasrec": {"layers": 2, "embedding_dim": 16, "heads": 2, "ffn": 24, "max_history": 9},
    "mlp": {"embedding_dim": 16, "hidden": 24, "max_history": 9},
    "neumf": {"embedding_dim": 16, "hidden": 24, "top": 12},
    "two_tower": {"embedding_dim": 16, "hidden": 24, "max_history": 9},
}


def context_of(pipeline: Pipeline, **changes: Any) -> Context:
    return Context(toys.split(), pipeline, toys.FIT, **changes)


def cut(kind: str, **settings: Any) -> tuple[Model, Model]:
    """A trained model, and what low_rank makes of it without fine-tuning."""
    pipeline = Pipeline(Stage(toys.trained(kind, SHAPES[kind])))
    small = applied(make("low_rank", {"epochs": 0, **settings}), pipeline, context_of(pipeline)).main.model
    return pipeline.main.model, small


def numbers(model: Model) -> int:
    """Weights in matrices of linear layers."""
    return sum(layer.weight.numel() for layer in linear_layers(models.as_module(model)).values())


def weights(model: Model) -> dict[str, torch.Tensor]:
    """The matrix of each linear layer, of two the product."""
    module = models.as_module(model)
    parts = {path: layer for path, layer in module.named_modules() if isinstance(layer, LowRank)}
    inside = {f"{path}.{name}" for path in parts for name in ("inner", "outer")}
    whole = {path: layer.weight for path, layer in linear_layers(module).items() if path not in inside}
    return {path: weight.detach() for path, weight in whole.items()} | {
        path: layer.weight.detach() for path, layer in parts.items()
    }


@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("by", ["budget", "energy"])
def test_it_is_smaller_in_the_exported_graph_too(kind: str, by: str, exported: Exported) -> None:
    whole, small = cut(kind, by=by, keep=0.5)
    assert small.config.ranks
    assert numbers(small) < numbers(whole)
    if by == "budget":
        assert numbers(small) <= 0.5 * numbers(whole)
    sizes = []
    for model in (whole, small):
        graph = onnx.load(exported(Pipeline(Stage(model))) / "retrieve" / "model.onnx").graph
        sizes.append(sum(int(np.prod(part.dims)) for part in graph.initializer))
    assert sizes[1] < sizes[0]


@pytest.mark.parametrize("kind", SHAPES)
def test_it_survives_saving(kind: str, tmp_path: Path) -> None:
    _, small = cut(kind)
    models.save(small, tmp_path)
    again = models.load(tmp_path)
    assert again.config == small.config
    assert models.fingerprint(again) == models.fingerprint(small)


def test_without_activations_it_is_the_best_approximation_of_the_weights() -> None:
    whole, small = cut("sasrec", weighted=False)
    before, after = weights(whole), weights(small)
    for path, rank in small.config.ranks.items():
        tail = torch.linalg.svdvals(before[path])[rank:]
        assert float((before[path] - after[path]).norm()) == pytest.approx(float(tail.norm()), rel=1e-3)
    assert all(torch.equal(before[path], after[path]) for path in before if path not in small.config.ranks)


def test_with_activations_the_outputs_are_nearer_at_equal_ranks() -> None:
    """The inputs of a layer lie in few directions; errors elsewhere don't matter."""
    draws = torch.Generator().manual_seed(0)
    weight = torch.randn(12, 16, generator=draws)
    inputs = torch.randn(200, 4, generator=draws) @ torch.randn(4, 16, generator=draws)
    errors = {}
    for name, moment in (("plain", None), ("weighted", (inputs.T @ inputs).double() / 200)):
        part = decomposed(weight, moment)
        near = part.outer[:, :4] @ torch.diag(part.values[:4]) @ part.inner[:4]
        errors[name] = float(((weight.double() - near) @ inputs.double().T).norm())
    assert errors["weighted"] < 0.01 * errors["plain"]


def test_a_moment_that_rounding_left_indefinite_is_decomposed() -> None:
    """Inputs in few directions: the smallest eigenvalues of their moment, zero, come out below it."""
    draws = torch.Generator().manual_seed(0)
    weight = torch.randn(12, 32, generator=draws)
    inputs = torch.randn(400, 3, generator=draws) @ torch.randn(3, 32, generator=draws)
    moment = (inputs.T @ inputs).double() / 400
    moment -= 1e-3 * moment.diagonal().mean() * torch.eye(32)
    part = decomposed(weight, moment)
    near = part.outer[:, :3] @ torch.diag(part.values[:3]) @ part.inner[:3]
    wanted = weight.double() @ inputs.double().T
    assert float((near @ inputs.double().T - wanted).norm()) < 0.01 * float(wanted.norm())
    torch.testing.assert_close(part.outer @ torch.diag(part.values) @ part.inner, weight.double())


def test_the_two_ways_of_a_transformer_agree() -> None:
    """Its last layer asks for the newest position only, by the factors themselves."""
    _, small = cut("sasrec", keep=0.4)
    assert {"blocks.1.key", "blocks.1.value"} <= set(small.config.ranks)
    model: Any = small
    history = torch.tensor([[0, 0, 3, 4, 5, 6], [1, 2, 3, 9, 8, 7]])
    with torch.no_grad():
        torch.testing.assert_close(model.encode(history=history), model.states(history)[:, -1])


def test_ranks_by_energy() -> None:
    values = torch.tensor([3.0, 2.0, 1.0, 0.0])  # shares 9/14, 4/14, 1/14
    parts = {"a": Parts(torch.zeros(4, 4), values, torch.zeros(4, 9))}
    assert [by_energy(parts, keep)["a"] for keep in (0.1, 0.64, 0.65, 0.93, 1.0)] == [1, 1, 2, 3, 3]


def test_a_budget_goes_where_the_singular_values_are() -> None:
    flat, steep = torch.ones(8), torch.tensor([8.0, *[0.1] * 7])
    parts = {name: Parts(torch.zeros(8, 8), values, torch.zeros(8, 8)) for name, values in (("f", flat), ("s", steep))}
    ranks = by_budget(parts, 0.99)
    assert ranks["s"] == 1, "one direction holds it all"
    assert ranks["f"] == 8, "all directions are alike: the layer stays whole, for 64 of 126 numbers"
    assert by_budget(parts, 1e-6) == {"f": 1, "s": 1}, "no layer goes altogether"


def test_nothing_else_can_be_cut_from_it() -> None:
    for kind in SHAPES:
        _, small = cut(kind)
        assert small.axes() == {}
        pipeline = Pipeline(Stage(small))
        with pytest.raises(Unsupported, match="is of low rank already; leave low_rank out"):
            applied(make("low_rank", {}), pipeline, context_of(pipeline))
        with pytest.raises(Unsupported, match=f"{kind} has no axis 'embedding_dim'; it has: none"):
            applied(make("reduce", {"size": 4}), pipeline, context_of(pipeline))


def test_what_has_no_layers_or_would_not_shrink_is_refused() -> None:
    als = toys.original("als")
    with pytest.raises(Unsupported, match="als has no linear layers that its config can make low-rank"):
        applied(make("low_rank", {}), als, context_of(als))
    factors = Pipeline(Stage(toys.trained("two_tower", toys.SHAPES["two_tower"][2])))
    with pytest.raises(Unsupported, match="two_tower has no linear layers that its config can make low-rank"):
        applied(make("low_rank", {}), factors, context_of(factors))
    with pytest.raises(Unsupported, match=r"keep=1.0 by budget makes no layer of sasrec smaller; pass a lower keep"):
        cut("sasrec", keep=1.0)


@pytest.mark.parametrize("ranks", [{"blocks.7.up": 2}, {"blocks.0.up": 0}, {"items": 3}])
def test_ranks_of_what_is_no_linear_layer_are_refused(ranks: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=r"ranks has .* give ranks from 1 to layers out of: blocks\.0\.query"):
        toys.untrained("sasrec", {**SHAPES["sasrec"], "ranks": ranks})

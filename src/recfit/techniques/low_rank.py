"""Linear layers of low rank: W [out, in] becomes two layers of rank r, W = U S V' cut to its r largest singular values.

With `weighted` it is W M^(1/2) that is decomposed, M the second moment of the layer's inputs, so that the error of its
outputs is least, not that of its weights (Yuan et al., arXiv 2312.05821; Wang et al., arXiv 2403.07378)."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from recfit.models import Model, as_module, rebuilt
from recfit.models._layers import LowRank, linear_layers
from recfit.options import check_choice, check_ranges
from recfit.pipeline import Pipeline
from recfit.techniques import Context
from recfit.techniques._shrink import BATCHES, fine_tuned
from recfit.training import batch_losses
from recfit.types import Unsupported

RIDGE = 1e-4  # of the mean of M's diagonal, so that its root can be inverted


@dataclass(frozen=True)
class Parts:
    """A singular value decomposition W = outer @ diag(values) @ inner, largest values first."""

    outer: Tensor
    values: Tensor
    inner: Tensor

    @property
    def price(self) -> int:
        """Numbers that one more rank takes."""
        return len(self.outer) + self.inner.shape[1]

    @property
    def whole(self) -> int:
        """Numbers of W itself."""
        return len(self.outer) * self.inner.shape[1]

    @property
    def shares(self) -> Tensor:
        """The share of each value in the sum of their squares."""
        energy = self.values.square()
        return energy / energy.sum().clamp(min=1e-30)


@dataclass(frozen=True)
class Technique:
    """Keep the share `keep` of the linear layers' weights (`by="budget"`, spent where singular values are largest) or of
    the squared singular values of each (`by="energy"`), then fine-tune. Layers that would not get smaller stay."""

    family: ClassVar[str] = "reduce"
    order: ClassVar[int] = 36  # codes turn the hidden space, which layers of low rank cannot
    trains: ClassVar[bool] = True
    works_on: ClassVar[tuple[str, ...]] = ("ranks",)

    keep: float = 0.5
    by: str = "budget"
    weighted: bool = True
    epochs: int = 20
    data_fraction: float = 1.0
    learning_rate: float = 1e-3

    def __post_init__(self) -> None:
        check_choice("technique.low_rank.by", self.by, ("budget", "energy"))
        check_ranges("technique.low_rank", self, keep=(1e-6, 1), epochs=(0, 1e6), data_fraction=(1e-6, 1))

    def apply(self, pipeline: Pipeline, context: Context) -> Pipeline:
        model = pipeline.main.model
        layers = _layers(model)
        weigh = self.weighted and not context.structure_only
        moments = _second_moments(model, layers, context) if weigh else {}
        parts = {path: decomposed(layer.weight.detach(), moments.get(path)) for path, layer in layers.items()}
        ranks = by_energy(parts, self.keep) if self.by == "energy" else by_budget(parts, self.keep)
        ranks = {path: rank for path, rank in ranks.items() if rank * parts[path].price < parts[path].whole}
        if not ranks:
            raise Unsupported(
                f"keep={self.keep} by {self.by} makes no layer of {model.kind} smaller; pass a lower keep"
            )
        return fine_tuned(pipeline, _factored(model, parts, ranks), context, self)

    @classmethod
    def variants(cls, context: Context) -> Sequence[Technique]:
        return [cls(keep=0.5)] if _factorable(context.original.main.model) else []


def by_energy(parts: Mapping[str, Parts], keep: float) -> dict[str, int]:
    """The least rank of each layer that holds the share `keep` of its squared singular values."""
    kept = {path: part.shares.cumsum(0) for path, part in parts.items()}
    return {path: min(len(sums), int((sums < keep - 1e-6).sum()) + 1) for path, sums in kept.items()}


def by_budget(parts: Mapping[str, Parts], keep: float) -> dict[str, int]:
    """Ranks that together take the share `keep` of the numbers: every rank is taken that adds more than a threshold to the
    energy of its layer for what it costs, the threshold as low as the budget allows."""
    gains = {path: part.shares / part.price for path, part in parts.items()}
    thresholds = torch.cat([*gains.values()]).sort(descending=True).values.tolist()

    def ranks(threshold: float) -> dict[str, int]:
        return {path: max(1, int((gain >= threshold).sum())) for path, gain in gains.items()}

    def price(threshold: float) -> int:
        return sum(min(parts[path].whole, rank * parts[path].price) for path, rank in ranks(threshold).items())

    affordable = bisect_right(thresholds, keep * sum(part.whole for part in parts.values()), key=price)
    return ranks(thresholds[max(0, affordable - 1)])


def _factorable(model: Model) -> bool:
    return getattr(model.config, "ranks", None) == {} and bool(linear_layers(as_module(model)))


def _layers(model: Model) -> dict[str, nn.Linear]:
    if not _factorable(model):
        done = bool(getattr(model.config, "ranks", None))
        state = "is of low rank already" if done else "has no linear layers that its config can make low-rank"
        raise Unsupported(f"{model.kind} {state}; leave low_rank out of the recipe")
    return linear_layers(as_module(model))


@torch.no_grad()
def _second_moments(model: Model, layers: Mapping[str, nn.Linear], context: Context) -> dict[str, Tensor]:
    """The mean of x x' over the inputs x of each layer while a few training batches pass."""
    sums: dict[str, Tensor] = {}

    def watch(path: str) -> Any:
        def note(module: nn.Module, given: tuple[Tensor, ...]) -> None:
            inputs = given[0].flatten(0, -2).float()
            sums[path] = sums.get(path, torch.zeros(())) + (inputs.T @ inputs).double() / len(inputs)

        return note

    hooks = [layer.register_forward_pre_hook(watch(path)) for path, layer in layers.items()]
    try:
        for _ in batch_losses(model, context.split, context.fit_of(model), BATCHES):
            pass
    finally:
        for hook in hooks:
            hook.remove()
    return sums


def decomposed(weight: Tensor, moment: Tensor | None) -> Parts:
    """W = (U S (V' R^-1)) with U S V' = W R and R R' = M."""
    weight = weight.double()
    if moment is None:
        return Parts(*torch.linalg.svd(weight, full_matrices=False))
    ridge = RIDGE * float(moment.diagonal().mean().clamp(min=1e-12))
    # Of eigenvalues, not Cholesky's: inputs in a subspace leave some at zero, by rounding just below it.
    values, vectors = torch.linalg.eigh(moment.double())
    scale = values.clamp(min=ridge).sqrt()
    outer, values, inner = torch.linalg.svd(weight @ (vectors * scale), full_matrices=False)
    return Parts(outer, values, (inner / scale) @ vectors.T)


@torch.no_grad()
def _factored(model: Model, parts: Mapping[str, Parts], ranks: Mapping[str, int]) -> Model:
    """`model` with the layers in `ranks` cut to these ranks."""
    small = rebuilt(model, replace(model.config, ranks=dict(ranks)))
    module = as_module(small)
    module.load_state_dict(as_module(model).state_dict(), strict=False)
    for path, rank in ranks.items():
        layer, part = module.get_submodule(path), parts[path]
        assert isinstance(layer, LowRank)
        root = part.values[:rank].sqrt()
        layer.outer.weight.copy_(part.outer[:, :rank] * root)
        layer.inner.weight.copy_(root[:, None] * part.inner[:rank])
        if layer.outer.bias is not None:
            layer.outer.bias.copy_(as_module(model).get_submodule(path).get_parameter("bias"))
    module.train(as_module(model).training)
    return small

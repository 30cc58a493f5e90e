"""Weights that are held at zero while the others learn."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from recfit.models import Encoder, Model, as_module

TIGHTEN = 0.01  # masks are drawn anew when this share of the weights has to leave


def matrices(model: Model) -> dict[str, nn.Parameter]:
    """The weights of two dimensions or more by name, without those of an encoder's item table, which a bundle stores apart
    and in formats of its own."""
    found = {name: weight for name, weight in as_module(model).named_parameters() if weight.ndim > 1}
    if not found or not isinstance(model, Encoder):
        return found
    with torch.enable_grad():
        total = model.item_vectors().sum()
    if not total.requires_grad:
        return found
    used = torch.autograd.grad(total, list(found.values()), allow_unused=True)
    return {name: weight for (name, weight), grad in zip(found.items(), used, strict=True) if grad is None}


class Masks:
    """Holds the least important share of `weights` at zero, of each matrix or of all `together`.

    The share grows as `sparsity * (1 - (1 - t)^3)`, t the part of `ramp` that is through (Zhu and Gupta, arXiv
    1710.01878), and what is zero stays so. `score` says how important each weight of a matrix is.
    """

    def __init__(
        self,
        weights: Mapping[str, Tensor],
        score: Callable[[str, Tensor], Tensor],
        sparsity: float,
        *,
        together: bool = False,
        ramp: float = 0.0,
    ) -> None:
        self.weights, self.score, self.sparsity = weights, score, sparsity
        self.together, self.ramp = together, ramp
        self.begin()

    @torch.no_grad()
    def begin(self) -> None:
        self.masks = {name: weight != 0 for name, weight in self.weights.items()}
        self.reached = 0.0

    def settled(self, through: float) -> bool:
        return through >= self.ramp

    @torch.no_grad()
    def after_step(self, through: float) -> None:
        wanted = self.sparsity * (1 - (1 - min(1.0, through / self.ramp)) ** 3) if self.ramp else self.sparsity
        if wanted - self.reached >= TIGHTEN or (self.settled(through) and self.reached < self.sparsity):
            self._tighten(wanted)
        for name, weight in self.weights.items():
            weight.mul_(self.masks[name])

    def finish(self) -> None:
        """Bring the weights as they are to the whole sparsity."""
        self.begin()
        self.after_step(1.0)

    def _tighten(self, wanted: float) -> None:
        scores = {
            name: torch.where(mask, self.score(name, self.weights[name]), -1.0).flatten()
            for name, mask in self.masks.items()
        }
        if self.together:
            kept = _kept(torch.cat(list(scores.values())), wanted)
            parts = torch.split(kept, [len(part) for part in scores.values()])
        else:
            parts = tuple(_kept(part, wanted) for part in scores.values())
        for (name, mask), part in zip(self.masks.items(), parts, strict=True):
            self.masks[name] = mask & part.view(mask.shape)
        self.reached = wanted


def _kept(scores: Tensor, sparsity: float) -> Tensor:
    """True for all but the share `sparsity` of the smallest scores."""
    chosen = torch.zeros(len(scores), dtype=torch.bool)
    chosen[scores.topk(len(scores) - round(sparsity * len(scores)), sorted=False).indices] = True
    return chosen

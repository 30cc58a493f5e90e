"""Fewer dimensions, features or past events: rotate the hidden space to its principal components, keep the largest,
fine-tune (PCA on the item vectors; for the Transformer the rotation is exact as in SliceGPT, arXiv 2401.15024)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from recfit.models import Encoder, Model, Rotatable
from recfit.pipeline import Pipeline
from recfit.techniques import Context
from recfit.techniques._shrink import fine_tuned, size_of
from recfit.types import Unsupported


@dataclass(frozen=True)
class Technique:
    """Keep `size` units of `axis` (`embedding_dim` by principal components, `history_length` the newest,
    `features` by importance), then fine-tune."""

    family: ClassVar[str] = "reduce"
    order: ClassVar[int] = 30
    trains: ClassVar[bool] = True

    axis: str = "embedding_dim"
    size: int = 32
    epochs: int = 10
    data_fraction: float = 1.0
    learning_rate: float = 5e-4

    def apply(self, pipeline: Pipeline, context: Context) -> Pipeline:
        model = pipeline.main.model
        now = size_of(model, self.axis)
        if self.size >= now:
            raise Unsupported(f"size={self.size} is not below the {now} of {self.axis}; pass size <= {now - 1}")
        model, keep = self._choose(model)
        return fine_tuned(pipeline, model.shrink(self.axis, keep), context, self)

    def _choose(self, model: Model) -> tuple[Model, Tensor]:
        """The model, rotated where that helps, and the units that stay."""
        if self.axis == "embedding_dim" and isinstance(model, Rotatable):
            return model.rotated(principal_axes(model)), torch.arange(self.size)
        if self.axis == "history_length":
            return model, torch.arange(self.size)
        return model, torch.topk(model.importance(self.axis), self.size).indices.sort().values

    @classmethod
    def variants(cls, context: Context) -> Sequence[Technique]:
        axes = context.original.main.model.axes()
        return [
            cls(axis, size)
            for axis, shares in (("embedding_dim", (0.5, 0.25)), ("history_length", (0.4,)), ("features", (0.5,)))
            for share in shares
            if (size := round(axes.get(axis, 0) * share)) >= 1
        ]


def principal_axes(model: Model) -> Tensor:
    """An orthogonal matrix [d, d], columns ordered by how much of the item vectors' energy they hold."""
    if not isinstance(model, Encoder):
        raise Unsupported(f"{model.kind} has no item vectors to rotate")
    with torch.no_grad():
        vectors = model.item_vectors().double()
        _, basis = torch.linalg.eigh(vectors.T @ vectors)
    largest_first: Tensor = basis.flip(1).float()
    return largest_first

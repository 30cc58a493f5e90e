"""Fewer dimensions, features or past events: rotate the hidden space to its principal components, keep the largest,
fine-tune (PCA on the item vectors; for the Transformer the rotation is exact as in SliceGPT, arXiv 2401.15024)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from recfit.models import Model, Rotatable
from recfit.models._options import check_ranges
from recfit.pipeline import Pipeline
from recfit.techniques import Context
from recfit.techniques._principal import principal_axes
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
    epochs: int = 20
    data_fraction: float = 1.0
    learning_rate: float = 1e-3

    def __post_init__(self) -> None:
        check_ranges("technique.reduce", self, size=(1, 1e6), epochs=(0, 1e6), data_fraction=(1e-6, 1))

    def apply(self, pipeline: Pipeline, context: Context) -> Pipeline:
        model = pipeline.main.model
        now = size_of(model, self.axis)
        if self.size >= now:
            raise Unsupported(f"size={self.size} is not below the {now} of {self.axis}; pass size <= {now - 1}")
        model, keep = self._choose(model, context)
        return fine_tuned(pipeline, model.shrink(self.axis, keep), context, self)

    def _choose(self, model: Model, context: Context) -> tuple[Model, Tensor]:
        """The model, rotated where that helps, and the units that stay."""
        if self.axis == "embedding_dim" and isinstance(model, Rotatable):
            return model.rotated(principal_axes(model, context.split)), torch.arange(self.size)
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

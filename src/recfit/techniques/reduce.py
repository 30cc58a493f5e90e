"""Fewer dimensions, features or past events: rotate the hidden space to its principal components, keep the largest,
fine-tune (PCA on the item vectors; for the Transformer the rotation is exact as in SliceGPT, arXiv 2401.15024)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from recfit.models._options import check_ranges
from recfit.pipeline import Pipeline
from recfit.techniques import Context
from recfit.techniques._inherit import cut
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
        if context.structure_only:  # which units stay does not matter, finding the best takes a second
            small = model.shrink(self.axis, torch.arange(self.size))
        else:
            small = cut(model, self.axis, self.size, context.split)
        return fine_tuned(pipeline, small, context, self)

    @classmethod
    def variants(cls, context: Context) -> Sequence[Technique]:
        axes = context.original.main.model.axes()
        return [
            cls(axis, size)
            for axis, shares in (("embedding_dim", (0.5, 0.25)), ("history_length", (0.4,)), ("features", (0.5,)))
            for share in shares
            if (size := round(axes.get(axis, 0) * share)) >= 1
        ]

"""Structured pruning: the least important units of an axis leave, the model really shrinks, and a short fine-tuning
on a share of the data repairs what it can (magnitude importance: Han et al., arXiv 1506.02626)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from recfit.models._options import check_ranges
from recfit.pipeline import Pipeline
from recfit.techniques import Context
from recfit.techniques._shrink import fine_tuned, size_of
from recfit.types import Unsupported


@dataclass(frozen=True)
class Technique:
    """Keep the share `keep` of the most important units of `axis`, then fine-tune on `data_fraction` of the users."""

    family: ClassVar[str] = "prune"
    order: ClassVar[int] = 20
    trains: ClassVar[bool] = True

    axis: str
    keep: float = 0.5
    epochs: int = 20
    data_fraction: float = 1.0
    learning_rate: float = 1e-3

    def __post_init__(self) -> None:
        check_ranges("technique.prune", self, keep=(1e-6, 1), epochs=(0, 1e6), data_fraction=(1e-6, 1))

    def apply(self, pipeline: Pipeline, context: Context) -> Pipeline:
        model = pipeline.main.model
        size = size_of(model, self.axis)
        count = max(1, round(size * self.keep))
        if count >= size:
            raise Unsupported(
                f"keep={self.keep} of {size} {self.axis} removes nothing; pass keep < {1 - 0.5 / size:.2f}"
            )
        best = torch.topk(model.importance(self.axis), count).indices.sort().values
        return fine_tuned(pipeline, model.shrink(self.axis, best), context, self)

    @classmethod
    def variants(cls, context: Context) -> Sequence[Technique]:
        axes = context.original.main.model.axes()
        wanted = [(axis, 0.5) for axis in ("ffn", "layers", "heads", "hidden") if axes.get(axis, 1) > 1]
        return [cls(axis, keep) for axis, keep in wanted]

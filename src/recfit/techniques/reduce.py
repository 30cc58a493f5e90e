"""Fewer dimensions, features or past events: rotate the hidden space to its principal components, keep the largest,
fine-tune (PCA on the item vectors; for the Transformer the rotation is exact as in SliceGPT, arXiv 2401.15024)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from recfit.models import Featured, Model
from recfit.options import check_choice, check_ranges
from recfit.pipeline import Pipeline
from recfit.techniques import Context
from recfit.techniques._features import WAYS
from recfit.techniques._inherit import cut, enough
from recfit.techniques._shrink import fine_tuned, size_of
from recfit.types import Unsupported

# Shares of an axis that are worth trying, and the least of it: item vectors of 32 numbers keep what 64 to 512 do.
PROPOSED = {
    "embedding_dim": (0.5, 0.25),
    "table_dim": (0.25,),
    "history_length": (0.4,),
    "window": (0.25,),
    "features": (0.5,),
}
LEAST = {"table_dim": 32}
# Feature columns: of a third of them only those that shuffling chose kept the quality. Other axes have one measure.
JUDGED = {"features": "permutation"}


@dataclass(frozen=True)
class Technique:
    """Keep `size` units of `axis` (`embedding_dim` and, of the item table alone, `table_dim` by principal components, or
    the leading ones after `matryoshka`; `history_length` the newest; `window`, how far back layers after the
    first look; `features` that matter most), then fine-tune. With `energy` > 0 as many principal components stay as hold that
    share of it, whatever `size` says.

    A feature counts `by` the norm of its vectors (`weights`), the rise of held-out loss when its codes are shuffled
    (`permutation`), what it tells of the events (`mutual_information`), or a factor trained with a penalty (`gates`).
    """

    family: ClassVar[str] = "reduce"
    order: ClassVar[int] = 30
    trains: ClassVar[bool] = True

    axis: str = "embedding_dim"
    size: int = 32
    energy: float = 0.0
    by: str = "weights"
    epochs: int = 20
    data_fraction: float = 1.0
    learning_rate: float = 1e-3

    def __post_init__(self) -> None:
        check_choice("technique.reduce.by", self.by, ("weights", *WAYS) if self.axis == "features" else ("weights",))
        check_ranges("technique.reduce", self, size=(1, 1e6), energy=(0, 1), epochs=(0, 1e6), data_fraction=(1e-6, 1))

    @property
    def works_on(self) -> tuple[str, ...]:
        return (self.axis,)

    def apply(self, pipeline: Pipeline, context: Context) -> Pipeline:
        model = pipeline.main.model
        if self.axis == "table_dim" and "embedding_dim" in model.axes() and "table_dim" not in model.axes():
            raise Unsupported(f"{model.kind} has no table narrower than itself; pass axis='embedding_dim'")
        now = size_of(model, self.axis)
        size = enough(model, self.axis, self.energy, context.split) if self.energy else self.size
        if size >= now:
            asked = f"energy={self.energy} needs all" if self.energy else f"size={size} is not below the"
            raise Unsupported(f"{asked} {now} of {self.axis}; pass {'less' if self.energy else f'size <= {now - 1}'}")
        return fine_tuned(pipeline, self._cut(model, size, context), context, self)

    def _cut(self, model: Model, size: int, context: Context) -> Model:
        if context.structure_only:  # which units stay does not matter, finding the best takes a second
            return model.shrink(self.axis, torch.arange(size))
        if self.by == "weights":
            return cut(model, self.axis, size, context.split)
        assert isinstance(model, Featured)
        best = torch.topk(WAYS[self.by](model, context), size).indices
        return model.shrink("features", best.sort().values)

    @classmethod
    def variants(cls, context: Context) -> Sequence[Technique]:
        axes = context.original.main.model.axes()
        return [
            cls(axis, size, by=JUDGED.get(axis, cls.by))
            for axis, shares in PROPOSED.items()
            for share in shares
            if 1 <= (size := max(round(axes.get(axis, 0) * share), LEAST.get(axis, 1))) < axes.get(axis, 0)
        ]

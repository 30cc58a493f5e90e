"""Nested item vectors: the leading numbers of each are trained to do without the others, so that one training serves many
widths (Kusupati et al., arXiv 2205.13147; drawn widths: Rippel et al., arXiv 1402.0915). `reduce` then cuts at the front."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from recfit.models import Model, Rotatable, copied
from recfit.options import check_ranges
from recfit.pipeline import Pipeline
from recfit.techniques import Context
from recfit.techniques._inherit import nested, principal_axes
from recfit.techniques._shrink import fine_tuned
from recfit.types import Unsupported


@dataclass(frozen=True)
class Technique:
    """Turn the model onto its principal axes and go on training it, in every batch once as it is and once with one of
    `widths` leading numbers only (none given: halves, down to 8)."""

    family: ClassVar[str] = "distill"
    order: ClassVar[int] = 25
    trains: ClassVar[bool] = True
    works_on: ClassVar[tuple[str, ...]] = ("nested vectors",)

    widths: tuple[int, ...] = ()
    epochs: int = 20
    data_fraction: float = 1.0
    learning_rate: float = 1e-3

    def __post_init__(self) -> None:
        check_ranges("technique.matryoshka", self, epochs=(1, 1e6), data_fraction=(1e-6, 1))

    def apply(self, pipeline: Pipeline, context: Context) -> Pipeline:
        model = pipeline.main.model
        if not _nestable(model) or nested(model):
            state = "is nested already" if nested(model) else "has no item vectors that can be trained nested"
            raise Unsupported(f"{model.kind} {state}; leave matryoshka out of the recipe")
        assert isinstance(model, Rotatable)
        turned = model if context.structure_only else model.rotated(principal_axes(model, context.split))
        widths = self.widths or _halves(model.axes()["embedding_dim"])
        ready = copied(turned, replace(turned.config, widths=widths))
        return fine_tuned(pipeline, ready, context, self, or_start=False)

    @classmethod
    def variants(cls, context: Context) -> Sequence[Technique]:
        model = context.original.main.model
        return [cls()] if _nestable(model) and not nested(model) else []


def _nestable(model: Model) -> bool:
    return hasattr(model.config, "widths") and "embedding_dim" in model.axes()


def _halves(size: int) -> tuple[int, ...]:
    """The half of `size`, a quarter, ..., no less than 8."""
    widths = [size >> step for step in range(1, size.bit_length())]
    return tuple(width for width in widths if width >= 8) or (max(1, size // 2),)

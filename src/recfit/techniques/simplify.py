"""A simpler model in the original's place, trained on the interactions alone: less depth and width, or another family."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from recfit import models
from recfit.pipeline import Pipeline, Stage
from recfit.techniques import Context
from recfit.techniques._students import students


@dataclass(frozen=True)
class Technique:
    """Train `models.build(kind, options)` from scratch and put it in the deciding stage."""

    family: ClassVar[str] = "simplify"
    order: ClassVar[int] = 10
    trains: ClassVar[bool] = True

    kind: str
    options: Mapping[str, Any] = field(default_factory=dict)

    def apply(self, pipeline: Pipeline, context: Context) -> Pipeline:
        model = models.build(self.kind, self.options, context.catalogue)
        return pipeline.with_main(Stage(context.train(model)))

    @classmethod
    def variants(cls, context: Context) -> Sequence[Technique]:
        """The simple families as baselines, then smaller versions of the original."""
        simple = [cls(kind) for kind in ("popularity", "itemknn", "ease", "als")]
        return [*simple, *(cls(kind, options) for kind, options in students(context.original.main.model))]

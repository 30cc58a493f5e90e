"""A small student learns the original's soft scores (Hinton et al., arXiv 1503.02531):
`alpha * T^2 * KL(teacher / T || student / T) + beta * CE(next item)` over the catalogue. A student of
the original's family starts from the original cut to its size, another encoder from the original's item vectors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from recfit import models
from recfit.pipeline import Pipeline, Stage
from recfit.techniques import Context
from recfit.techniques._inherit import inherit
from recfit.techniques._students import students
from recfit.training import Distill
from recfit.types import Unsupported


@dataclass(frozen=True)
class Technique:
    """Train `models.build(kind, options)` against the original's scores and put it in the deciding stage."""

    family: ClassVar[str] = "distill"
    order: ClassVar[int] = 10
    trains: ClassVar[bool] = True

    kind: str
    options: Mapping[str, Any] = field(default_factory=dict)
    alpha: float = 0.7
    beta: float = 0.3
    temperature: float = 2.0

    def apply(self, pipeline: Pipeline, context: Context) -> Pipeline:
        student = context.build(self.kind, self.options)
        if isinstance(student, models.Solved):
            raise Unsupported(f"{self.kind} is solved in closed form and cannot learn a teacher's scores; use simplify")
        teacher = context.original.main.model
        if not context.structure_only:
            inherit(student, teacher, context.split)
        lesson = Distill(teacher, self.alpha, self.beta, self.temperature)
        return pipeline.with_main(Stage(context.train(student, distill=lesson)))

    @classmethod
    def variants(cls, context: Context) -> Sequence[Technique]:
        return [cls(kind, options) for kind, options in students(context.original.main.model)]

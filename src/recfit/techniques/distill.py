"""A small student learns the original's soft scores (Hinton et al., arXiv 1503.02531):
`alpha * T^2 * KL(teacher / T || student / T) + beta * CE(next item)` over the catalogue; or the original's order of its
best items (Tang and Wang, KDD 2018, arXiv 1809.07428, by a ranker; an encoder's softmax meets a distribution over their places,
as in ListNet, Cao et al., ICML 2007); and its vectors, if hinted at (Romero et al., arXiv 1412.6550). A
student of the original's family starts from the original cut to its size, another encoder from its item vectors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from recfit import models
from recfit.pipeline import Pipeline, Stage
from recfit.techniques import Context
from recfit.techniques._inherit import inherit
from recfit.techniques._lessons import ITEMS, answers_all, by_heart, kept
from recfit.techniques._students import students
from recfit.training import Distill
from recfit.types import Unsupported


@dataclass(frozen=True)
class Technique:
    """Train `models.build(kind, options)` against the original's scores and put it in the deciding stage.

    `loss` is `kl` or `ranking`, `hint` the weight of the vectors, `cache` how many items of each answer are computed once.
    """

    family: ClassVar[str] = "distill"
    order: ClassVar[int] = 10
    trains: ClassVar[bool] = True
    works_on: ClassVar[tuple[str, ...]] = ("model",)

    kind: str
    options: Mapping[str, Any] = field(default_factory=dict)
    alpha: float = 0.7
    beta: float = 0.3
    temperature: float = 2.0
    loss: str = "kl"
    hint: float = 0.0
    cache: int = ITEMS

    def apply(self, pipeline: Pipeline, context: Context) -> Pipeline:
        student = context.build(self.kind, self.options)
        if isinstance(student, models.Solved):
            raise Unsupported(f"{self.kind} is solved in closed form and cannot learn a teacher's scores; use simplify")
        teacher = context.original.main.model
        if not context.structure_only:
            inherit(student, teacher, context.split)
        lesson = Distill(
            teacher, self.alpha, self.beta, self.temperature, self.loss, self.hint, self.cache, context.folder
        )
        teaches = self.alpha > 0 or self.hint > 0
        return pipeline.with_main(Stage(context.train(student, distill=lesson if teaches else None)))

    @classmethod
    def variants(cls, context: Context) -> Sequence[Technique]:
        found = students(context.original.main.model)
        if found and by_heart(context):  # they start from the original all the same
            return [cls(kind, options, alpha=0.0, beta=1.0) for kind, options in found]
        # Asking a ranker anew in every epoch takes hours, so two towers learn from kept answers; `simplify` tries labels.
        found = [(kind, options) for kind, options in found if kind != "two_tower" or answers_all(context)]
        return [cls(kind, options, cache=ITEMS if kind == "two_tower" else kept(context)) for kind, options in found]

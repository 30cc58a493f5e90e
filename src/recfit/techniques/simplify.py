"""A simpler model in the original's place, trained on the interactions alone: less depth and width, or another family."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from recfit.pipeline import Pipeline, Stage
from recfit.techniques import Context
from recfit.techniques._students import students

# Above this many items the dense weights (4 bytes x items^2) are no longer small.
DENSE_ITEMS = 4000
NEIGHBOURS = 200


@dataclass(frozen=True)
class Technique:
    """Train `models.build(kind, options)` from scratch and put it in the deciding stage."""

    family: ClassVar[str] = "simplify"
    order: ClassVar[int] = 10
    trains: ClassVar[bool] = True
    works_on: ClassVar[tuple[str, ...]] = ("model",)

    kind: str
    options: Mapping[str, Any] = field(default_factory=dict)

    def apply(self, pipeline: Pipeline, context: Context) -> Pipeline:
        model = context.build(self.kind, self.options)
        return pipeline.with_main(Stage(context.train(model)))

    @classmethod
    def variants(cls, context: Context) -> Sequence[Technique]:
        """The simple families, then smaller versions of the original."""
        smaller = [cls(kind, options) for kind, options in students(context.original.main.model)]
        return [*baselines(context.split.n_items), *smaller]


def baselines(n_items: int) -> list[Technique]:
    """The simple models that any original must beat. A dense EASE of a large catalogue keeps its strongest weights."""
    weights = {} if n_items <= DENSE_ITEMS else {"neighbours": NEIGHBOURS}
    return [Technique("popularity"), Technique("itemknn"), Technique("ease", weights), Technique("als")]

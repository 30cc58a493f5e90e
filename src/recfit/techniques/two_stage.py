"""A cheap retriever proposes, the deciding model re-scores only what was proposed (Covington et al., RecSys 2016)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from recfit.models._options import check_ranges
from recfit.pipeline import Pipeline, Stage
from recfit.techniques import Context
from recfit.types import Unsupported


@dataclass(frozen=True)
class Technique:
    """Retrieve `candidates` items with a model `retriever`, rank them with the pipeline's deciding model."""

    family: ClassVar[str] = "two_stage"
    order: ClassVar[int] = 50
    trains: ClassVar[bool] = True

    retriever: str
    options: Mapping[str, Any] = field(default_factory=dict)
    candidates: int = 100

    def __post_init__(self) -> None:
        check_ranges("technique.two_stage", self, candidates=(1, 1e9))

    def apply(self, pipeline: Pipeline, context: Context) -> Pipeline:
        if pipeline.rank is not None:
            raise Unsupported("this pipeline already has two stages")
        if self.candidates >= context.split.n_items:
            raise Unsupported(
                f"candidates={self.candidates} is the whole catalogue of {context.split.n_items} items; pass fewer"
            )
        model = context.train(context.build(self.retriever, self.options))
        return replace(pipeline, retrieve=Stage(model), rank=pipeline.main, candidates=self.candidates)

    @classmethod
    def variants(cls, context: Context) -> Sequence[Technique]:
        few, many = (max(20, round(context.split.n_items * share)) for share in (0.05, 0.15))
        small = [cls("als", candidates=few)] if few < many else []
        return [*small, cls("als", candidates=many), cls("itemknn", candidates=many)]

"""The rarest items leave the catalogue: their rows of every table, and their ids. What is gone is never recommended and is
skipped where it is part of a history; a request whose history is all gone gets the fallback list."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from recfit.models._items import with_items
from recfit.options import check_ranges
from recfit.pipeline import Pipeline, Stage
from recfit.techniques import Context
from recfit.types import IntArray, Rows, Unsupported


@dataclass(frozen=True)
class Technique:
    """Keep the most popular share `keep` of the items, of them those with at least `min_events` training events."""

    family: ClassVar[str] = "prune"
    order: ClassVar[int] = 55
    trains: ClassVar[bool] = False
    works_on: ClassVar[tuple[str, ...]] = ("catalogue",)

    keep: float = 0.5
    min_events: int = 0

    def __post_init__(self) -> None:
        check_ranges("technique.prune_items", self, keep=(1e-9, 1), min_events=(0, 1e9))

    def apply(self, pipeline: Pipeline, context: Context) -> Pipeline:
        if pipeline.main.model.catalogue.item_rows is not None:
            raise Unsupported("items have left this pipeline already; one prune_items is enough")
        rows = self._kept(np.bincount(context.split.train.item, minlength=context.split.n_items).astype(np.int64))
        rank = None if pipeline.rank is None else _with(pipeline.rank, rows)
        return replace(pipeline, retrieve=_with(pipeline.retrieve, rows), rank=rank)

    def _kept(self, counts: IntArray) -> Rows:
        """The rows that stay, ascending."""
        popular = np.argsort(-counts, kind="stable")[: max(1, round(self.keep * len(counts)))]
        rows = np.sort(popular[counts[popular] >= self.min_events]).astype(np.int32)
        if not len(rows) or len(rows) == len(counts):
            left = "all" if len(rows) else "none"
            raise Unsupported(
                f"keep={self.keep} and min_events={self.min_events} keep {left} of {len(counts)} items, which have "
                f"{counts.min()} to {counts.max()} events; pass others"
            )
        return rows

    @classmethod
    def variants(cls, context: Context) -> Sequence[Technique]:
        return [cls(keep=0.5)]


def _with(stage: Stage, rows: Rows) -> Stage:
    return replace(stage, model=with_items(stage.model, rows))

"""Precompute the lists of the most active users, or of what is most often last seen; every other request falls through
to the model. Results that are computed ahead and looked up by user, or by item: Linden et al., IEEE Internet
Computing 7(1), 2003."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from recfit.options import check_choice, check_ranges
from recfit.pipeline import CachePlan, Pipeline
from recfit.states import most_depth
from recfit.techniques import Context
from recfit.types import Unsupported

KEYS = ("user", "state")
# Lists of 100 items of so many states take 8 MB.
STATES = 10_000


@dataclass(frozen=True)
class Technique:
    """Lists of `length` items for the most frequent `share` of users or of last-seen states (`key`; a state is the newest
    `depth` items of a history), served until they are `ttl_seconds` old."""

    family: ClassVar[str] = "cache"
    order: ClassVar[int] = 60
    trains: ClassVar[bool] = False
    works_on: ClassVar[tuple[str, ...]] = ("lists",)

    share: float = 0.5
    length: int = 100
    ttl_seconds: float = 86_400.0
    key: str = "user"
    depth: int = 1

    def __post_init__(self) -> None:
        check_choice("technique.cache.key", self.key, KEYS)
        check_ranges("technique.cache", self, share=(1e-9, 1), length=(1, 1e6), ttl_seconds=(1e-3, 1e10), depth=(1, 63))

    def apply(self, pipeline: Pipeline, context: Context) -> Pipeline:
        if pipeline.cache is not None:
            raise Unsupported("this pipeline already has a cache")
        if self.key == "state":
            self._check_state(pipeline, context.split.n_items)
        return replace(pipeline, cache=CachePlan(self.share, self.length, self.ttl_seconds, self.key, self.depth))

    def _check_state(self, pipeline: Pipeline, n_items: int) -> None:
        model = pipeline.main.model
        if "history" not in model.inputs:
            raise Unsupported(f"{model.kind} reads no history, so every state would get one list; pass key='user'")
        if self.depth > (most := most_depth(n_items)):
            raise Unsupported(f"states of depth={self.depth} among {n_items} items are too many; pass depth <= {most}")

    @classmethod
    def variants(cls, context: Context) -> Sequence[Technique]:
        share = min(1.0, STATES / context.split.n_items)
        reads = "history" in context.original.main.model.inputs
        return [cls(share=0.5), cls(share=1.0), *([cls(key="state", share=share)] if reads else [])]

"""Precompute the lists of the most active users; everybody else, and every raw history, falls through to the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from recfit.models._options import check_ranges
from recfit.pipeline import CachePlan, Pipeline
from recfit.techniques import Context
from recfit.types import Unsupported


@dataclass(frozen=True)
class Technique:
    """Lists of `length` items for the most active `share` of users, served until they are `ttl_seconds` old."""

    family: ClassVar[str] = "cache"
    order: ClassVar[int] = 60
    trains: ClassVar[bool] = False

    share: float = 0.5
    length: int = 100
    ttl_seconds: float = 86_400.0

    def __post_init__(self) -> None:
        check_ranges("technique.cache", self, share=(1e-9, 1), length=(1, 1e6), ttl_seconds=(1e-3, 1e10))

    def apply(self, pipeline: Pipeline, context: Context) -> Pipeline:
        if pipeline.cache is not None:
            raise Unsupported("this pipeline already has a cache")
        return replace(pipeline, cache=CachePlan(self.share, self.length, self.ttl_seconds))

    @classmethod
    def variants(cls, context: Context) -> Sequence[Technique]:
        return [cls(share=0.5), cls(share=1.0)]

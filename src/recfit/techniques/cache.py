"""Precompute the lists of the most active users; everybody else, and every raw history, falls through to the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

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

    def apply(self, pipeline: Pipeline, context: Context) -> Pipeline:
        if not 0 < self.share <= 1:
            raise Unsupported(f"share={self.share} is not in (0, 1]; pass the share of users to precompute")
        if pipeline.cache is not None:
            raise Unsupported("this pipeline already has a cache")
        return replace(pipeline, cache=CachePlan(self.share, self.length, self.ttl_seconds))

    @classmethod
    def variants(cls, context: Context) -> Sequence[Technique]:
        return [cls(share=0.5), cls(share=1.0)]

"""What one bundle will run, seen from the training side: models, formats, candidates, cache, runtime."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from recfit import models
from recfit.models import Encoder, Model


@dataclass(frozen=True)
class Stage:
    """A model and the formats it is stored in: `graph` a file of `graphs/`, `table` one of `tables/`."""

    model: Model
    graph: str = "float32"
    graph_options: Mapping[str, Any] = field(default_factory=dict)
    table: str = "float32"
    table_options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        return "encoder" if isinstance(self.model, Encoder) else "ranker"

    @property
    def identity(self) -> bool:
        """Whether the encoder's output already is the score of every item, so that no table is stored."""
        return bool(getattr(self.model, "identity", False))

    @property
    def coded(self) -> bool:
        """Whether the model's item table is made of trained codes, which are stored as they are whatever `table` says."""
        return models.item_codes(self.model) is not None

    @property
    def format(self) -> str:
        """The format that an encoder's item table is stored in."""
        return "identity" if self.identity else "pq" if self.coded else self.table


@dataclass(frozen=True)
class CachePlan:
    """Precompute `length` items for the most frequent `share` of keys; a list older than `ttl_seconds` is not served.

    With key `user` these are the most active users; with `state`, what the newest `depth` items of a history most often
    are, whoever asks.
    """

    share: float
    length: int = 100
    ttl_seconds: float = 86_400.0
    key: str = "user"
    depth: int = 1


@dataclass(frozen=True)
class RuntimePlan:
    """Which file of `runtimes/` runs the stages, with how many threads, and its own options; with `sessions` the graphs go on,
    where they can, from what they worked out for the events before."""

    name: str = "ort"
    threads: int = 1
    options: Mapping[str, Any] = field(default_factory=dict)
    sessions: bool = False


@dataclass(frozen=True)
class Pipeline:
    """`retrieve` scores the catalogue; `rank`, if any, re-scores its best `candidates`; `cache` answers first. `notes` say of
    its making what nothing in it shows."""

    retrieve: Stage
    rank: Stage | None = None
    candidates: int = 0
    cache: CachePlan | None = None
    runtime: RuntimePlan = RuntimePlan()
    notes: tuple[str, ...] = ()

    @property
    def stages(self) -> dict[str, Stage]:
        """The stages by their names in a bundle."""
        return {"retrieve": self.retrieve} | ({} if self.rank is None else {"rank": self.rank})

    @property
    def main(self) -> Stage:
        """The stage whose scores order the final list: the one that techniques work on."""
        return self.rank or self.retrieve

    def with_main(self, stage: Stage) -> Pipeline:
        """This pipeline with another deciding stage."""
        return replace(self, rank=stage) if self.rank else replace(self, retrieve=stage)


def fingerprint(pipeline: Pipeline) -> str:
    """A digest of everything that `pipeline` would export; equal digests mean equal bundles."""
    prints = {name: models.fingerprint(stage.model) for name, stage in pipeline.stages.items()}
    return hashlib.sha256(json.dumps([prints, _plan(pipeline)], sort_keys=True).encode()).hexdigest()


def save(pipeline: Pipeline, directory: Path) -> None:
    """Store `pipeline` with its weights (safetensors), the plan last so that a half-written one is not mistaken for whole."""
    (directory / "plan.json").unlink(missing_ok=True)
    for name, stage in pipeline.stages.items():
        models.save(stage.model, directory / name)
    draft = directory / "plan.draft"
    draft.write_text(json.dumps({**_plan(pipeline), "notes": pipeline.notes}))
    draft.replace(directory / "plan.json")


def saved(directory: Path) -> bool:
    """Whether `directory` holds a whole pipeline."""
    return (directory / "plan.json").is_file()


def load(directory: Path) -> Pipeline:
    """The pipeline that `save` stored."""
    plan = json.loads((directory / "plan.json").read_text())
    stages = {name: Stage(models.load(directory / name), **formats) for name, formats in plan["stages"].items()}
    cache = None if plan["cache"] is None else CachePlan(**plan["cache"])
    runtime = RuntimePlan(**plan["runtime"])
    notes = tuple(plan.get("notes", ()))
    return Pipeline(stages["retrieve"], stages.get("rank"), plan["candidates"], cache, runtime, notes)


def _plan(pipeline: Pipeline) -> dict[str, Any]:
    """Everything that is exported but the weights, JSON-able."""
    return {
        "stages": {
            name: {
                "graph": stage.graph,
                "graph_options": dict(stage.graph_options),
                "table": stage.table,
                "table_options": dict(stage.table_options),
            }
            for name, stage in pipeline.stages.items()
        },
        "candidates": pipeline.candidates,
        "cache": None if pipeline.cache is None else asdict(pipeline.cache),
        "runtime": asdict(pipeline.runtime),
    }

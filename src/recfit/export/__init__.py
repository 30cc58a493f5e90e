"""Pipeline -> bundle directory. What is written here is what gets measured and what gets served."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from recfit import bundle
from recfit.export.lists import write_cache
from recfit.export.stage import REPORT, sensitivities, write_stage
from recfit.export.surroundings import Surroundings, surroundings, write_surroundings
from recfit.models import Model
from recfit.pipeline import Pipeline
from recfit.types import BundleError, ConfigError

__all__ = ["REPORT", "Surroundings", "export", "sensitivities", "surroundings"]


def export(
    pipeline: Pipeline,
    around: Surroundings,
    directory: Path,
    *,
    name: str,
    recipe: Mapping[str, Any],
    report: bool = False,
) -> Path:
    """Write `pipeline` as a sealed bundle at `directory`, in the place of a bundle that was there; returns `directory`.

    It is written beside and moved there once it is whole. Raises `BundleError` rather than replace anything else, and
    `ConfigError` for a model of other data. `report` adds what its graph's format does to each layer of a stage, which
    takes seconds.
    """
    _check_replaceable(directory)
    rows = pipeline.retrieve.model.catalogue.item_rows
    around = around if rows is None else around.only(rows)
    for stage in pipeline.stages.values():
        _check_sizes(stage.model, around)
    around = _carried(around, pipeline)
    draft = directory.with_name(f"{directory.name}.part")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    stages = {key: asdict(write_stage(key, draft / key, pipeline, around, report)) for key in pipeline.stages}
    write_surroundings(around, draft)
    plan = {"rank": None, **stages, "candidates": pipeline.candidates, "threads": pipeline.runtime.threads}
    manifest = {
        "name": name,
        "recipe": recipe,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "catalogue": {"users": len(around.user_ids), "items": len(around.item_ids)},
        "pipeline": {**plan, "cache": None},
        "promise": None,
    }
    bundle.seal(draft, manifest)
    if pipeline.cache is not None:
        cache = write_cache(pipeline.cache, around, draft)
        bundle.seal(draft, {**manifest, "pipeline": {**plan, "cache": cache}})
    shutil.rmtree(directory, ignore_errors=True)
    return draft.rename(directory)


def _carried(around: Surroundings, pipeline: Pipeline) -> Surroundings:
    """`around` without the values of features that no stage reads, and without the users where requests bring their histories
    and nothing in the bundle depends on who asks."""
    read = {name for stage in pipeline.stages.values() for name in stage.model.inputs}
    if "user_features" not in read and around.user_features is not None:
        around = replace(around, user_features=replace(around.user_features, values=None))
    by_user = pipeline.cache is not None and pipeline.cache.key == "user"
    if around.keep_histories or by_user or read & {"user", "user_features"}:
        return around
    return replace(around, user_ids=(), user_features=None)


def _check_replaceable(directory: Path) -> None:
    whole = (directory / bundle.MANIFEST).is_file()
    empty = not directory.exists() or (directory.is_dir() and not any(directory.iterdir()))
    if not (whole or empty):
        raise BundleError(f"{directory} holds something that is no bundle; give a new or empty directory")


def _check_sizes(model: Model, around: Surroundings) -> None:
    """A model that reads only histories may meet other users, never other items."""
    sizes = {"items": (model.catalogue.n_items, len(around.item_ids))}
    if "user" in model.inputs:
        sizes["users"] = (model.catalogue.n_users, len(around.user_ids))
    for what, (known, given) in sizes.items():
        if known != given:
            raise ConfigError(f"{model.kind} was built for {known} {what}, the data has {given}; train it on this data")

"""Targets: one file a platform that a bundle is exported to; the file's name is its key.

A target's file offers `export(bundle, directory, ...)`, which writes into an empty `directory` what the platform runs,
or refuses with `Unsupported` what it can't run, and a `README.md` that says how to call it. Beside it every export holds
`catalogue.json` (ids, titles, the fallback list, how much history is read) and `source.json` (the bundle it was made of
and what was measured of it). Needs `recfit[train]` for the package onnx, never PyTorch.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from recfit import bundle as bundles
from recfit.bundle import Bundle
from recfit.registry import find
from recfit.types import ConfigError


def export_bundle(bundle: Path | str, target: str, directory: Path | str, **options: Any) -> Path:
    """Write the verified bundle at `bundle` for `target` into a new or empty `directory`; returns `directory`.

    It is written beside and moved there once it is whole. `options` are those of the target's `export`.
    """
    module, opened, directory = find("targets", target), bundles.open_files(bundle), Path(directory)
    if directory.exists() and not (directory.is_dir() and not any(directory.iterdir())):
        raise ConfigError(f"{directory} exists and is no empty directory; give another with -o")
    draft = directory.with_name(f"{directory.name}.part")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    try:
        module.export(opened, draft, **options)
        _write(draft / "catalogue.json", _catalogue(opened))
        _write(draft / "source.json", {**_source(opened), "target": target})
        if directory.exists():
            directory.rmdir()
        return draft.rename(directory)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _catalogue(bundle: Bundle) -> dict[str, Any]:
    """What turns ids into rows and answers a request without history; rows are positions in `items`."""
    spec = bundle.stages["retrieve"]
    return {
        "items": list(bundle.item_ids),
        "titles": bundle.titles and list(bundle.titles),
        "fallback": bundle.fallback.tolist(),
        "max_history": spec.max_history,
    } | ({"users": list(bundle.user_ids)} if "user" in spec.inputs else {})


def _source(bundle: Bundle) -> dict[str, Any]:
    kept = ("name", "recipe", "bundle_id", "created", "promise")
    return {key: bundle.manifest[key] for key in kept}


def _write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")

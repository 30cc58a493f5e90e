"""What a benchmark found, as a dated JSON file in `docs/results/` that says when, where and by which command."""

from __future__ import annotations

import json
import math
import shlex
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from recfit.measure.machine import machine

FOLDER = Path(__file__).parent.parent / "docs" / "results"


def save(benchmark: str, label: str, found: Mapping[str, Any]) -> Path:
    """Write `found` to `docs/results/DATE-benchmark-label.json`, in the place of one of the same day; returns the path. What is
    no finite number becomes null, since JSON has no other word for it."""
    now = datetime.now(UTC)
    about = {
        "benchmark": benchmark,
        "at": now.isoformat(timespec="seconds"),
        "command": command(),
        "machine": machine(),
    }
    FOLDER.mkdir(exist_ok=True)
    path = FOLDER / f"{'-'.join(filter(None, (f'{now:%Y-%m-%d}', benchmark, label)))}.json"
    text = json.dumps(_finite({**about, **found}), indent=1, default=str, allow_nan=False)
    path.write_text(text + "\n", encoding="utf-8")
    return path


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def command() -> str:
    """How this run was started; of what lies elsewhere only the names."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    program = f"-m {spec.name}" if spec else sys.argv[0]
    return shlex.join(("python", *program.split(), *map(_shown, sys.argv[1:])))


def _shown(part: str) -> str:
    """An argument, or LABEL=PATH, without the folders of this machine."""
    label, mark, path = part.rpartition("=")
    return label + mark + (Path(path).name if Path(path).is_absolute() else path)

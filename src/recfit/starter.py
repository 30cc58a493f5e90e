"""What a newcomer meets first: the config that `recfit init` writes, and what `recfit doctor` finds."""

from __future__ import annotations

import importlib
import json
import shutil
import time
from typing import Any

from recfit.measure.machine import machine
from recfit.registry import names

TEMPLATE = """\
# recfit.toml: what to fit into which budget. `recfit optimize` reads it.

[data]
source = {source}            # a file (csv, tsv, parquet, .inter, sequences) or a known name
split = "leave_last(n=5)"    # or "global_time(test=0.2, validation=0.1)"
# bad_rows = "drop"          # leave bad rows out and count them, instead of stopping at the first
# min_weight = 4             # only events with at least this weight
# [data.columns]             # recfit's name = the file's, where the usual names don't do
# user_id = "customer"

[model]                      # the original: trained here ...
kind = "sasrec"              # {kinds}
# path = "model/"            # ... or a trained model (`recfit train` writes one)
# factory = "my_module:build"  # ... or your own torch module
[model.options]
layers = 2
embedding_dim = 128
heads = 4
ffn = 512
max_history = 50
[model.fit]
epochs = 60
patience = 8

[budget]                     # limits: absolute, or a share of the measured original
objective = "latency"        # among what holds every limit, the least p99; or quality, memory, cost
"ndcg@10" = "95%"
p99_ms = "0.5x"
# memory_mb = 150
# bundle_mb = "0.1x"

[search]
directory = "runs/study"
max_candidates = 40
max_minutes = 60
# techniques = {techniques}  # all by default
[search.fit]                 # training settings of students, on top of [model.fit]
max_minutes = 2.0
"""


def config(source: str) -> str:
    """A complete recfit.toml for `source`."""
    return TEMPLATE.format(
        source=json.dumps(source, ensure_ascii=False),
        kinds=", ".join(names_on_disk("models")),
        techniques=json.dumps(names_on_disk("techniques")),
    )


def names_on_disk(room: str) -> list[str]:
    """Like `registry.names`, without importing the room (some need torch)."""
    from importlib import resources

    files = resources.files("recfit").joinpath(room).iterdir()
    return sorted(file.name[:-3] for file in files if file.name.endswith(".py") and not file.name.startswith("_"))


def doctor() -> dict[str, Any]:
    """Machine, packages with their import times, runtimes, free disk space."""
    packages = {name: _import(name) for name in ("numpy", "onnxruntime", "starlette", "uvicorn", "msgspec")}
    training = {name: _import(name) for name in ("torch", "onnx", "safetensors", "pyarrow", "implicit", "tqdm")}
    return {
        "machine": machine(),
        "serving": packages,
        "training": training,
        "runtimes": list(names("runtimes")),
        "disk_free_gb": round(shutil.disk_usage(".").free / 1e9, 1),
        "can_serve": all("version" in found for found in packages.values()),
        "can_optimize": all("version" in found for found in {**packages, **training}.values()),
    }


def _import(name: str) -> dict[str, Any]:
    begin = time.perf_counter()
    try:
        module = importlib.import_module(name)
    except ImportError as error:
        return {"missing": str(error)}
    return {"version": str(getattr(module, "__version__", "?")), "seconds": round(time.perf_counter() - begin, 2)}


def doctor_text(found: dict[str, Any]) -> str:
    """What `doctor` found, for the terminal, with the next step where something is missing."""
    print_of = found["machine"]
    lines = [
        f"machine   {print_of['cpu']}, {print_of['cores']} cores, {print_of['memory_gb']} GB, {', '.join(print_of['isa'])}",
        f"system    {print_of['os']}, Python {print_of['python']}, {found['disk_free_gb']} GB of disk free here",
    ]
    for group, extra in (("serving", "recfit"), ("training", "'recfit[train]'")):
        for name, state in found[group].items():
            shown = (
                f"{state['version']} ({state['seconds']} s)" if "version" in state else f"MISSING; pip install {extra}"
            )
            lines.append(f"{group:9} {name:12} {shown}")
    lines.append(f"runtimes  {', '.join(found['runtimes'])}")
    lines.append(f"ready to serve: {_yes(found['can_serve'])}; ready to optimize: {_yes(found['can_optimize'])}")
    return "\n".join(lines)


def _yes(value: bool) -> str:
    return "yes" if value else "no"

"""What a newcomer meets first: the config that `recfit init` writes, and what `recfit doctor` finds."""

from __future__ import annotations

import importlib
import json
import re
import shutil
import time
from collections.abc import Mapping
from importlib import metadata, resources
from typing import Any

from recfit.measure.machine import machine

# Packages whose module has another name.
MODULES = {"faiss-cpu": "faiss"}
TEMPLATE = """\
# recfit.toml: what to fit into which budget. `recfit optimize` reads it. Paths are relative to this file.

[data]                       # a file (csv, tsv, parquet, .inter, sequences) or a known name
source = {source}
split = "leave_last"         # each user's last event is the test; "leave_last(n=5)": the last five, where histories are
                             # long; "global_time(test=0.2, validation=0.1)": everything after one point in time
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

[budget]                     # limits, absolute or relative to the measured original; and what is best among what holds them
objective = "latency"        # the least p99; or memory, cost (the least), quality (the most)
"ndcg@10" = "95%"            # keep 95 % of the original's; 0.1 would be a floor of its own
p99_ms = "0.5x"              # half of the original's; 2 would be two milliseconds
# memory_mb = 150            # so, too: p50_ms, p95_ms, bundle_mb, load_s, qps, recall@10, mrr@10
# accept_undecided = true    # let a limit count that these users cannot decide

[search]
directory = "runs/study"     # everything the search makes; the same command goes on where it stopped
max_candidates = 40
max_minutes = 60
memory_gb = 8                # of one training
# techniques = {techniques}
[search.fit]                 # training settings of students, on top of [model.fit]
max_minutes = 2.0

[serve]                      # where `recfit serve recfit.toml` listens
port = 8000
histories = "bundle"         # "request": every request brings its own, and bundles don't store what users did
"""


def config(source: str) -> str:
    """A complete recfit.toml for `source`."""
    return TEMPLATE.format(
        source=json.dumps(source, ensure_ascii=False),
        kinds=", ".join(name for name in names_on_disk("models") if name != "custom"),
        techniques=json.dumps(names_on_disk("techniques")),
    )


def names_on_disk(room: str) -> list[str]:
    """Like `registry.names`, without importing the room (some need torch)."""
    files = resources.files("recfit").joinpath(room).iterdir()
    return sorted(file.name[:-3] for file in files if file.name.endswith(".py") and not file.name.startswith("_"))


def doctor() -> dict[str, Any]:
    """Machine, the packages recfit asks for with their import times, runtimes, free disk space."""
    serving, training = ({name: _import(name) for name in packages(extra)} for extra in (None, "train"))
    return {
        "machine": machine(),
        "serving": serving,
        "training": training,
        "runtimes": names_on_disk("runtimes"),
        "disk_free_gb": round(shutil.disk_usage(".").free / 1e9, 1),
        "can_serve": _complete(serving),
        "can_optimize": _complete(serving) and _complete(training),
    }


def packages(extra: str | None) -> list[str]:
    """The packages that recfit's own metadata asks for, always or with the `extra`."""
    asked = [re.fullmatch(r"([\w.-]+)([^;]*)(?:;(.*))?", line) for line in metadata.requires("recfit") or []]
    marks = [(line[1], re.search(r"""extra == ['"](\w+)""", line[3] or "")) for line in asked if line]
    return [name for name, wanted in marks if (wanted and wanted[1]) == extra]


def _complete(found: Mapping[str, Any]) -> bool:
    return all("version" in state for state in found.values())


def _import(package: str) -> dict[str, Any]:
    begin = time.perf_counter()
    try:
        importlib.import_module(MODULES.get(package, package.replace("-", "_")))
    except ImportError as error:
        return {"missing": str(error)}
    return {"version": metadata.version(package), "seconds": round(time.perf_counter() - begin, 2)}


def doctor_text(found: Mapping[str, Any]) -> str:
    """What `doctor` found, for the terminal, with the next step where something is missing."""
    machine = found["machine"]
    isa = ", ".join(machine["isa"]) or "no vector extensions known"
    lines = [
        f"machine   {machine['cpu']}, {machine['cores']} cores, {machine['memory_gb']} GB",
        f"          {isa}",
        f"system    {machine['os']}, Python {machine['python']}, {found['disk_free_gb']} GB of disk free here",
        f"runtimes  {', '.join(found['runtimes'])}",
    ]
    for group, extra in (("serving", "recfit"), ("training", "'recfit[train]'")):
        for name, state in found[group].items():
            missing = f"MISSING; pip install {extra}"
            shown = f"{state['version']:14} imported in {state['seconds']:.2f} s" if "version" in state else missing
            lines.append(f"{group:9} {name:18} {shown}")
    lines.append(f"ready to serve: {_yes(found['can_serve'])}; ready to optimize: {_yes(found['can_optimize'])}")
    if not found["can_optimize"]:
        lines.append("next: pip install 'recfit[train]'")
    else:
        lines.append("next: recfit init --data YOUR_EVENTS.csv")
    return "\n".join(lines)


def _yes(value: bool) -> str:
    return "yes" if value else "no"

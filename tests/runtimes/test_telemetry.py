"""Nobody is told what a machine serves."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import toys
from recfit.pipeline import Pipeline

Exported = Callable[[Pipeline], Path]

# ONNX Runtime reads the variable once, when it is loaded: recfit has to have set it before.
ASK = """
import os, sys
import recfit
assert "onnxruntime" not in sys.modules
engine = recfit.open_bundle(sys.argv[1])
engine.recommend([recfit.Request(history=engine.bundle.item_ids[:3])])
assert "onnxruntime" in sys.modules
print(os.environ["ORT_DISABLE_TELEMETRY"])
"""


@pytest.mark.parametrize(("told", "is_read"), [(None, "1"), ("0", "0")], ids=["as it comes", "asked to"])
def test_onnx_runtime_is_told_to_keep_no_events_for_its_makers_unless_asked_to(
    told: str | None, is_read: str, exported: Exported, tmp_path: Path
) -> None:
    kept = {name: value for name, value in os.environ.items() if "TELEMETRY" not in name and "XDG" not in name}
    environment = {**kept, "HOME": str(tmp_path)} | ({} if told is None else {"ORT_DISABLE_TELEMETRY": told})
    command = [sys.executable, "-c", ASK, str(exported(toys.original("mlp")))]
    ran = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    assert ran.stdout.strip() == is_read
    if told is None:  # asked to, it writes when it gets to it
        assert not list(tmp_path.rglob("*onnxruntime*"))

"""Nobody is told what a machine serves."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

# ONNX Runtime reads the variable once, when it is loaded: recfit has to have set it before.
ASK = """
import os, sys
import recfit
assert "onnxruntime" not in sys.modules
print(os.environ["ORT_DISABLE_TELEMETRY"])
"""


@pytest.mark.parametrize(("told", "is_read"), [(None, "1"), ("0", "0")], ids=["as it comes", "asked to"])
def test_onnx_runtime_tells_its_makers_nothing_unless_asked_to(told: str | None, is_read: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    environment |= {} if told is None else {"ORT_DISABLE_TELEMETRY": told}
    ran = subprocess.run([sys.executable, "-c", ASK], env=environment, check=True, capture_output=True, text=True)
    assert ran.stdout.strip() == is_read

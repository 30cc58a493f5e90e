"""Nobody is told what a machine serves."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import toys
from recfit.export import export

OPEN = "import sys; from recfit import open_bundle; open_bundle(sys.argv[1]).warm_up()"


@pytest.mark.parametrize("told", [True, False], ids=["as it comes", "asked to"])
def test_onnx_runtime_keeps_no_events_for_its_makers(told: bool, tmp_path: Path) -> None:
    bundle = export(toys.original("mlp"), toys.around(), tmp_path / "bundle", name="toy", recipe={"id": "r0"})
    home = tmp_path / "home"
    home.mkdir()
    environment = {name: value for name, value in os.environ.items() if "TELEMETRY" not in name and "XDG" not in name}
    environment |= {"HOME": str(home)} if told else {"HOME": str(home), "ORT_DISABLE_TELEMETRY": "0"}
    subprocess.run([sys.executable, "-c", OPEN, str(bundle)], env=environment, check=True)
    assert told == (not list(home.rglob("*onnxruntime*")))

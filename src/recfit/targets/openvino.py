"""OpenVINO: the encoder's whole request as one model in IR, for OpenVINO's own libraries and OpenVINO Model Server.

A ranker scores the items that it is given. Needs `recfit[openvino]`.
"""

from __future__ import annotations

from pathlib import Path

from recfit.bundle import Bundle
from recfit.runtimes import openvino
from recfit.targets import _graph

README = """# {name}, for OpenVINO

`model.xml` and `model.bin` are one model; `openvino.Core().compile_model("model.xml", "CPU", {{"INFERENCE_PRECISION_HINT":
"f32"}})` opens it. Without that hint processors with bfloat16 may round on their own.

{ports}
"""


def export(bundle: Bundle, directory: Path) -> None:
    model, ports = _graph.server(bundle)
    openvino.save(model, directory / openvino.IR)
    text = README.format(name=bundle.manifest["name"], ports=ports)
    (directory / "README.md").write_text(text, encoding="utf-8")

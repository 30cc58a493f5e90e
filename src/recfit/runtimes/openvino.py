"""OpenVINO: the graph of runtime `fused`, stored as OpenVINO's own IR and compiled for this processor when it opens.

It reads ONNX Runtime's operators too. Needs `recfit[openvino]`.
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from recfit.runtimes import Scorer, StageSpec, fused
from recfit.types import BundleError, Unsupported

IR = "model.xml"
RESCORER = fused.RESCORER
OPTIONS = ("precision",)
PRECISIONS = {"float32": "f32", "bf16": "bf16"}  # of activations and products; OpenVINO's names
MISSING = "OpenVINO is not installed; pip install 'recfit[openvino]'"
# ONNX Runtime knows it without a domain, OpenVINO under ONNX Runtime's.
RENAMED = "SimplifiedLayerNormalization"
MICROSOFT = "com.microsoft"


def convert(directory: Path, spec: StageSpec) -> None:
    """Replace the graphs and the item table in `directory` by one model in IR. Raises `Unsupported`. Needs `onnx`."""
    import onnx

    fused.convert(directory, spec)
    save(onnx.load(directory / fused.FUSED), directory / IR)
    (directory / fused.FUSED).unlink()
    shutil.rmtree(directory / "table", ignore_errors=True)


def save(model: Any, path: Path) -> None:
    """Write the ONNX `model` as IR at `path` (.xml), its numbers beside it (.bin)."""
    try:
        import openvino
    except ImportError as error:
        raise Unsupported(MISSING) from error
    try:
        # `openvino.convert_model` would do the same and report its use over the network.
        read = openvino.Core().read_model(readable(model).SerializeToString())
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise Unsupported(
            f"OpenVINO {openvino.__version__} cannot read this graph: {reason}; keep name='ort'"
        ) from error
    _break_ties(read)
    openvino.save_model(read, path, compress_to_fp16=False)


def _break_ties(model: Any) -> None:
    """Equal scores go to the lower row, which ONNX says of its `TopK` and OpenVINO's does when it is told."""
    from openvino import opset11

    for node in model.get_ops():
        if node.get_type_name() == "TopK":
            scores, k = (port.get_source_output() for port in node.inputs())
            told = opset11.topk(scores, k, -1, "max", "value", index_element_type="i64", stable=True)
            for old, new in zip(node.outputs(), told.outputs(), strict=True):
                new.get_tensor().set_names(old.get_names())
                old.replace(new)


def readable(model: Any) -> Any:
    """A copy of the ONNX `model` that OpenVINO reads."""
    from onnx import ModelProto, helper

    copy = ModelProto()
    copy.CopyFrom(model)
    for node in copy.graph.node:
        if node.op_type == RENAMED:
            node.domain = MICROSOFT
    if all(opset.domain != MICROSOFT for opset in copy.opset_import):
        copy.opset_import.append(helper.make_opsetid(MICROSOFT, 1))
    return copy


def rounds(spec: StageSpec) -> bool:
    """Whether numbers of 16 bits are rounded on the way, in places that differ from one shape of a batch to another."""
    return bool(spec.options.get("precision", "float32") != "float32")


def open_scorer(directory: Path, spec: StageSpec, threads: int) -> Scorer:
    precision = PRECISIONS[spec.options.get("precision", "float32")]
    return fused.Fused(Session(directory / IR, threads, precision), spec)


class Session:
    """A compiled model that is asked like a session of ONNX Runtime. One request at a time in every thread.

    Where a processor has no products of `precision`, OpenVINO calculates in float32.
    """

    def __init__(self, path: Path, threads: int, precision: str = "f32") -> None:
        try:
            import openvino
        except ImportError as error:
            raise BundleError(f"this bundle runs on OpenVINO: {MISSING}") from error
        settings = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": threads,
            "INFERENCE_PRECISION_HINT": precision,  # its default is whatever type the processor has
            "ENABLE_CPU_PINNING": False,
        }
        try:
            self._model = openvino.Core().compile_model(path, "CPU", settings)
        except RuntimeError as error:
            raise BundleError(f"OpenVINO {openvino.__version__} cannot load {path}: {error}") from error
        self._requests = threading.local()

    def get_inputs(self) -> Sequence[Any]:
        return [SimpleNamespace(name=port.any_name) for port in self._model.inputs]

    def run(self, _: None, inputs: Mapping[str, Any]) -> list[Any]:
        request = getattr(self._requests, "own", None)
        if request is None:
            request = self._requests.own = self._model.create_infer_request()
        found = request.infer(inputs, share_inputs=True)
        return list(found.values())

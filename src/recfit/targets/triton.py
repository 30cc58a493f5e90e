"""NVIDIA Triton Inference Server: a model repository with one ONNX model, put into batches by the server.

Requests of one batch must have the same shapes, so clients pad histories to one length on the left with 0 and `gone`
with -1. A ranker scores the items that it is given.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from recfit.bundle import Bundle
from recfit.targets import _graph

BATCH = 128
QUEUE_MICROSECONDS = 200
README = """# {name}, for Triton

    tritonserver --model-repository model_repository

{ports}

The server puts up to {batch} requests of equal shapes together and waits {wait} us for them at most. `instance_group` in
`config.pbtxt` is how many batches run side by side, each with {threads} thread(s), as the bundle was measured.
"""


def export(bundle: Bundle, directory: Path) -> None:
    model, ports = _graph.server(bundle)
    name = re.sub(r"\W+", "_", bundle.manifest["name"], flags=re.ASCII).strip("_") or "recommender"
    folder = directory / "model_repository" / name
    (folder / "1").mkdir(parents=True)
    (folder / "1" / "model.onnx").write_bytes(model.SerializeToString())
    (folder / "config.pbtxt").write_text(config(name, model.graph, bundle.threads), encoding="utf-8")
    numbers = {"batch": BATCH, "wait": QUEUE_MICROSECONDS, "threads": bundle.threads}
    text = README.format(name=bundle.manifest["name"], ports=ports, **numbers)
    (directory / "README.md").write_text(text, encoding="utf-8")


def config(name: str, graph: Any, threads: int) -> str:
    """The `config.pbtxt` of a graph whose inputs and outputs all begin with the batch (text format of `ModelConfig` in
    Triton's model_config.proto)."""
    counts = {"intra_op_thread_count": threads, "inter_op_thread_count": 1}
    parameters = [f'{{ key: "{key}" value: {{ string_value: "{count}" }} }}' for key, count in counts.items()]
    lines = [
        f'name: "{name}"',
        'backend: "onnxruntime"',
        f"max_batch_size: {BATCH}",
        _listed("input", map(_port, graph.input)),
        _listed("output", map(_port, graph.output)),
        f"dynamic_batching {{ max_queue_delay_microseconds: {QUEUE_MICROSECONDS} }}",
        "instance_group [ { kind: KIND_CPU count: 1 } ]",
        _listed("parameters", parameters),
    ]
    return "\n".join(lines) + "\n"


def _listed(what: str, entries: Iterable[str]) -> str:
    lines = ",\n  ".join(entries)
    return f"{what} [\n  {lines}\n]"


def _port(port: Any) -> str:
    """Name, type and the sizes after the batch. Triton has no empty shape: one number a request is `[1]`, reshaped."""
    from onnx import TensorProto

    kinds = {TensorProto.INT64: "TYPE_INT64", TensorProto.FLOAT: "TYPE_FP32"}
    sizes = [size.dim_value or -1 for size in port.type.tensor_type.shape.dim][1:]
    shape = f"dims: {sizes}" if sizes else "dims: [1] reshape: { shape: [] }"
    return f'{{ name: "{port.name}" data_type: {kinds[port.type.tensor_type.elem_type]} {shape} }}'

"""The one ONNX model of a bundle that every target starts from."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from recfit.bundle import Bundle
from recfit.runtimes import StageSpec, fused, ort
from recfit.types import Unsupported

LIMIT = 2**31
"""Bytes that one ONNX file can hold."""
LENGTH = 100
"""Items of a list where a server puts requests together, fewer where the catalogue has fewer."""
PORTS = {
    "encoder": """Requests of one batch have equal shapes, so histories are padded on the left with 0 and `gone` with -1.
Positions are those of `items` in `catalogue.json`.

| | name | type and shape | |
| --- | --- | --- | --- |
| in | `history` | int64 [B, L] | the newest {max_history} events at most, oldest first: position in `items` + 1 |
| in | `gone` | int64 [B, G] | positions of what must not be shown: the whole history, and more |
| out | `{outputs[0]}` | float32 [B, {length}] | scores, best first; -infinity stands for nothing left to show |
| out | `{outputs[1]}` | int64 [B, {length}] | positions in `items` |

Leave out ids that are not in `items`. Without any event show `fallback` of `catalogue.json`, from its start.""",
    "ranker": """| | name | type and shape | |
| --- | --- | --- | --- |
| in | `items` | int64 [B, C] | what to score: position in `items` of `catalogue.json` + 1 |
| in | `user` | int64 [B] | position in `users` + 1, 0 for anybody else |
| in | `history` | int64 [B, L] | the newest events, oldest first, padded on the left with 0 |
| out | `{outputs[0]}` | float32 [B, C] | scores |

The graph lacks inputs that no score depends on.""",
}


def encoder(bundle: Bundle) -> Any:
    """`history` int64 [B, L], `gone` int64 [g, 2] (line, item row), `k` int64 [1] -> scores and item rows, both [B, k].

    The graph of runtime `fused`, its numbers inside. Raises `Unsupported` where a history is not all that it takes.
    """
    spec = _only_stage(bundle)
    if spec.kind != "encoder":
        raise Unsupported(f"{_named(bundle)} is a ranker, which scores given items; export it to openvino or triton")
    return _loaded(bundle, spec, ("history",))


def server(bundle: Bundle) -> tuple[Any, str]:
    """A model whose inputs and outputs have one line a request, and what they are, in words. A ranker's is its own graph:
    `items` int64 [B, C] and what it takes besides -> scores [B, C]."""
    spec = _only_stage(bundle)
    ranker = spec.kind == "ranker"
    model = _loaded(bundle, spec, ("history", "user")) if ranker else _batched(encoder(bundle), bundle.n_items)
    words = PORTS[spec.kind].format(
        max_history=spec.max_history,
        outputs=[part.name for part in model.graph.output],
        length=min(LENGTH, bundle.n_items),
    )
    return model, words


def _only_stage(bundle: Bundle) -> StageSpec:
    if "rank" in bundle.stages:
        raise Unsupported(f"{_named(bundle)} has two stages and a target runs one; export a recipe without two_stage")
    if bundle.cache is not None:
        raise Unsupported(f"{_named(bundle)} holds lists of users, made to be served; export its recipe without cache")
    spec = bundle.stages["retrieve"]
    if spec.runtime not in ("ort", "fused"):
        raise Unsupported(
            f"{_named(bundle)} runs on {spec.runtime} and has no ONNX graph; export its recipe with runtime name='ort'"
        )
    if spec.remembers:
        raise Unsupported(
            f"{_named(bundle)} goes on from sessions of a server; make it again with [serve] session_mb = 0"
        )
    return spec


def _named(bundle: Bundle) -> str:
    return f"bundle {bundle.manifest['name']!r}"


def _loaded(bundle: Bundle, spec: StageSpec, known: Sequence[str]) -> Any:
    """The stage's graph and numbers; its inputs must be among the `known`."""
    import onnx

    if others := [name for name in spec.inputs if name not in known]:
        raise Unsupported(
            f"{_named(bundle)} takes {', '.join(others)}, which are not there; export a model of histories"
        )
    with tempfile.TemporaryDirectory() as folder:
        stage = Path(folder) / "stage"
        shutil.copytree(bundle.directory / "retrieve", stage)
        if spec.runtime == "ort" and spec.kind == "encoder":
            fused.convert(stage, spec)
        model = onnx.load(stage / (fused.FUSED if spec.kind == "encoder" else ort.GRAPH))
    if (size := model.ByteSize()) >= LIMIT:
        raise Unsupported(
            f"{_named(bundle)} has {size / 1e9:.1f} GB of numbers, one ONNX file holds 2.1; reduce it first"
        )
    return model


def _batched(model: Any, n_items: int) -> Any:
    """The model of `encoder` with `gone` int64 [B, G], item rows, where -1 pads, and lists of one length: -inf scores
    what is gone."""
    from onnx import TensorProto, helper, numpy_helper

    graph = model.graph
    length, (scores, scoring) = min(LENGTH, n_items), _before_selection(graph.node)
    constants = {
        "open.pads": np.array([0, 0, 0, 1]),  # one item more, which stands for the padding
        "open.never": np.float32(-np.inf),
        "open.first": np.int64(0),
        "open.padding": np.int64(n_items),
        "open.length": np.array([length]),
    }
    selection = [
        helper.make_node("Pad", [scores, "open.pads", "open.never"], ["open.scores"]),
        helper.make_node("Less", ["gone", "open.first"], ["open.pad"]),
        helper.make_node("Where", ["open.pad", "open.padding", "gone"], ["open.gone"]),
        helper.make_node("Shape", ["gone"], ["open.shape"]),
        helper.make_node("Expand", ["open.never", "open.shape"], ["open.lowest"]),
        helper.make_node("ScatterElements", ["open.scores", "open.gone", "open.lowest"], ["open.left"], axis=1),
        helper.make_node("TopK", ["open.left", "open.length"], [part.name for part in graph.output]),
    ]
    asked = [part for part in graph.input if part.name not in ("gone", "k")]
    gone = helper.make_tensor_value_info("gone", TensorProto.INT64, ["batch", "gone"])
    kinds = {part.name: part.type.tensor_type.elem_type for part in graph.output}
    found = [helper.make_tensor_value_info(name, kind, ["batch", length]) for name, kind in kinds.items()]
    weights = [*graph.initializer, *(numpy_helper.from_array(np.asarray(v), name) for name, v in constants.items())]
    whole = helper.make_graph([*scoring, *selection], "recommend", [*asked, gone], found, weights)
    return helper.make_model(whole, opset_imports=model.opset_import, ir_version=model.ir_version)


def _before_selection(nodes: Iterable[Any]) -> tuple[str, list[Any]]:
    """The name of the scores that `gone` is struck from, and the nodes that make them."""
    chosen, kept, scores = {"gone", "k"}, [], ""
    for node in nodes:
        if chosen.isdisjoint(node.input):
            kept.append(node)
            continue
        chosen.update(node.output)
        if node.op_type == "ScatterND":
            scores = node.input[0]
    return scores, kept

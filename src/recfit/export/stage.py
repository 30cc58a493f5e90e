"""A stage as files: its graph in its format, its item table, and what its runtime makes of both."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from recfit import graphs, models
from recfit.export import _sparse
from recfit.export.surroundings import Surroundings
from recfit.export.tracing import write_graph
from recfit.models import Continuing, Foresighted, Tied
from recfit.pipeline import Pipeline, Stage
from recfit.registry import find
from recfit.runtimes import StageSpec, rounds_by_batch
from recfit.tables import pq
from recfit.types import Unsupported

GRAPH = "model.onnx"
REPORT = "quantization.json"


def write_stage(name: str, directory: Path, pipeline: Pipeline, around: Surroundings, report: bool) -> StageSpec:
    directory.mkdir()
    stage = pipeline.stages[name]
    runtime = find("runtimes", pipeline.runtime.name)
    if name == "rank":
        runtime = find("runtimes", getattr(runtime, "RESCORER", pipeline.runtime.name))
    spec = replace(
        _described(stage), runtime=runtime.__name__.rsplit(".", 1)[1], options=dict(pipeline.runtime.options)
    )
    if pipeline.runtime.sessions and getattr(runtime, "SESSIONS", False):
        spec = replace(spec, remembers=_remembers(stage))
    if spec.runtime == "torch":
        models.save(stage.model, directory / "model")
        return spec
    spec, feed = _write_float32(stage, spec, around, directory)
    spec = replace(spec, alone=_alone(stage) or rounds_by_batch(spec))
    if report and stage.graph != "float32":
        _write_report(stage, sensitivities(stage, around), directory)
    graphs.convert(directory / GRAPH, stage.graph, stage.graph_options, feed)
    _sparse.pack(directory / GRAPH)
    if convert := getattr(runtime, "convert", None):
        convert(directory, spec)
    return spec


def _remembers(stage: Stage) -> int:
    """How many numbers the graph of `stage` can leave of each event, for requests that go on from there; 0: it can't."""
    return stage.model.remembers if isinstance(stage.model, Continuing) and not _alone(stage) else 0


def _ahead(stage: Stage, spec: StageSpec) -> bool:
    """Whether the graph of `stage` makes something of all items when it is opened."""
    asked = spec.runtime == "fused" and spec.options.get("ahead", False) and isinstance(stage.model, Foresighted)
    if asked and spec.remembers:
        raise Unsupported("a graph that goes on from sessions makes nothing of items ahead; leave out ahead")
    return asked


def _alone(stage: Stage) -> bool:
    return getattr(find("graphs", stage.graph), "ALONE", False)


def sensitivities(stage: Stage, around: Surroundings) -> list[graphs.LayerError]:
    """What the graph format of `stage` does to each of its layers, the worst first."""
    with tempfile.TemporaryDirectory() as folder:
        _, feed = _write_float32(stage, _described(stage), around, Path(folder))
        return graphs.report(Path(folder) / GRAPH, stage.graph, stage.graph_options, feed)


def _described(stage: Stage) -> StageSpec:
    model = stage.model
    return StageSpec(stage.kind, "ort", model.inputs, model.catalogue.n_items, model.max_history)


def _write_float32(
    stage: Stage, spec: StageSpec, around: Surroundings, directory: Path
) -> tuple[StageSpec, graphs.Feed]:
    """The graph as it is exported, and the item table; returns how they are stored, and inputs of the graph."""
    write_graph(stage, directory / GRAPH, remembers=spec.remembers, ahead=_ahead(stage, spec))
    if stage.kind == "encoder":
        spec = replace(spec, tied=isinstance(stage.model, Tied), table=_write_table(stage, directory / "table"))
    known = around.histories, around.user_features, around.fallback
    return spec, partial(graphs.calibration, directory, spec, *known)


def _write_report(stage: Stage, found: Sequence[graphs.LayerError], directory: Path) -> None:
    skip = stage.graph_options.get("skip", ())
    layers = [{**asdict(part), "format": "float32" if part.layer in skip else stage.graph} for part in found]
    text = json.dumps({"format": stage.graph, "options": dict(stage.graph_options), "layers": layers}, indent=1)
    (directory / REPORT).write_text(text, encoding="utf-8")


def _write_table(stage: Stage, directory: Path) -> dict[str, Any]:
    if stage.identity:
        return {"format": "identity", "dim": stage.model.catalogue.n_items}
    if (coded := models.item_codes(stage.model)) is not None:
        return _write_codes(*coded, directory)
    with torch.inference_mode():
        vectors = stage.model.item_vectors().float().numpy()  # type: ignore[attr-defined]
    settings = {**stage.table_options, "dim": vectors.shape[1]}
    module = find("tables", stage.table)
    module.write(vectors, directory, module.Config(**settings))
    return {"format": stage.table, **settings}


def _write_codes(sub_ids: Tensor, centroids: Tensor, directory: Path) -> dict[str, Any]:
    """Trained codes are stored as they are."""
    parts, codes, width = centroids.shape
    config = pq.Config(parts * width, parts, codes)
    pq.write_codes(sub_ids.numpy(), centroids.detach().numpy(), directory, config)
    return {"format": "pq", **asdict(config)}

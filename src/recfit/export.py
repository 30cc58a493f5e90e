"""Pipeline -> bundle directory. What is written here is what gets measured and what gets served."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from recfit import bundle, models
from recfit.engine import Engine
from recfit.models import Tied
from recfit.pipeline import CachePlan, Pipeline, Stage
from recfit.registry import find
from recfit.runtimes import Batch, StageSpec
from recfit.types import Features, IntArray, Ragged, Rows, Split

OPSET = 17


@dataclass(frozen=True)
class Surroundings:
    """What a bundle carries beside its models: id maps, titles, the histories of the snapshot, and all items, the most
    popular first."""

    user_ids: tuple[str, ...]
    item_ids: tuple[str, ...]
    titles: tuple[str, ...] | None
    user_features: Features | None
    histories: Ragged
    fallback: Rows


def surroundings(split: Split, histories: Ragged) -> Surroundings:
    """What bundles of `split` carry, with `histories` as the users' known past."""
    counts = np.bincount(split.train.item, minlength=split.n_items)
    popular = np.argsort(-counts, kind="stable").astype(np.int32)
    train = split.train
    return Surroundings(train.user_ids, train.item_ids, train.titles, train.user_features, histories, popular)


def export(pipeline: Pipeline, around: Surroundings, directory: Path, *, name: str, recipe: Mapping[str, Any]) -> Path:
    """Write `pipeline` as a sealed bundle at `directory`, in the place of a bundle that was there; returns `directory`.

    It is written beside and moved there when it is whole. Raises `BundleError` rather than replace anything else.
    """
    if directory.exists() and any(directory.iterdir()) and not (directory / bundle.MANIFEST).is_file():
        raise BundleError(f"{directory} holds files that are no bundle; give a new or empty directory")
    draft = directory.with_name(f"{directory.name}.part")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    manifest = _write_parts(pipeline, around, draft)
    _seal(pipeline, {"name": name, "recipe": recipe, **manifest}, draft)
    shutil.rmtree(directory, ignore_errors=True)
    return draft.rename(directory)


def _write_parts(pipeline: Pipeline, around: Surroundings, directory: Path) -> dict[str, Any]:
    manifest = {
        "name": name,
        "recipe": recipe,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "catalogue": {"users": len(around.user_ids), "items": len(around.item_ids)},
        "pipeline": {
            "retrieve": stages["retrieve"],
            "rank": stages.get("rank"),
            "candidates": pipeline.candidates,
            "cache": None,
            "threads": pipeline.runtime.threads,
        },
        "promise": None,
    }
    bundle.seal(directory, manifest)
    if pipeline.cache is not None:
        stored = _write_cache(pipeline.cache, around.histories, directory)
        bundle.seal(directory, {**manifest, "pipeline": {**manifest["pipeline"], "cache": stored}})  # type: ignore[dict-item]
    return directory


def _write_stage(stage: Stage, directory: Path, pipeline: Pipeline) -> StageSpec:
    directory.mkdir()
    model = stage.model
    spec = StageSpec(
        kind=stage.kind,
        runtime=pipeline.runtime.name,
        inputs=model.inputs,
        n_items=model.catalogue.n_items,
        max_history=model.max_history,
        options=dict(pipeline.runtime.options),
    )
    if pipeline.runtime.name == "torch":
        models.save(model, directory / "model")
        return spec
    _write_graph(stage, directory / "model.onnx")
    if stage.kind == "ranker":
        return spec
    table = _write_table(stage, directory / "table")
    return replace(spec, tied=isinstance(model, Tied), table=table)


def _write_table(stage: Stage, directory: Path) -> dict[str, Any]:
    if stage.identity:
        return {"format": "identity", "dim": stage.model.catalogue.n_items}
    with torch.inference_mode():
        vectors = stage.model.item_vectors().float().numpy()  # type: ignore[attr-defined]
    settings = {"dim": vectors.shape[1], **stage.table_options}
    module = find("tables", stage.table)
    module.write(vectors, directory, module.Config(**settings))
    return {"format": stage.table, **settings}


def _write_graph(stage: Stage, path: Path) -> None:
    """The ONNX graph of a stage, with dynamic batch, history and candidate lengths."""
    names, arguments = example_inputs(stage)
    axes = {
        name: dict(enumerate(("batch", name)[: argument.ndim])) for name, argument in zip(names, arguments, strict=True)
    }
    if "vectors" in axes:
        axes["vectors"] = axes["history"]
    module = _Graph(stage, names).eval()
    with warnings.catch_warnings(), torch.inference_mode():
        # The TorchScript exporter takes 0.3 s where the newer one takes 3.6 s; a search exports dozens of graphs.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module,
            tuple(arguments),
            str(path),
            input_names=names,
            output_names=["output"],
            dynamic_axes={**axes, "output": {0: "batch"}},
            opset_version=OPSET,
            dynamo=False,
        )
    if stage.graph == "int8":
        _quantize_graph(path)


def _quantize_graph(path: Path) -> None:
    """int8 weights and dynamically quantized activations for every matrix product of the graph at `path`."""
    import logging

    from onnxruntime.quantization import QuantType, quantize_dynamic

    logging.getLogger().setLevel(logging.ERROR)  # it advises a pre-processing step that does nothing for these graphs
    quantize_dynamic(
        path, path, weight_type=QuantType.QInt8, per_channel=True, op_types_to_quantize=["MatMul", "Gemm", "Gather"]
    )


def example_inputs(stage: Stage) -> tuple[list[str], list[Tensor]]:
    """Names and example values of what the graph of `stage` takes, in order."""
    model, names, values = stage.model, [], []
    if stage.kind == "ranker":
        names.append("items")
        values.append(torch.ones(2, 3, dtype=torch.long))
    for name in model.inputs:
        names.append(name)
        values.append(_example(name, stage))
    if stage.kind == "encoder" and isinstance(model, Tied):
        names.append("vectors")
        values.append(torch.zeros(2, 4, model.item_vectors().shape[1]))  # type: ignore[attr-defined]
    return names, values


def _example(name: str, stage: Stage) -> Tensor:
    if name == "user":
        return torch.ones(2, dtype=torch.long)
    if name == "user_features":
        features = stage.model.catalogue.user_features
        assert features is not None
        return torch.zeros(2, len(features.names), dtype=torch.long)
    return torch.ones(2, 4, dtype=torch.long)


class _Graph(nn.Module):
    """Presents `encode`, `encode_vectors` or `score` as a `forward` with positional arguments."""

    def __init__(self, stage: Stage, names: list[str]) -> None:
        super().__init__()
        self.stage, self.names = stage, names
        self.model: Any = stage.model

    def forward(self, *arguments: Tensor) -> Tensor:
        given = dict(zip(self.names, arguments, strict=True))
        if self.stage.kind == "ranker":
            scores: Tensor = self.model.score(**given)
            return scores
        encode = self.model.encode_vectors if isinstance(self.model, Tied) else self.model.encode
        vector: Tensor = encode(**given)
        return vector


def _write_surroundings(around: Surroundings, directory: Path) -> None:
    features = around.user_features
    catalogue = {
        "users": around.user_ids,
        "items": around.item_ids,
        "titles": around.titles,
        "user_features": None if features is None else {"names": features.names, "sizes": features.sizes},
    }
    (directory / "catalogue.json").write_text(json.dumps(catalogue, ensure_ascii=False))
    np.save(directory / "histories.indptr.npy", around.histories.indptr)
    np.save(directory / "histories.values.npy", around.histories.values)
    np.save(directory / "fallback.npy", around.fallback)
    if features is not None:
        np.save(directory / "user_features.npy", features.codes)


def _write_cache(plan: CachePlan, histories: Ragged, directory: Path) -> dict[str, Any]:
    """Precompute the lists of the most active users with the bundle itself."""
    count = max(1, round(plan.share * len(histories)))
    users = np.sort(np.argsort(-histories.sizes, kind="stable")[:count])
    engine = Engine(bundle.open_files(directory))
    items = np.full((count, plan.length), -1, dtype=np.int32)
    scores = np.zeros((count, plan.length), dtype=np.float32)
    for start in range(0, count, 64):
        for line, (rows, best) in enumerate(_lists(engine, users[start : start + 64], histories, plan.length), start):
            items[line, : len(rows)], scores[line, : len(rows)] = rows, best
    (directory / "cache").mkdir()
    for name, array in (("users", users.astype(np.int64)), ("items", items), ("scores", scores)):
        np.save(directory / "cache" / f"{name}.npy", array)
    return {"users": count, "length": plan.length, "ttl_seconds": plan.ttl_seconds}


def _lists(engine: Engine, users: IntArray, histories: Ragged, length: int) -> Any:
    features = engine.bundle.user_features
    codes = None if features is None else features.codes[users].astype(np.int64)
    past = [histories[int(user)] for user in users]
    return engine.top_k(Batch(users + 1, past, codes), [np.empty(0, np.int32)] * len(users), length)

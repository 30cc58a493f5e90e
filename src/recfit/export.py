"""Pipeline -> bundle directory. What is written here is what gets measured and what gets served."""

from __future__ import annotations

import json
import shutil
import tempfile
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from recfit import bundle, graphs, models
from recfit.engine import Engine
from recfit.models import Model, Tied
from recfit.pipeline import CachePlan, Pipeline, Stage
from recfit.registry import find
from recfit.runtimes import StageSpec, _sparse
from recfit.states import items_of, most_frequent, states
from recfit.tables import pq
from recfit.types import BundleError, ConfigError, Features, Ragged, Recommendation, Request, Rows, Split

OPSET = 17
GRAPH = "model.onnx"
REPORT = "quantization.json"


@dataclass(frozen=True)
class Surroundings:
    """What a bundle carries beside its models: id maps, titles, the histories of the snapshot, and all items, the most
    popular first. `item_rows` tells which rows of the data the items are, where some have left."""

    user_ids: tuple[str, ...]
    item_ids: tuple[str, ...]
    titles: tuple[str, ...] | None
    user_features: Features | None
    histories: Ragged
    fallback: Rows
    item_rows: Rows | None = None

    def only(self, rows: Rows) -> Surroundings:
        """What is left when only the items at `rows`, ascending, are."""
        numbers = np.full(len(self.item_ids), -1, dtype=np.int32)
        numbers[rows] = np.arange(len(rows))
        kept = rows.tolist()
        fallback = numbers[self.fallback]
        return replace(
            self,
            item_ids=tuple(self.item_ids[row] for row in kept),
            titles=None if self.titles is None else tuple(self.titles[row] for row in kept),
            histories=self.histories.renumbered(numbers),
            fallback=fallback[fallback >= 0],
            item_rows=rows,
        )


def surroundings(split: Split, histories: Ragged) -> Surroundings:
    """What bundles of `split` carry, with `histories` as the users' known past."""
    counts = np.bincount(split.train.item, minlength=split.n_items)
    popular = np.argsort(-counts, kind="stable").astype(np.int32)
    train = split.train
    return Surroundings(train.user_ids, train.item_ids, train.titles, train.user_features, histories, popular)


def export(
    pipeline: Pipeline,
    around: Surroundings,
    directory: Path,
    *,
    name: str,
    recipe: Mapping[str, Any],
    report: bool = False,
) -> Path:
    """Write `pipeline` as a sealed bundle at `directory`, in the place of a bundle that was there; returns `directory`.

    It is written beside and moved there once it is whole. Raises `BundleError` rather than replace anything else, and
    `ConfigError` for a model of other data. `report` adds what its graph's format does to each layer of a stage, which
    takes seconds.
    """
    _check_replaceable(directory)
    rows = pipeline.retrieve.model.catalogue.item_rows
    around = around if rows is None else around.only(rows)
    for stage in pipeline.stages.values():
        _check_sizes(stage.model, around)
    draft = directory.with_name(f"{directory.name}.part")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    stages = {key: asdict(_write_stage(key, draft / key, pipeline, around, report)) for key in pipeline.stages}
    _write_surroundings(around, draft)
    plan = {"rank": None, **stages, "candidates": pipeline.candidates, "threads": pipeline.runtime.threads}
    manifest = {
        "name": name,
        "recipe": recipe,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "catalogue": {"users": len(around.user_ids), "items": len(around.item_ids)},
        "pipeline": {**plan, "cache": None},
        "promise": None,
    }
    bundle.seal(draft, manifest)
    if pipeline.cache is not None:
        cache = _write_cache(pipeline.cache, around, draft)
        bundle.seal(draft, {**manifest, "pipeline": {**plan, "cache": cache}})
    shutil.rmtree(directory, ignore_errors=True)
    return draft.rename(directory)


def _check_replaceable(directory: Path) -> None:
    whole = (directory / bundle.MANIFEST).is_file()
    empty = not directory.exists() or (directory.is_dir() and not any(directory.iterdir()))
    if not (whole or empty):
        raise BundleError(f"{directory} holds something that is no bundle; give a new or empty directory")


def _check_sizes(model: Model, around: Surroundings) -> None:
    """A model that reads only histories may meet other users, never other items."""
    sizes = {"items": (model.catalogue.n_items, len(around.item_ids))}
    if "user" in model.inputs:
        sizes["users"] = (model.catalogue.n_users, len(around.user_ids))
    for what, (known, given) in sizes.items():
        if known != given:
            raise ConfigError(f"{model.kind} was built for {known} {what}, the data has {given}; train it on this data")


def _write_stage(name: str, directory: Path, pipeline: Pipeline, around: Surroundings, report: bool) -> StageSpec:
    directory.mkdir()
    stage = pipeline.stages[name]
    runtime = find("runtimes", pipeline.runtime.name)
    if name == "rank":
        runtime = find("runtimes", getattr(runtime, "RESCORER", pipeline.runtime.name))
    spec = replace(
        _described(stage), runtime=runtime.__name__.rsplit(".", 1)[1], options=dict(pipeline.runtime.options)
    )
    if spec.runtime == "torch":
        models.save(stage.model, directory / "model")
        return spec
    spec, feed = _write_float32(stage, spec, around, directory)
    if report and stage.graph != "float32":
        _write_report(stage, directory, feed)
    graphs.convert(directory / GRAPH, stage.graph, stage.graph_options, feed)
    _sparse.pack(directory / GRAPH)
    if convert := getattr(runtime, "convert", None):
        convert(directory, spec)
    return spec


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
    _write_graph(stage, directory / GRAPH)
    if stage.kind == "encoder":
        spec = replace(spec, tied=isinstance(stage.model, Tied), table=_write_table(stage, directory / "table"))
    known = around.histories, around.user_features, around.fallback
    return spec, partial(graphs.calibration, directory, spec, *known)


def _write_report(stage: Stage, directory: Path, feed: graphs.Feed) -> None:
    found = graphs.report(directory / GRAPH, stage.graph, stage.graph_options, feed)
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
        values.append(torch.zeros(2, _length(stage), model.item_vectors().shape[1]))  # type: ignore[attr-defined]
    return names, values


def _example(name: str, stage: Stage) -> Tensor:
    if name == "user":
        return torch.ones(2, dtype=torch.long)
    if name == "user_features":
        features = stage.model.catalogue.user_features
        assert features is not None
        return torch.zeros(2, len(features.names), dtype=torch.long)
    return torch.ones(2, _length(stage), dtype=torch.long)


def _length(stage: Stage) -> int:
    """Events in the example history: no more than the model reads."""
    return min(4, max(1, stage.model.max_history))


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
    (directory / "catalogue.json").write_text(json.dumps(catalogue, ensure_ascii=False), encoding="utf-8")
    np.save(directory / "histories.indptr.npy", around.histories.indptr)
    np.save(directory / "histories.values.npy", _narrow(around.histories.values, len(around.item_ids)))
    np.save(directory / "fallback.npy", _narrow(around.fallback, len(around.item_ids)))
    if around.item_rows is not None:
        np.save(directory / bundle.ITEM_ROWS, around.item_rows)
    if features is not None:
        np.save(directory / "user_features.npy", features.codes)


def _narrow(rows: Rows, n_items: int) -> Any:
    """Item rows in two bytes each where these hold a token too."""
    return rows.astype(np.uint16) if n_items < 2**16 else rows


def _write_cache(plan: CachePlan, around: Surroundings, directory: Path) -> dict[str, Any]:
    """Precompute the lists of the most frequent keys, asked one by one of the bundle itself."""
    engine = Engine(bundle.open_files(directory))
    length = min(plan.length, len(around.item_ids))
    requests = _active(plan, around) if plan.key == "user" else _seen(plan, around)
    answers = {key: engine.recommend([request], length)[0] for key, request in requests.items()}
    # A fallback list is there already, and no cheaper to find in a cache.
    answers = {key: answer for key, answer in answers.items() if answer.source == "model"}
    rows = {item: row for row, item in enumerate(around.item_ids)}
    keys = "users" if plan.key == "user" else "states"
    _write_lists(keys, answers, rows, length, directory / "cache")
    depth = {} if plan.key == "user" else {"depth": plan.depth}
    return {keys: len(answers), **depth, "length": length, "ttl_seconds": plan.ttl_seconds}


def _active(plan: CachePlan, around: Surroundings) -> dict[int, Request]:
    """A request for each of the most active users, by row."""
    users = most_frequent(around.histories.sizes, plan.share)
    return {user: Request(around.user_ids[user]) for user in users.tolist()}


def _seen(plan: CachePlan, around: Surroundings) -> dict[int, Request]:
    """A request for each of the most frequent last-seen states, by state."""
    n_items = len(around.item_ids)
    found, counts = np.unique(states(around.histories, plan.depth, n_items), return_counts=True)
    kept = found[most_frequent(counts, plan.share)].tolist()
    return {state: Request(history=tuple(around.item_ids[row] for row in items_of(state, n_items))) for state in kept}


def _write_lists(
    keys: str, answers: Mapping[int, Recommendation], rows: Mapping[str, int], length: int, directory: Path
) -> None:
    """The arrays of `bundle.Cache`, by key; `keys` names their file."""
    items = np.full((len(answers), length), -1, dtype=np.int32)
    scores = np.zeros((len(answers), length), dtype=np.float32)
    for line, answer in enumerate(answers.values()):
        items[line, : len(answer.items)] = [rows[item] for item in answer.items]
        scores[line, : len(answer.items)] = answer.scores
    directory.mkdir()
    np.save(directory / f"{keys}.npy", np.array([*answers], dtype=np.int64))
    np.save(directory / "items.npy", items)
    np.save(directory / "scores.npy", scores)

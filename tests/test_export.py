"""Pipeline to bundle: graphs with free sizes, int8 graphs, what is written around them, and what is never overwritten."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

import toys
from recfit import bundle
from recfit.engine import open_bundle
from recfit.export import export, surroundings
from recfit.pipeline import CachePlan, Pipeline, RuntimePlan, Stage
from recfit.techniques import Context, make
from recfit.types import BundleError, ConfigError, Ragged, Request

Exported = Callable[[Pipeline], Path]
CUT = Context(toys.split(), toys.original("neumf"), toys.FIT)


def written(pipeline: Pipeline, directory: Path) -> Path:
    return export(pipeline, toys.around(), directory, name="n", recipe={"id": "r"})


@pytest.mark.parametrize(("kind", "options"), toys.SHAPED, ids=str)
def test_graphs_have_free_sizes(kind: str, options: dict[str, object], exported: Exported) -> None:
    path = exported(Pipeline(Stage(toys.trained(kind, options)))) / "retrieve" / "model.onnx"
    for node in onnxruntime.InferenceSession(path).get_inputs():
        assert node.shape[0] == "batch", f"{node.name} has shape {node.shape}"


@pytest.mark.parametrize("kind", ["sasrec", "neumf"])
def test_int8_makes_the_graph_smaller(kind: str, tmp_path: Path) -> None:
    wide = {"sasrec": {"layers": 2, "embedding_dim": 64, "ffn": 128}, "neumf": {"embedding_dim": 64, "hidden": 128}}
    stage = Stage(toys.untrained(kind, wide[kind]))
    sizes = [
        (written(Pipeline(replace(stage, graph=graph)), tmp_path / graph) / "retrieve" / "model.onnx").stat().st_size
        for graph in ("float32", "int8")
    ]
    assert sizes[1] < 0.45 * sizes[0]


def test_exporting_leaves_logging_alone(tmp_path: Path) -> None:
    log = logging.getLogger()
    before = log.level
    log.setLevel(logging.INFO)
    try:
        written(Pipeline(replace(toys.original("sasrec").main, graph="int8")), tmp_path / "b")
        assert log.level == logging.INFO
    finally:
        log.setLevel(before)


def test_tied_embeddings_are_stored_once(tmp_path: Path) -> None:
    path = written(Pipeline(Stage(toys.untrained("sasrec", {"embedding_dim": 64, "layers": 1}))), tmp_path / "b")
    graph = onnx.load(path / "retrieve" / "model.onnx").graph
    assert {node.name for node in graph.input} == {"history", "vectors"}
    assert max(max(part.dims, default=0) for part in graph.initializer) < 4 * 64 + 1
    assert not any(list(part.dims) == [toys.N_ITEMS, 64] for part in graph.initializer)


def test_what_lies_around_the_models_comes_back(exported: Exported) -> None:
    around, opened = toys.around(), bundle.open_files(exported(toys.original("sasrec")))
    assert (opened.user_ids, opened.item_ids, opened.titles) == (around.user_ids, around.item_ids, around.titles)
    np.testing.assert_array_equal(opened.histories.values, around.histories.values)
    assert opened.histories.values.dtype == opened.fallback.dtype == np.uint16
    np.testing.assert_array_equal(opened.histories.indptr, around.histories.indptr)
    assert opened.user_features is not None
    assert around.user_features is not None
    assert (opened.user_features.names, opened.user_features.sizes) == (("age", "job"), (4, 4))
    np.testing.assert_array_equal(opened.user_features.codes, around.user_features.codes)
    assert not opened.histories.values.flags.writeable


def test_the_fallback_is_every_item_by_popularity(exported: Exported) -> None:
    counts = np.bincount(toys.split().train.item, minlength=toys.N_ITEMS)
    fallback = bundle.open_files(exported(toys.original("sasrec"))).fallback
    assert sorted(fallback.tolist()) == list(range(toys.N_ITEMS))
    assert (np.diff(counts[fallback]) <= 0).all()


def test_a_snapshot_without_any_event(tmp_path: Path) -> None:
    around = surroundings(toys.split(), Ragged.from_lists([[]] * toys.N_USERS))
    path = export(toys.original("sasrec"), around, tmp_path / "b", name="n", recipe={})
    assert open_bundle(path).recommend([Request("üser 1")])[0].source == "fallback"


@pytest.mark.parametrize("cache", [None, CachePlan(1.0), CachePlan(1.0, key="state", depth=2)])
def test_requests_may_bring_the_histories(tmp_path: Path, cache: CachePlan | None) -> None:
    pipeline, around = replace(toys.original("sasrec"), cache=cache), toys.around()
    full = open_bundle(export(pipeline, around, tmp_path / "full", name="n", recipe={}))
    bare = open_bundle(export(pipeline, replace(around, keep_histories=False), tmp_path / "bare", name="n", recipe={}))
    assert not [*(tmp_path / "bare").glob("histories*")]
    for row, user in enumerate(around.user_ids):
        asked = Request(user, tuple(around.item_ids[item] for item in around.histories[row].tolist()))
        assert bare.recommend([asked]) == full.recommend([asked])
        if asked.history:
            assert bare.recommend([asked])[0].source == ("model" if cache is None else "cache")
    if cache is None:
        assert bare.recommend([Request(around.user_ids[0])])[0].source == "fallback"
    by_user = cache is not None and cache.key == "user"
    assert bare.bundle.user_ids == (around.user_ids if by_user else ())
    assert (bare.bundle.user_features is not None) == by_user


@pytest.mark.parametrize(("kind", "options"), toys.SHAPED, ids=str)
def test_users_stay_where_a_model_reads_who_asks(kind: str, options: dict[str, object], tmp_path: Path) -> None:
    model = toys.untrained(kind, options)
    path = export(
        Pipeline(Stage(model)), replace(toys.around(), keep_histories=False), tmp_path / "b", name="n", recipe={}
    )
    reads = {"user", "user_features"} & set(model.inputs)
    assert bool(bundle.open_files(path).user_ids) == bool(reads)


def test_no_titles_and_no_features(tmp_path: Path) -> None:
    around = replace(toys.around(), titles=None, user_features=None)
    opened = open_bundle(export(toys.original("sasrec"), around, tmp_path / "b", name="n", recipe={}))
    assert opened.title("item № 1") is None
    assert opened.bundle.user_features is None
    assert not (tmp_path / "b" / "user_features.npy").exists()


@pytest.mark.parametrize("keep_histories", [True, False])
def test_values_of_features_come_back_where_a_stage_reads_them(tmp_path: Path, keep_histories: bool) -> None:
    around = replace(toys.around(), keep_histories=keep_histories)
    reader, ease = Stage(toys.untrained("neumf", toys.SHAPES["neumf"][1])), toys.original("ease").main
    cut = make("reduce", {"axis": "features", "size": 1, "epochs": 0}).apply(Pipeline(reader), CUT)
    fewer = make("prune_items", {}).apply(Pipeline(reader), CUT)
    for number, pipeline in enumerate((Pipeline(reader), cut, fewer, Pipeline(ease, reader, candidates=9))):
        opened = bundle.open_files(export(pipeline, around, tmp_path / str(number), name="n", recipe={}))
        assert opened.user_features is not None
        assert opened.user_features.values == (("few", "some", "many"),) * 2
        assert opened.user_features.names == ("age", "job")


def test_a_bundle_that_reads_no_features_is_the_same_with_values_and_without(tmp_path: Path) -> None:
    known = toys.around().user_features
    assert known is not None
    for pipeline in (
        toys.original("sasrec"),
        toys.original("neumf"),
        replace(toys.original("ease"), cache=CachePlan(1.0)),
    ):
        paths = [
            export(pipeline, replace(toys.around(), user_features=side), tmp_path / name, name="n", recipe={})
            for name, side in (("with", known), ("without", replace(known, values=None)))
        ]
        ids = {bundle.read_manifest(path)["bundle_id"] for path in paths}
        assert len(ids) == 1
        told = json.loads((paths[0] / "user_features.json").read_text(encoding="utf-8"))
        assert told == {"names": ["age", "job"], "sizes": [4, 4]}


def test_a_bundle_is_replaced_whole(tmp_path: Path) -> None:
    path = written(replace(toys.original("sasrec"), cache=CachePlan(1.0)), tmp_path / "b")
    assert (path / "cache").is_dir()
    assert written(toys.original("ease"), path) == path
    assert not (path / "cache").exists()
    assert bundle.open_files(path).stages["retrieve"].table == {"format": "identity", "dim": toys.N_ITEMS}
    assert [part.name for part in tmp_path.iterdir()] == ["b"]


def test_a_bundle_may_take_an_empty_directory(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    open_bundle(written(toys.original("ease"), tmp_path / "b"))


def test_nothing_but_a_bundle_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("years of work")
    (tmp_path / "file").write_text("more of it")
    for name in ("thesis", "file"):
        with pytest.raises(BundleError, match="holds something that is no bundle; give a new or empty directory"):
            written(toys.original("ease"), tmp_path / name)
    assert (tmp_path / "thesis" / "chapter.tex").read_text() == "years of work"
    assert (tmp_path / "file").read_text() == "more of it"


def test_an_interrupted_export_leaves_the_old_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(toys.original("ease"), tmp_path / "b")
    before = open_bundle(path).bundle.id

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("recfit.export.write_cache", killed)
        with pytest.raises(KeyboardInterrupt):
            written(replace(toys.original("sasrec"), cache=CachePlan(1.0)), path)
    assert open_bundle(path).bundle.id == before
    written(toys.original("sasrec"), path)
    assert open_bundle(path).bundle.id != before
    assert [part.name for part in tmp_path.iterdir()] == ["b"]


def test_the_eager_runtime_stores_the_model_itself(exported: Exported) -> None:
    path = exported(replace(toys.original("sasrec"), runtime=RuntimePlan("torch", 2)))
    assert sorted(part.name for part in (path / "retrieve" / "model").iterdir()) == [
        "model.json",
        "weights.safetensors",
    ]
    assert json.loads((path / "manifest.json").read_text())["pipeline"]["threads"] == 2


def test_a_model_of_other_data_is_refused(tmp_path: Path) -> None:
    fewer = replace(toys.around(), item_ids=toys.around().item_ids[:-1])
    with pytest.raises(ConfigError, match="sasrec was built for 40 items, the data has 39; train it on this data"):
        export(toys.original("sasrec"), fewer, tmp_path / "b", name="n", recipe={})
    around = replace(toys.around(), user_ids=(*toys.around().user_ids, "new"), histories=Ragged.from_lists([[0]] * 61))
    with pytest.raises(ConfigError, match="neumf was built for 60 users, the data has 61; train it on this data"):
        export(toys.original("neumf"), around, tmp_path / "b", name="n", recipe={})
    path = export(toys.original("sasrec"), around, tmp_path / "b", name="n", recipe={})
    assert open_bundle(path).recommend([Request("new")])[0].source == "model"

"""Formats of graphs in pipelines: every format with every family, the report in a bundle, layers that are restored."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import toys
from recfit import bundle
from recfit.engine import open_bundle
from recfit.export import REPORT, export
from recfit.graphs import Inputs, int8
from recfit.pipeline import Pipeline, RuntimePlan, Stage
from recfit.registry import names
from recfit.techniques import Context, Technique, applied, make, quantize
from recfit.training import evaluate
from recfit.types import Request, Unsupported

Exported = Callable[[Pipeline], Path]
SASREC = toys.original("sasrec")
ERRORS = {"codebook": 0.2, "int4": 0.2, "int8": 0.1, "int8_block": 0.15, "int8_static": 0.25, "power_of_two": 0.6}
BLOCKS = ("int4", "int8_block")
# Toys whose graph has nothing that a format stores, by family and its first option; blocks leave looked-up rows alone.
NOTHING_TO_STORE = {
    ("als", "embedding_dim"): ("codebook", "power_of_two"),
    ("custom", "factory"): ("codebook", *BLOCKS, "power_of_two"),
    ("itemknn", "neighbours"): ("codebook", *BLOCKS, "power_of_two"),
    ("popularity", ""): ("codebook", *BLOCKS, "int8", "int8_static", "power_of_two"),
}
QUANTIZED = [name for name in names("graphs") if name != "float32"]


def context_of(pipeline: Pipeline, **changes: Any) -> Context:
    return Context(toys.split(), pipeline, toys.FIT, **changes)


@pytest.mark.parametrize("graph", QUANTIZED)
@pytest.mark.parametrize(("kind", "options"), toys.SHAPED, ids=str)
def test_every_family_ranks_nearly_alike(graph: str, kind: str, options: dict[str, object], exported: Exported) -> None:
    pipeline = Pipeline(Stage(toys.trained(kind, options)))
    quantized = Pipeline(replace(pipeline.main, graph=graph))
    looked_up = graph in BLOCKS and ("neighbours" in options or options.get("hidden") == 0)
    if looked_up or graph in NOTHING_TO_STORE.get((kind, next(iter(options), "")), ()):
        with pytest.raises(Unsupported, match="no weights left to store in fewer bits"):
            exported(quantized)
        return
    engine = open_bundle(exported(quantized))
    past = [3, 4, 6, 8]
    answer = engine.recommend([Request("üser 5", tuple(f"item № {row}" for row in past))])[0]
    rows = [toys.around().item_ids.index(item) for item in answer.items]
    wanted = toys.expected(pipeline, 5, past)
    scores = np.asarray(answer.scores)
    scores += (wanted[rows] - scores).mean()  # what all scores move by alike ranks nothing
    toys.assert_ranks(rows, scores.tolist(), wanted, 10, ERRORS[graph])


@pytest.mark.parametrize("graph", QUANTIZED)
def test_the_fused_runtime_runs_every_format(graph: str, exported: Exported) -> None:
    stage = replace(SASREC.main, graph=graph)
    plain, fused = (open_bundle(exported(Pipeline(stage, runtime=RuntimePlan(name)))) for name in ("ort", "fused"))
    request = Request(history=("item № 3", "item № 4"))
    one, other = plain.recommend([request])[0], fused.recommend([request])[0]
    assert one.items == other.items
    np.testing.assert_allclose(one.scores, other.scores, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("table", ["int8", "int4"])
@pytest.mark.parametrize(
    "plan",
    [RuntimePlan("ort"), RuntimePlan("fused"), RuntimePlan("fused", options={"ahead": True}), RuntimePlan("openvino")],
    ids=str,
)
def test_every_runtime_answers_with_zero_points(table: str, plan: RuntimePlan, exported: Exported) -> None:
    """Of weights and of rows, which a tied encoder reads and the scan multiplies."""
    asymmetric = {"graph_options": {"weights": "asymmetric"}, "table_options": {"asymmetric": True}}
    step = make("quantize", {"graph": "int8", "table": table, **asymmetric})
    stage = applied(step, SASREC, context_of(SASREC)).main
    engine = open_bundle(exported(Pipeline(stage, runtime=plan)))
    past = [3, 4, 6, 8]
    answer = engine.recommend([Request("üser 5", tuple(f"item № {row}" for row in past))])[0]
    rows = [toys.around().item_ids.index(item) for item in answer.items]
    toys.assert_ranks(rows, answer.scores, toys.expected(SASREC, 5, past), 10, {"int8": 0.1, "int4": 0.2}[table])


def test_calibration_inputs_are_the_users_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[Inputs]] = []
    monkeypatch.setattr(int8, "convert", lambda path, config, feed: seen.append(list(feed())))
    for kind in ("sasrec", "sasrec", "neumf"):
        stage = replace(toys.original(kind).main, graph="int8")
        export(Pipeline(stage), toys.around(), tmp_path / "b", name="n", recipe={})
    first, second, pairs = seen
    assert all(np.array_equal(one[name], two[name]) for one, two in zip(first, second, strict=True) for name in one)
    assert len(first) == 32
    histories = {tuple(part[-9:] + 1) for part in toys.around().histories}
    assert {tuple(part["history"][0]) for part in first} <= histories
    assert {part["vectors"].shape for part in first} == {(1, part["history"].shape[1], 16) for part in first}
    assert {tuple(part) for part in pairs} == {("user", "items")}
    assert set(pairs[0]["items"][0].tolist()) == set(range(1, toys.N_ITEMS + 1))


def test_a_bundle_tells_what_its_format_does_to_each_layer(tmp_path: Path) -> None:
    stage = replace(SASREC.main, graph="int8", graph_options={"skip": ["/blocks.0/up/MatMul"]})
    path = export(Pipeline(stage), toys.around(), tmp_path / "b", name="n", recipe={}, report=True)
    told = json.loads((path / "retrieve" / REPORT).read_text())
    assert (told["format"], told["options"]) == ("int8", {"skip": ["/blocks.0/up/MatMul"]})
    formats = {layer["layer"]: layer["format"] for layer in told["layers"]}
    assert formats["/blocks.0/up/MatMul"] == "float32"
    assert formats["/blocks.0/down/MatMul"] == "int8"
    assert all(25 < layer["sqnr_db"] < 60 and layer["divergence"] > 0 for layer in told["layers"])
    assert f"retrieve/{REPORT}" in bundle.read_manifest(path)["files"]
    plain = export(SASREC, toys.around(), tmp_path / "c", name="n", recipe={}, report=True)
    assert not (plain / "retrieve" / REPORT).exists()


def restored(context: Context, **settings: Any) -> list[str]:
    step: Technique = make("quantize", {"table": "float32", **settings})
    return list(applied(step, SASREC, context).main.graph_options.get("skip", []))


def test_the_worst_layers_are_restored() -> None:
    context = context_of(SASREC)
    two = restored(context, restore=2)
    assert len(two) == 2
    assert restored(context, restore=3)[:2] == two
    assert two[0] not in restored(context, restore=1, graph_options={"skip": [two[0]]})[1:]
    assert restored(context_of(SASREC, structure_only=True), restore=2) == []


def test_auto_restores_as_few_as_hold_the_tolerance(monkeypatch: pytest.MonkeyPatch) -> None:
    """With three layers restored and more the loss is within 10 %."""

    def judged(stage: Stage, *_: object) -> float:
        if stage.graph == "float32":
            return 0.5
        return 0.46 if len(stage.graph_options["skip"]) >= 3 else 0.4

    monkeypatch.setattr(quantize, "_ndcg", judged)
    assert len(restored(context_of(SASREC), restore="auto", tolerance=0.1)) == 3
    assert len(restored(context_of(SASREC), restore="auto", tolerance=0.5)) == 0
    with pytest.raises(
        Unsupported, match="restore=auto leaves none of 12 layers in int8; pass less, or more tolerance"
    ):
        restored(context_of(SASREC), restore="auto", tolerance=0.01)


def test_auto_counts_what_was_lost_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit is a share of the original: a student that has lost some of it may lose only what is left."""
    student = Pipeline(Stage(toys.untrained("sasrec", toys.SHAPES["sasrec"][0])))

    def judged(stage: Stage, *_: object) -> float:
        return 0.5 if stage.model is SASREC.main.model else 0.4 + 0.01 * len(stage.graph_options["skip"])

    monkeypatch.setattr(quantize, "_ndcg", judged)
    step = make("quantize", {"table": "float32", "restore": "auto", "tolerance": 0.1})
    assert len(applied(step, student, context_of(SASREC)).main.graph_options["skip"]) == 5


def test_a_stage_is_judged_by_what_its_bundle_recommends() -> None:
    queries = toys.split().validation
    wanted = evaluate(SASREC.main.model, queries)["ndcg@10"]
    assert quantize._ndcg(SASREC.main, toys.around(), queries) == pytest.approx(wanted, rel=1e-6)

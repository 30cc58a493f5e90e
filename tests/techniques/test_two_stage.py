"""What stands in front of the deciding model: other retrievers, their tables, an index over its own vectors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import toys
from recfit import techniques
from recfit.bundle import read_manifest
from recfit.engine import open_bundle
from recfit.export import export
from recfit.pipeline import Pipeline, RuntimePlan
from recfit.techniques import Context, applied, make, two_stage
from recfit.types import Request, Unsupported

Exported = Callable[[Pipeline], Path]
SASREC, NEUMF = toys.original("sasrec"), toys.original("neumf")


def made(pipeline: Pipeline, **settings: Any) -> Pipeline:
    return applied(make("two_stage", settings), pipeline, Context(toys.split(), pipeline, toys.FIT))


def table_of(bundle: Path, stage: str = "retrieve") -> dict[str, Any]:
    found: dict[str, Any] = read_manifest(bundle)["pipeline"][stage]["table"]
    return found


@pytest.mark.parametrize("table", ["ivf", "hnsw", "pq_scan"])
def test_an_index_stands_in_front_of_the_models_own_rows(table: str, exported: Exported) -> None:
    """One encoding, exact scores; on forty items the index is asked for them all."""
    pipeline = made(SASREC, retriever="itself", table=table, candidates=39)
    assert pipeline.rank is None
    bundle = exported(pipeline)
    assert table_of(bundle) == {"format": table, "dim": 16, "rows": "float32", "k_factor": 4}
    requests = [Request(user) for user in toys.around().user_ids[:10]]
    for found, wanted in zip(
        open_bundle(bundle).recommend(requests), open_bundle(exported(SASREC)).recommend(requests), strict=True
    ):
        assert found.items == wanted.items
        np.testing.assert_allclose(found.scores, wanted.scores, rtol=1e-4)


def test_an_index_keeps_quantized_rows_as_they_are() -> None:
    int8 = Pipeline(replace(SASREC.main, table="int8"))
    main = made(int8, retriever="itself", table="ivf", candidates=20, table_options={"nprobe": 3}).main
    assert main.table_options == {"rows": "int8", "k_factor": 2, "nprobe": 3}


def test_an_index_may_leave_items_out_but_never_shows_what_is_gone(exported: Exported) -> None:
    settings = {"k_factor": 1, "width": 8}
    engine = open_bundle(
        exported(made(SASREC, retriever="itself", table="pq_scan", table_options=settings, candidates=5))
    )
    items = toys.around().item_ids
    for start in range(30):
        request = Request(history=items[start : start + 8], exclude=items[:3])
        answer = engine.recommend([request], 5)[0]
        assert len(answer.items) == 5
        assert not {*answer.items} & {*items[start : start + 8], *items[:3]}


def test_a_retrievers_table_is_stored_as_told(exported: Exported) -> None:
    options = {"embedding_dim": 8}
    pipeline = made(NEUMF, retriever="als", options=options, table="ivf", table_options={"nprobe": 2}, candidates=20)
    bundle = exported(pipeline)
    assert table_of(bundle) == {"format": "ivf", "dim": 8, "nprobe": 2}
    answer = open_bundle(bundle).recommend([Request(toys.around().user_ids[3])])[0]
    assert len(answer.items) == 10
    assert (
        table_of(exported(made(NEUMF, retriever="als", options=options, candidates=20, table="int8")))["format"]
        == "int8"
    )


def test_a_distilled_retriever_learns_the_originals_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    teachers: list[Any] = []
    monkeypatch.setattr(techniques, "train", lambda *_, teacher, **__: teachers.append(teacher))
    options = {"embedding_dim": 4, "hidden": 4}
    pipeline = made(SASREC, retriever="mlp", options=options, candidates=20, distilled=True)
    made(SASREC, retriever="mlp", options=options, candidates=20)
    assert pipeline.retrieve.model.kind == "mlp"
    assert pipeline.main == SASREC.main
    assert teachers[0].teacher is SASREC.main.model
    assert teachers[1] is None


def test_a_large_catalogue_is_offered_indexes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(two_stage, "MANY_ITEMS", 40)
    steps = two_stage.Technique.variants(Context(toys.split(), SASREC, toys.FIT))
    assert [(step.retriever, step.table) for step in steps] == [("itself", name) for name in ("ivf", "hnsw", "pq_scan")]
    rankers = two_stage.Technique.variants(Context(toys.split(), NEUMF, toys.FIT))
    assert {(step.retriever, step.table) for step in rankers} == {("als", "int8"), ("two_tower", "int8")}


def test_a_ranker_is_offered_two_towers_to_retrieve_and_an_encoder_is_not() -> None:
    """EASE before a ranker takes longer than the ranker alone, and is offered to neither."""
    for pipeline, learned in ((NEUMF, ["two_tower"]), (SASREC, [])):
        steps = two_stage.Technique.variants(Context(toys.split(), pipeline, toys.FIT))
        assert [step.retriever for step in steps if step.retriever != "als"] == ["itemknn", *learned]


def test_a_fused_graph_refuses_an_index(tmp_path: Path) -> None:
    indexed = made(SASREC, retriever="itself", table="ivf", candidates=20)
    with pytest.raises(Unsupported, match="ONNX cannot search a table of format 'ivf'; keep runtime name='ort'"):
        export(replace(indexed, runtime=RuntimePlan("fused")), toys.around(), tmp_path / "b", name="n", recipe={})


def test_numpy_runs_in_front_of_an_index(exported: Exported) -> None:
    indexed = made(SASREC, retriever="itself", table="hnsw", candidates=30)
    request = Request(toys.around().user_ids[3])
    answers = [
        open_bundle(exported(replace(indexed, runtime=RuntimePlan(name)))).recommend([request])[0]
        for name in ("ort", "numpy")
    ]
    assert answers[0].items == answers[1].items

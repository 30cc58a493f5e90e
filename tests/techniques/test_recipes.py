"""Several techniques in one recipe: the pipeline after each step, its bundle, and both read back from disk."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import toys
from recfit import pipeline as pipelines
from recfit.engine import open_bundle
from recfit.export import export
from recfit.pipeline import CachePlan, Pipeline, RuntimePlan, fingerprint
from recfit.techniques import Context, applied, make
from recfit.types import Recommendation, Request

Exported = Callable[[Pipeline], Path]
Steps = Sequence[tuple[str, Mapping[str, Any]]]

STUDENT = ("distill", {"kind": "sasrec", "options": {"layers": 2, "embedding_dim": 16, "ffn": 16, "max_history": 9}})
RECIPES: dict[str, tuple[str, Steps]] = {
    "distill -> prune -> quantize -> two_stage": (
        "sasrec",
        [
            STUDENT,
            ("prune", {"axis": "layers", "epochs": 1}),
            ("quantize", {}),
            ("two_stage", {"retriever": "als", "options": {"embedding_dim": 8}, "candidates": 20}),
        ],
    ),
    "distill -> reduce -> quantize -> cache -> runtime": (
        "sasrec",
        [
            STUDENT,
            ("reduce", {"size": 8, "epochs": 1}),
            ("quantize", {}),
            ("cache", {"share": 0.5, "length": 20}),
            ("runtime", {"threads": 2, "graph": "extended"}),
        ],
    ),
    "matryoshka -> reduce -> low_rank -> quantize -> prune_items -> cache": (
        "sasrec",
        [
            ("matryoshka", {"epochs": 1}),
            ("reduce", {"axis": "table_dim", "size": 8, "epochs": 0}),
            ("low_rank", {"epochs": 1}),
            ("quantize", {}),
            ("prune_items", {"keep": 0.7}),
            ("cache", {"share": 0.3, "length": 20}),
        ],
    ),
    "codes -> low_rank -> sparsify -> prune_items": (
        "sasrec",
        [
            ("codes", {"parts": 4, "codes": 8, "epochs": 1}),
            ("low_rank", {"epochs": 1}),
            ("sparsify", {"epochs": 1}),
            ("prune_items", {"keep": 0.7}),
        ],
    ),
    "distill -> matryoshka -> sparsify": (
        "sasrec",
        [STUDENT, ("matryoshka", {"epochs": 1}), ("sparsify", {"epochs": 1})],
    ),
    "prune -> two_stage -> cache": (
        "neumf",
        [
            ("prune", {"axis": "hidden", "epochs": 1}),
            ("two_stage", {"retriever": "itemknn", "candidates": 20}),
            ("cache", {"share": 1.0, "length": 15}),
        ],
    ),
    "simplify -> reduce -> quantize": (
        "neumf",
        [("simplify", {"kind": "als", "options": {"embedding_dim": 8}}), ("reduce", {"size": 4}), ("quantize", {})],
    ),
}


def made(kind: str, steps: Steps, **changes: Any) -> Pipeline:
    pipeline = toys.original(kind)
    context = Context(toys.split(), pipeline, toys.FIT, **changes)
    for name, settings in steps:
        pipeline = applied(make(name, settings), pipeline, context)
    return pipeline


@pytest.fixture(scope="module", params=RECIPES)
def recipe(request: pytest.FixtureRequest) -> tuple[str, Steps, Pipeline]:
    kind, steps = RECIPES[request.param]
    return kind, steps, made(kind, steps)


def answers(path: Path) -> list[Recommendation]:
    around = toys.around()
    requests = [Request(user) for user in around.user_ids[:20]]
    requests += [Request(history=around.item_ids[start : start + 3]) for start in range(10)]
    engine = open_bundle(path)
    return [engine.recommend([request])[0] for request in requests]


def test_saved_and_loaded_it_makes_the_same_bundle(
    recipe: tuple[str, Steps, Pipeline], exported: Exported, tmp_path: Path
) -> None:
    _, _, pipeline = recipe
    pipelines.save(pipeline, tmp_path / "saved")
    again = pipelines.load(tmp_path / "saved")
    assert fingerprint(again) == fingerprint(pipeline)
    path = export(again, toys.around(), tmp_path / "again", name="toy", recipe={"id": "r0"})
    assert open_bundle(path).bundle.id == open_bundle(exported(pipeline)).bundle.id
    assert answers(path) == answers(exported(pipeline))


def test_it_answers_as_its_models_do(recipe: tuple[str, Steps, Pipeline], exported: Exported) -> None:
    """Scores of what is shown are those of the deciding torch model, up to what int8 costs, best first."""
    _, _, pipeline = recipe
    items = toys.around().item_ids
    error = 1e-4 if {stage.graph for stage in pipeline.stages.values()} == {"float32"} else 0.15
    for answer, user in zip(answers(exported(pipeline)), range(20), strict=False):
        rows = [items.index(item) for item in answer.items]
        history = toys.around().histories[user].tolist()
        wanted = toys.expected(Pipeline(pipeline.main), user, history)
        spread = np.ptp(wanted[wanted > -np.inf])
        assert len(rows) == len(set(rows)) == 10
        np.testing.assert_allclose(answer.scores, wanted[rows], rtol=0, atol=error * spread)
        assert list(answer.scores) == sorted(answer.scores, reverse=True)


def test_its_untrained_structure_has_its_size(
    recipe: tuple[str, Steps, Pipeline], exported: Exported, tmp_path: Path
) -> None:
    kind, steps, pipeline = recipe
    structure = made(kind, steps, structure_only=True)
    path = export(structure, toys.around(), tmp_path / "b", name="toy", recipe={"id": "r0"})
    sizes = [
        sum(part["bytes"] for part in open_bundle(where).manifest["files"].values())
        for where in (path, exported(pipeline))
    ]
    assert sizes[0] == pytest.approx(sizes[1], rel=0.03)


def test_every_step_is_in_the_result() -> None:
    pipeline = made(*RECIPES["distill -> reduce -> quantize -> cache -> runtime"])
    assert pipeline.main.model.axes()["embedding_dim"] == 8
    assert (pipeline.main.graph, pipeline.main.table) == ("int8", "int8")
    assert pipeline.cache == CachePlan(0.5, 20)
    assert pipeline.runtime == RuntimePlan("ort", 2, {"graph": "extended"})
    pipeline = made(*RECIPES["distill -> prune -> quantize -> two_stage"])
    assert (pipeline.retrieve.model.kind, pipeline.main.model.kind, pipeline.candidates) == ("als", "sasrec", 20)
    assert pipeline.main.model.axes()["layers"] == 1
    assert (pipeline.main.graph, pipeline.retrieve.graph) == ("int8", "float32")


def test_training_twice_gives_the_same_weights() -> None:
    kind, steps = RECIPES["distill -> prune -> quantize -> two_stage"]
    once = fingerprint(made(kind, steps))
    torch.rand(1)  # whatever was drawn before
    assert fingerprint(made(kind, steps)) == once

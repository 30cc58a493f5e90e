"""Every technique with every variant it proposes, for encoders that read a history from their item table and from one of
its own, and for a ranker as the original. Techniques are found by listing, so a new file or a new variant is tested the
moment it exists."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import toys
from recfit import techniques
from recfit.engine import open_bundle
from recfit.export import export
from recfit.pipeline import Pipeline, fingerprint
from recfit.registry import names
from recfit.techniques import Context, Technique, applied, available, describe, make, name_of, settings_of
from recfit.training import Fit
from recfit.types import FloatArray, Recommendation, Request

Exported = Callable[[Pipeline], Path]
ORIGINALS = ("sasrec", "neumf", "two_tower")
FIT = Fit(epochs=1, batch_size=64, threads=1, precision="fp32", learning_rate=1e-2)
USERS, ITEMS, HISTORIES = toys.around().user_ids, toys.around().item_ids, toys.around().histories


def context_of(kind: str, **changes: object) -> Context:
    return Context(toys.split(), toys.original(kind), FIT, **changes)  # type: ignore[arg-type]


CASES = [
    pytest.param((kind, step), id=f"{kind}: {describe(step)}")
    for kind in ORIGINALS
    for variants in available()
    for step in variants(context_of(kind))
]


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> tuple[str, Technique]:
    found: tuple[str, Technique] = request.param
    return found


_APPLIED: dict[str, Pipeline] = {}


def result_of(kind: str, step: Technique) -> Pipeline:
    """The pipeline after `step`, made once."""
    key = f"{kind} {name_of(step)} {settings_of(step)}"
    if key not in _APPLIED:
        _APPLIED[key] = applied(step, toys.original(kind), context_of(kind))
    return _APPLIED[key]


def error_of(pipeline: Pipeline) -> float:
    """How far off a score may be, as a share of their spread, by the formats it is stored in and computed with."""
    errors = {"bf16": 0.05, "codebook": 0.25, "int4": 0.2, "int8": 0.1, "int8_block": 0.1, "pq": 1.0}
    formats = [form for stage in pipeline.stages.values() for form in (stage.graph, stage.table)]
    return max(errors.get(form, 1e-4) for form in [*formats, pipeline.runtime.options.get("precision")])


def expected(pipeline: Pipeline, user: int, history: list[int]) -> FloatArray:
    """What the torch models say; of the newest items alone where these are the key of a cache."""
    plan = pipeline.cache
    if plan is None or plan.key == "user":
        return toys.expected(pipeline, user, history)
    wanted = toys.expected(pipeline, -1, history[-plan.depth :])
    wanted[history] = -np.inf
    return wanted


def rows_of(answer: Recommendation) -> list[int]:
    return [ITEMS.index(item) for item in answer.items]


def assert_answers_like(pipeline: Pipeline, path: Path) -> None:
    """The bundle at `path`, opened anew, ranks as the torch models in `pipeline` do."""
    engine = open_bundle(path)
    for user in (0, 20, 41):
        history = HISTORIES[user].tolist()
        answer = engine.recommend([Request(USERS[user])])[0]
        assert answer.source in ("model", "cache")
        wanted = expected(pipeline, user, history)
        error = error_of(pipeline)
        if pipeline.rank is not None and error > 1e-4:
            wanted = np.where(np.isin(np.arange(len(wanted)), rows_of(answer)), wanted, -np.inf)
        toys.assert_ranks(rows_of(answer), answer.scores, wanted, 10, error)


def test_every_technique_is_tried() -> None:
    assert {name_of(case.values[0][1]) for case in CASES} == set(names("techniques"))  # type: ignore[index]


def test_variants_are_all_different() -> None:
    for kind in ORIGINALS:
        described = [describe(step) for variants in available() for step in variants(context_of(kind))]
        assert len(set(described)) == len(described)


def test_settings_survive_json(case: tuple[str, Technique]) -> None:
    _, step = case
    assert make(name_of(step), json.loads(json.dumps(settings_of(step)))) == step


def test_a_technique_says_what_it_is(case: tuple[str, Technique]) -> None:
    _, step = case
    assert step.family in techniques.FAMILIES
    assert describe(step).startswith(name_of(step) + "(")
    with pytest.raises(AttributeError):
        step.order = 0  # type: ignore[misc]


def test_the_bundle_answers_as_the_pipeline_does(case: tuple[str, Technique], exported: Exported) -> None:
    pipeline = result_of(*case)
    assert_answers_like(pipeline, exported(pipeline))


def test_the_input_is_left_as_it_was(case: tuple[str, Technique]) -> None:
    kind, step = case
    before = fingerprint(toys.original(kind))
    assert fingerprint(result_of(kind, step)) != before
    assert fingerprint(toys.original(kind)) == before


def test_structure_alone_costs_no_training_and_has_the_final_size(
    case: tuple[str, Technique], exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind, step = case

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("trained")

    whole = size_of(exported(result_of(kind, step)))
    monkeypatch.setattr(techniques, "train", refuse)
    structure = applied(step, toys.original(kind), context_of(kind, structure_only=True))
    size = size_of(export(structure, toys.around(), tmp_path / "b", name="toy", recipe={"id": "r0"}))
    assert size == pytest.approx(whole, rel=0.03)


def size_of(path: Path) -> int:
    return sum(part.stat().st_size for part in path.rglob("*") if part.is_file())


def test_what_needs_no_training_says_so(case: tuple[str, Technique], monkeypatch: pytest.MonkeyPatch) -> None:
    kind, step = case
    calls: list[object] = []
    monkeypatch.setattr(techniques, "train", lambda *given, **_: calls.append(given))
    step.apply(toys.original(kind), context_of(kind))
    assert bool(calls) <= step.trains

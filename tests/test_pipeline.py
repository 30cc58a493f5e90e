"""The train-side description: stored and read back, told apart by what it would export."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

import toys
from recfit import models, pipeline
from recfit.pipeline import CachePlan, Pipeline, RuntimePlan, Stage, fingerprint


def rich() -> Pipeline:
    """A pipeline that uses everything."""
    return Pipeline(
        retrieve=Stage(toys.trained("als", toys.SHAPES["als"][0]), table="int8", table_options={"dim": 8}),
        rank=Stage(toys.trained("neumf", toys.SHAPES["neumf"][1]), graph="int8", graph_options={"per": "tensor"}),
        candidates=17,
        cache=CachePlan(0.3, 20, 60.0),
        runtime=RuntimePlan("ort", 2, {"graph": "extended"}),
    )


@pytest.mark.parametrize("made", [rich(), toys.original("sasrec")], ids=["rich", "plain"])
def test_what_is_saved_is_loaded(made: Pipeline, tmp_path: Path) -> None:
    assert not pipeline.saved(tmp_path)
    pipeline.save(made, tmp_path)
    assert pipeline.saved(tmp_path)
    again = pipeline.load(tmp_path)
    assert fingerprint(again) == fingerprint(made)
    assert (again.candidates, again.cache, again.runtime) == (made.candidates, made.cache, made.runtime)
    assert again.stages.keys() == made.stages.keys()
    assert [stage.table_options for stage in again.stages.values()] == [s.table_options for s in made.stages.values()]
    assert [stage.graph_options for stage in again.stages.values()] == [s.graph_options for s in made.stages.values()]


def test_notes_are_kept_and_change_nothing(tmp_path: Path) -> None:
    made = replace(toys.original("sasrec"), notes=("well made",))
    pipeline.save(made, tmp_path)
    assert pipeline.load(tmp_path).notes == ("well made",)
    assert fingerprint(made) == fingerprint(toys.original("sasrec"))


def test_a_half_saved_pipeline_is_not_taken_for_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline.save(toys.original("sasrec"), tmp_path)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(models, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        pipeline.save(rich(), tmp_path)
    assert not pipeline.saved(tmp_path)


def test_every_difference_shows_in_the_fingerprint() -> None:
    made = rich()
    assert made.rank is not None
    others = [
        made,
        replace(made, candidates=18),
        replace(made, cache=None),
        replace(made, cache=CachePlan(0.3, 20, 61.0)),
        replace(made, cache=CachePlan(0.3, 20, 60.0, "state")),
        replace(made, cache=CachePlan(0.3, 20, 60.0, "state", 2)),
        replace(made, runtime=RuntimePlan("ort", 1, {"graph": "extended"})),
        replace(made, runtime=RuntimePlan("ort", 2)),
        replace(made, rank=None),
        replace(made, retrieve=replace(made.retrieve, table="float32")),
        replace(made, rank=replace(made.rank, graph_options={})),
        replace(made, rank=replace(made.rank, model=toys.untrained("neumf", toys.SHAPES["neumf"][1]))),
    ]
    assert len({fingerprint(other) for other in others}) == len(others)
    assert fingerprint(rich()) == fingerprint(made)


def test_the_main_stage_is_the_one_that_decides() -> None:
    one, two = toys.original("sasrec"), rich()
    student = Stage(toys.trained("ease", toys.SHAPES["ease"][0]))
    assert (one.main, two.main) == (one.retrieve, two.rank)
    assert one.with_main(student) == replace(one, retrieve=student)
    assert two.with_main(student) == replace(two, rank=student)


def test_kinds_of_stages() -> None:
    kinds = {kind: (Stage(toys.trained(kind, toys.SHAPES[kind][0])).kind) for kind in ("sasrec", "neumf", "ease")}
    assert kinds == {"sasrec": "encoder", "neumf": "ranker", "ease": "encoder"}
    assert [Stage(toys.trained(kind, toys.SHAPES[kind][0])).identity for kind in kinds] == [False, False, True]

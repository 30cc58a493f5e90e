"""Item tables of fewer numbers than the model is wide, and item vectors whose leading numbers stand alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import toys
from recfit import models
from recfit.engine import open_bundle
from recfit.models import Model, as_module
from recfit.pipeline import Pipeline, Stage
from recfit.registry import find
from recfit.techniques import Context, applied, make
from recfit.techniques._inherit import cut, principal_axes  # noqa: PLC2701
from recfit.training import Fit, evaluate
from recfit.types import ConfigError, Request, Unsupported

Exported = Callable[[Pipeline], Path]
KINDS = ("sasrec", "mlp")
HISTORY = torch.tensor([[0, 0, 3, 4, 5, 6], [1, 2, 3, 9, 8, 7]])


def context_of(pipeline: Pipeline, **changes: Any) -> Context:
    return Context(toys.split(), pipeline, toys.FIT, **changes)


def nested(kind: str, **settings: Any) -> Model:
    pipeline = toys.original(kind)
    return applied(make("matryoshka", {"epochs": 1, **settings}), pipeline, context_of(pipeline)).main.model


def scores(model: Model) -> torch.Tensor:
    as_module(model).eval()
    with torch.inference_mode():
        return models.scores(model, {"history": HISTORY})


@pytest.mark.parametrize("kind", KINDS)
def test_a_table_of_low_rank_is_stored_as_such(kind: str, exported: Exported) -> None:
    pipeline = toys.original(kind)
    out = applied(make("reduce", {"axis": "table_dim", "size": 3, "epochs": 0}), pipeline, context_of(pipeline))
    width = pipeline.main.model.axes()["embedding_dim"]
    assert out.main.model.item_vectors().shape == (toys.N_ITEMS, 3)  # type: ignore[attr-defined]
    path = exported(out) / "retrieve"
    assert (path / "table" / "rows.bin").stat().st_size == toys.N_ITEMS * 3 * 4
    assert open_bundle(exported(out)).bundle.stages["retrieve"].table["dim"] == 3
    assert out.main.model.axes().get("embedding_dim") is None, "the model stays as wide as it was"
    assert out.main.model.config.embedding_dim == width


@pytest.mark.parametrize("kind", KINDS)
def test_at_full_rank_nothing_is_lost(kind: str) -> None:
    model = toys.original(kind).main.model
    width = model.axes()["table_dim"]
    torch.testing.assert_close(scores(cut(model, "table_dim", width, toys.split())), scores(model))


@pytest.mark.parametrize("kind", KINDS)
def test_a_table_that_has_low_rank_loses_little_along_its_principal_axes(kind: str) -> None:
    model: Any = toys.untrained(kind, toys.SHAPES[kind][0])
    width = model.axes()["table_dim"]
    draws = torch.Generator().manual_seed(0)
    with torch.no_grad():
        factor, mixed = (torch.randn(*size, generator=draws) for size in ((toys.N_ITEMS, 2), (2, width)))
        model.items.weight.copy_(factor @ mixed)
    small = (cut(model, "table_dim", width // 2, toys.split()), model.shrink("table_dim", torch.arange(width // 2)))
    errors = [float((scores(part) - scores(model)).norm()) for part in small]
    assert errors[0] < 0.5 * errors[1]


@pytest.mark.parametrize("kind", KINDS)
def test_a_narrow_table_keeps_the_scores_of_requests_better_than_principal_axes_do(kind: str) -> None:
    model: Any = toys.original(kind).main.model
    width, split = model.axes()["table_dim"], toys.split()
    axes = principal_axes(model, split)
    past = torch.from_numpy(split.train.histories().padded(model.max_history))
    counts = torch.bincount(torch.from_numpy(split.train.item).long(), minlength=toys.N_ITEMS)

    def error(vectors: torch.Tensor) -> float:
        """Of the scores of the model's own requests, items counted by the root of their events."""
        change = model.states(past)[past > 0] @ (model.item_vectors() - vectors).T
        return float((change.square() * (counts + 1.0).sqrt()).sum())

    with torch.inference_mode():
        for size in (width // 2, width // 4):
            small: Any = cut(model, "table_dim", size, split)
            projected = model.item_vectors() @ axes[:, :size] @ axes[:, :size].T
            assert error(small.items.widen(small.item_vectors())) < 0.9 * error(projected)


@pytest.mark.parametrize("axis", ["table_dim", "embedding_dim"])
@pytest.mark.parametrize("kind", KINDS)
def test_energy_counts_the_components_that_hold_it(kind: str, axis: str) -> None:
    model: Any = toys.untrained(kind, toys.SHAPES[kind][0])
    width = model.axes()[axis]
    draws = torch.Generator().manual_seed(0)
    with torch.no_grad():
        factor, mixed = (torch.randn(*size, generator=draws) for size in ((toys.N_ITEMS, 3), (3, width)))
        model.items.weight.copy_(factor @ mixed)
    pipeline, sizes = Pipeline(Stage(model)), []
    for energy in (0.3, 0.6, 0.8):
        out = applied(make("reduce", {"axis": axis, "energy": energy, "epochs": 0}), pipeline, context_of(pipeline))
        sizes.append(out.main.model.axes()["table_dim"])
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[-1] < width
    if axis == "table_dim":
        step = make("reduce", {"axis": axis, "energy": 0.999999, "epochs": 0})
        assert applied(step, pipeline, context_of(pipeline)).main.model.axes()["table_dim"] == 3, (
            "the rank of the table"
        )
    with pytest.raises(Unsupported, match=rf"energy=1.0 needs all {width} of {axis}; pass less"):
        applied(make("reduce", {"axis": axis, "energy": 1.0}), toys.original(kind), context_of(toys.original(kind)))


def test_energy_is_of_components() -> None:
    pipeline = toys.original("sasrec")
    step = make("reduce", {"axis": "history_length", "energy": 0.5})
    with pytest.raises(
        Unsupported, match=r"energy=0\.5 has no components of 'history_length' of sasrec to count; pass a size"
    ):
        applied(step, pipeline, context_of(pipeline))
    with pytest.raises(ConfigError, match=r"technique.reduce.energy = 1.5 is outside 0 to 1"):
        make("reduce", {"energy": 1.5})


@pytest.mark.parametrize("kind", KINDS)
def test_other_axes_can_still_be_cut(kind: str) -> None:
    model = toys.original(kind).main.model
    small = cut(model, "table_dim", 4, toys.split())
    again = cut(small, "table_dim", 3, toys.split())
    short = again.shrink("history_length", torch.arange(6))
    torch.testing.assert_close(scores(short), scores(again))
    assert short.axes()["table_dim"] == 3


@pytest.mark.parametrize("kind", KINDS)
def test_a_cut_at_the_front_is_what_was_trained(kind: str) -> None:
    model = nested(kind, widths=[4, 2])
    width = model.axes()["embedding_dim"]
    part: Any = model
    part.items.limit = 4
    wanted = scores(model)
    part.items.limit = None
    small = cut(model, "table_dim", 4, toys.split())
    torch.testing.assert_close(scores(small), wanted)
    torch.testing.assert_close(small.item_vectors(), part.item_vectors()[:, :4])  # type: ignore[attr-defined]
    assert small.config.widths == (2,), "what is left goes on being trained"
    assert not torch.allclose(scores(model), wanted)
    assert (width, small.axes()["table_dim"]) == (part.config.embedding_dim, 4)


def test_a_nested_mlp_may_lose_the_columns_of_its_layers_too() -> None:
    model = nested("mlp", widths=[4])
    small = [cut(model, axis, 4, toys.split()) for axis in ("table_dim", "embedding_dim")]
    torch.testing.assert_close(scores(small[1]), scores(small[0]))
    assert small[1].config.embedding_dim == 4


def test_nested_towers_answer_at_the_front_as_they_were_trained() -> None:
    """Users, histories and items together are cut: a request is not told more than the items can tell apart."""
    model: Any = nested("two_tower", widths=[4, 2])
    model.items.limit = 4
    wanted = scores(model)
    model.items.limit = None
    small = cut(model, "embedding_dim", 4, toys.split())
    torch.testing.assert_close(scores(small), wanted)
    assert not torch.allclose(scores(model), wanted)
    assert (small.config.embedding_dim, small.config.widths) == (4, (2,))


def test_nested_training_is_better_where_it_is_narrow() -> None:
    """The first 3 numbers of 16, trained alike but for the widths."""
    fit = Fit(epochs=30, patience=30, batch_size=32, threads=1, precision="fp32", learning_rate=1e-2)
    found = []
    for widths in ((), (3,)):
        model = toys.untrained("sasrec", {**toys.SHAPES["sasrec"][0], "widths": widths})
        context = Context(toys.split(), Pipeline(Stage(model)), fit)
        context.train(model)
        found.append(evaluate(model.shrink("table_dim", torch.arange(3)), toys.split().test)["ndcg@10"])
    assert found[1] > found[0] + 0.05


def test_training_leaves_no_limit_and_is_repeatable() -> None:
    once, again = nested("sasrec"), nested("sasrec")
    assert models.fingerprint(once) == models.fingerprint(again)
    assert once.items.limit is None  # type: ignore[attr-defined]
    assert once.config.widths == (8,)


def test_a_nested_model_survives_saving(tmp_path: Path) -> None:
    model = nested("mlp")
    models.save(model, tmp_path)
    again = models.load(tmp_path)
    assert again.config == model.config
    np.testing.assert_array_equal(scores(again), scores(model))


def test_what_can_not_be_nested_is_refused() -> None:
    for kind in ("als", "neumf", "ease"):
        pipeline = toys.original(kind)
        with pytest.raises(Unsupported, match=f"{kind} has no item vectors that can be trained nested"):
            applied(make("matryoshka", {}), pipeline, context_of(pipeline))
    twice = Pipeline(Stage(nested("sasrec")))
    with pytest.raises(Unsupported, match="sasrec is nested already; leave matryoshka out"):
        applied(make("matryoshka", {}), twice, context_of(twice))


@pytest.mark.parametrize("widths", [[0], [16], [4, 99]])
def test_widths_lie_below_the_whole(widths: list[int]) -> None:
    with pytest.raises(ConfigError, match=r"model.sasrec.widths has \d+; give widths from 1 to 15"):
        nested("sasrec", widths=widths)


@pytest.mark.parametrize("kind", KINDS)
def test_a_table_is_no_wider_than_its_model(kind: str) -> None:
    config = find("models", kind).Config
    with pytest.raises(ConfigError, match=rf"model.{kind}.table_dim = 9 is outside 0 to 8"):
        config(embedding_dim=8, table_dim=9)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("table", "options"), [("int4", {"block": 16}), ("pq", {"parts": 4, "codes": 16})])
def test_few_bits_meet_narrow_vectors_that_were_turned_for_them(
    kind: str, table: str, options: dict[str, Any], exported: Exported
) -> None:
    """The narrow vectors' numbers are of falling size, which one scale for all of them would not survive."""
    pipeline = toys.original(kind)
    small: Any = cut(pipeline.main.model, "table_dim", pipeline.main.model.axes()["table_dim"] // 2, toys.split())
    with torch.no_grad():
        small.items.weight[:, 0] *= 4.0
    narrow = Pipeline(Stage(small))
    step = make("quantize", {"graph": "float32", "table": table, "table_options": options})
    out = applied(step, narrow, context_of(narrow))
    torch.testing.assert_close(scores(out.main.model), scores(small), rtol=1e-3, atol=1e-3)
    left = [
        open_bundle(exported(Pipeline(Stage(model, table=table, table_options=options))))
        for model in (out.main.model, small)
    ]
    whole, request = open_bundle(exported(narrow)), Request(history=toys.around().item_ids[:3])
    wanted = whole.score(request, toys.around().item_ids)
    errors = [float(np.abs(engine.score(request, toys.around().item_ids) - wanted).mean()) for engine in left]
    assert errors[0] < errors[1]

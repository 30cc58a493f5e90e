"""Units of all layers that compete with each other: which stay, and that layers of different widths are models like others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import toys
from recfit import techniques
from recfit.engine import open_bundle
from recfit.pipeline import Pipeline, Stage
from recfit.techniques import Context, applied, describe, make
from recfit.types import ConfigError, Request

Exported = Callable[[Pipeline], Path]
SASREC = toys.original("sasrec")
DEEP = {**toys.SHAPES["sasrec"][0], "layers": 3}


def context_of(pipeline: Pipeline, **changes: Any) -> Context:
    return Context(toys.split(), pipeline, toys.FIT, **changes)


def pruned(pipeline: Pipeline, **settings: Any) -> Pipeline:
    given = {"axis": "ffn", "scope": "global", "epochs": 0, **settings}
    return applied(make("prune", given), pipeline, context_of(pipeline))


def with_units(*layers: list[float]) -> Pipeline:
    """A model whose ffn units have these L2 norms, layer by layer."""
    model: Any = toys.untrained("sasrec", {**DEEP, "layers": len(layers), "ffn": len(layers[0])})
    with torch.no_grad():
        for block, norms in zip(model.blocks, layers, strict=True):
            block.down.weight.zero_()
            block.up.weight.zero_()
            block.up.weight[:, 0] = torch.tensor(norms)
    return Pipeline(Stage(model))


def norms(pipeline: Pipeline) -> list[list[float]]:
    model: Any = pipeline.main.model
    return [block.up.weight[:, 0].tolist() for block in model.blocks]


def test_the_units_of_all_layers_compete() -> None:
    flat, steep = [3.0, 3.0, 3.0, 3.0], [9.0, 1.0, 1.0, 1.0]
    out = pruned(with_units(flat, steep), keep=0.625)
    assert norms(out) == [flat, [9.0]]
    assert out.main.model.config.ffn == (4, 1)
    assert norms(pruned(with_units(flat, steep), keep=0.5, scope="layer")) == [flat[:2], [9.0, 1.0]]


def test_a_layer_of_larger_numbers_is_no_better() -> None:
    """What a unit is compared by is its share of its own layer."""
    layers = [5.0, 3.0, 2.0, 1.0], [4.0, 3.5, 3.0, 0.5]
    kept = norms(pruned(with_units(*layers), keep=0.5))
    larger = norms(pruned(with_units(layers[0], [100 * norm for norm in layers[1]]), keep=0.5))
    assert kept == [[5.0], [4.0, 3.5, 3.0]]
    assert larger == [kept[0], [100 * norm for norm in kept[1]]]


def test_no_layer_loses_its_last_unit() -> None:
    flat, steep = [1.0] * 8, [9.0, 9.0, *[0.0] * 6]
    assert norms(pruned(with_units(steep, flat, steep), keep=0.125)) == [[9.0], [1.0], [9.0]]
    assert norms(pruned(with_units(steep, flat, steep), keep=0.01)) == [[9.0], [1.0], [9.0]]


@pytest.mark.parametrize("by", ["l1", "taylor", "random"])
@pytest.mark.parametrize("axis", ["heads", "ffn"])
def test_any_measure_cuts_the_same_number(axis: str, by: str) -> None:
    pipeline = Pipeline(Stage(toys.trained("sasrec", DEEP)))
    config: Any = pruned(pipeline, axis=axis, by=by, keep=0.7).main.model.config
    assert sum(config.each(axis)) == round(0.7 * sum(pipeline.main.model.config.each(axis)))


def test_rounds_count_over_all_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[Any] = []
    monkeypatch.setattr(techniques, "train", lambda model, *_, **__: found.append(model.config))
    pruned(SASREC, keep=0.25, rounds=3, epochs=3)
    assert [sum(config.each("ffn")) for config in found] == [23, 13, 12]


def test_layers_of_different_widths_are_cut_further() -> None:
    """The narrower stay as they are where every layer may keep more than they have."""
    uneven = pruned(with_units([3.0] * 4, [9.0, 1.0, 1.0, 1.0]), keep=0.625)
    assert norms(pruned(uneven, keep=0.5, scope="layer")) == [[3.0, 3.0], [9.0]]
    assert norms(pruned(uneven, keep=0.6)) == [[3.0, 3.0], [9.0]]
    assert pruned(uneven, axis="layers", keep=0.5, scope="layer").main.model.config.ffn in (1, 4)
    for name, settings in (
        ("reduce", {"size": 8, "epochs": 0}),
        ("low_rank", {"epochs": 0}),
        ("sparsify", {"epochs": 0}),
    ):
        out: Any = applied(make(name, settings), uneven, context_of(uneven)).main.model
        assert out.config.ffn == (4, 1)


@pytest.mark.parametrize("axis", ["heads", "ffn"])
def test_the_bundle_answers_as_the_model_does(axis: str, exported: Exported) -> None:
    out = pruned(Pipeline(Stage(toys.trained("sasrec", DEEP))), axis=axis, keep=0.7, epochs=1)
    assert isinstance(getattr(out.main.model.config, axis), tuple), "layers differ"
    history = toys.around().item_ids[:4]
    answer = open_bundle(exported(out)).recommend([Request(history=history)])[0]
    rows = [toys.around().item_ids.index(item) for item in answer.items]
    toys.assert_ranks(rows, answer.scores, toys.expected(out, -1, range(4)), 10, 1e-4)


def test_an_untrained_structure_has_the_widths_of_the_whole() -> None:
    step = make("prune", {"axis": "ffn", "scope": "global", "epochs": 1})
    whole, structure = (step.apply(SASREC, context_of(SASREC, structure_only=only)) for only in (False, True))
    assert structure.main.model.config == whole.main.model.config


def test_layers_that_stay_equally_wide_have_one_number() -> None:
    same = [4.0, 3.0, 2.0, 1.0]
    assert pruned(with_units(same, same), keep=0.5).main.model.config.ffn == 2


def test_the_preset_is_that_of_sparsify() -> None:
    """40 % leave, two epochs on a tenth of the users."""
    light = make("prune", {"axis": "ffn", "preset": "light"})
    assert describe(light) == "prune(ffn, keep=0.6, epochs=2, data_fraction=0.1, learning_rate=0.0001)"
    other = techniques.settings_of(make("sparsify", {"preset": "light"}))
    mine = techniques.settings_of(light)
    assert mine["keep"] == 1 - other["sparsity"]
    assert all(mine[name] == other[name] for name in ("epochs", "data_fraction", "learning_rate"))
    with pytest.raises(ConfigError, match=r"technique\.prune\.preset = 'heavy'; allowed: light"):
        make("prune", {"axis": "ffn", "preset": "heavy"})

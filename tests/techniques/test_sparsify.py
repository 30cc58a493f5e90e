"""Single weights that are zero: how they are chosen, that they stay so, and what a bundle makes of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

import toys
from recfit import models
from recfit.engine import open_bundle
from recfit.export import export
from recfit.pipeline import Pipeline, RuntimePlan, Stage
from recfit.techniques import Context, applied, describe, make
from recfit.techniques.sparsify import Masks, matrices
from recfit.training import train
from recfit.types import ConfigError, Request, Unsupported

Exported = Callable[[Pipeline], Path]
pack = import_module("recfit.export._sparse").pack
WIDE = {"layers": 1, "embedding_dim": 64, "heads": 2, "ffn": 256, "max_history": 9}


def context_of(pipeline: Pipeline, **changes: Any) -> Context:
    return Context(toys.split(), pipeline, toys.FIT, **changes)


def made(kind: str = "sasrec", **settings: Any) -> Any:
    pipeline = toys.original(kind)
    return applied(make("sparsify", settings), pipeline, context_of(pipeline)).main.model


def sparsities(model: Any) -> list[float]:
    return [float((weight == 0).float().mean()) for weight in matrices(model).values()]


def total(model: Any) -> float:
    return float(torch.cat([(weight == 0).float().flatten() for weight in matrices(model).values()]).mean())


@pytest.mark.parametrize("by", ["l1", "taylor", "random"])
@pytest.mark.parametrize("schedule", ["one_shot", "cubic"])
@pytest.mark.parametrize("kind", ["sasrec", "neumf", "two_tower"])
def test_zeros_are_there_after_fine_tuning(kind: str, schedule: str, by: str) -> None:
    model = made(kind, sparsity=0.6, by=by, schedule=schedule, epochs=2)
    assert sparsities(model) == pytest.approx([0.6] * len(sparsities(model)), abs=0.05)
    original: Any = toys.original(kind).main.model
    before, after = (dict(models.as_module(part).named_parameters()) for part in (original, model))
    assert any(
        not torch.equal(after[name][after[name] != 0], before[name][after[name] != 0]) for name in matrices(model)
    )
    assert not any(weight.eq(0).any() for weight in matrices(original).values() if weight.numel() > 50)


def test_the_smallest_weights_leave() -> None:
    model, original = made(sparsity=0.5, epochs=0), matrices(toys.original("sasrec").main.model)
    for name, weight in matrices(model).items():
        kept = original[name].detach()[weight != 0].abs()
        assert kept.min() >= original[name].detach()[weight == 0].abs().max()
        torch.testing.assert_close(weight[weight != 0], original[name][weight != 0])


def test_global_masks_let_matrices_differ() -> None:
    found = {scope: made(sparsity=0.5, scope=scope, epochs=0) for scope in ("layer", "global")}
    assert [total(model) for model in found.values()] == pytest.approx([0.5, 0.5], abs=0.01)
    assert max(sparsities(found["layer"])) - min(sparsities(found["layer"])) < 0.05
    assert max(sparsities(found["global"])) - min(sparsities(found["global"])) > 0.1


def test_an_item_table_is_left_to_its_formats() -> None:
    """An encoder's table is stored apart; a ranker's is part of its graph."""
    assert not any(name.startswith("items.") for name in matrices(toys.original("sasrec").main.model))
    assert not any(name.startswith("items.") for name in matrices(toys.trained("mlp", toys.SHAPES["mlp"][1])))
    assert {"users", "items.weight"} <= matrices(toys.original("neumf").main.model).keys()
    two = matrices(toys.original("two_tower").main.model)
    assert {"users", "past.items.weight"} <= two.keys()
    assert "items.weight" not in two


def test_the_cubic_schedule_tightens_and_never_loosens() -> None:
    weight = torch.nn.Parameter(torch.randn(40, 50, generator=torch.Generator().manual_seed(0)))
    masks = Masks({"w": weight}, lambda _, values: values.abs(), 0.8, ramp=0.5)
    gone, found = torch.zeros(40, 50, dtype=torch.bool), []
    for through in (0.0, 0.125, 0.25, 0.5, 0.9):
        with torch.no_grad():
            weight.add_(0.5)  # a step that lifts what was zero
        masks.after_step(through)
        assert (weight[gone] == 0).all()
        gone = weight == 0
        found.append(float(gone.float().mean()))
    wanted = [0.8 * (1 - (1 - part) ** 3) for part in (0, 0.25, 0.5, 1, 1)]
    assert found == pytest.approx(wanted, abs=0.011)
    assert [masks.settled(through) for through in (0.0, 0.49, 0.5)] == [False, False, True]


def test_an_epoch_of_looser_masks_is_never_the_best(monkeypatch: pytest.MonkeyPatch) -> None:
    from recfit import training

    curve = iter([0.9, 0.8, 0.1, 0.3, 0.2, 0.1])
    monkeypatch.setattr(training.Evaluation, "__call__", lambda *_: {"ndcg@10": next(curve)})
    model = toys.untrained("sasrec", WIDE)
    masks = Masks(matrices(model), lambda _, values: values.abs(), 0.9, ramp=0.5)
    trained = train(model, toys.split(), replace(toys.FIT, epochs=6, patience=6), hold=masks, progress=False)
    assert trained.best == 3, (
        "the first of the three epochs at full sparsity, counted from 0, is better than what follows"
    )
    assert total(model) == pytest.approx(0.9, abs=0.01)


def test_a_held_training_continues_bit_for_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from recfit import training

    fit, real, prints = replace(toys.FIT, epochs=6, patience=6), training._Loop._epoch, []

    def interrupted(loop: Any, index: int, done: Any) -> float:
        if index == 2:
            raise KeyboardInterrupt
        return real(loop, index, done)

    def run(checkpoint: Path | None) -> str:
        model = toys.untrained("sasrec", WIDE)
        masks = Masks(matrices(model), lambda _, values: values.abs(), 0.9, ramp=0.5)
        train(model, toys.split(), fit, hold=masks, checkpoint=checkpoint, progress=False)
        return models.fingerprint(model)

    prints.append(run(None))
    with monkeypatch.context() as patch:
        patch.setattr(training._Loop, "_epoch", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "c")
    prints.append(run(tmp_path / "c"))
    assert prints[0] == prints[1]


def test_more_zeros_are_fewer_bytes(tmp_path: Path) -> None:
    pipeline = Pipeline(Stage(toys.untrained("sasrec", WIDE)))
    sizes = []
    for graph in ("float32", "int8"):
        for sparsity in (0.0, 0.4, 0.9):
            step = make("sparsify", {"sparsity": sparsity, "epochs": 0}) if sparsity else None
            out = step.apply(pipeline, context_of(pipeline)) if step else pipeline
            out = Pipeline(replace(out.main, graph=graph))
            path = export(out, toys.around(), tmp_path / f"{graph}{sparsity}", name="toy", recipe={"id": "r"})
            sizes.append((path / "retrieve" / "model.onnx").stat().st_size)
            history = toys.around().item_ids[:4]
            answer = open_bundle(path).recommend([Request(history=history)])[0]
            rows = [toys.around().item_ids.index(item) for item in answer.items]
            toys.assert_ranks(
                rows, answer.scores, toys.expected(out, -1, range(4)), 10, 1e-4 if graph == "float32" else 0.2
            )
    assert sizes[1] < 0.75 * sizes[0]
    assert sizes[2] < 0.35 * sizes[0]
    assert sizes[3] > sizes[4] > sizes[5]


@pytest.mark.parametrize("runtime", ["numpy", "fused", "torch"])
def test_every_runtime_opens_it(runtime: str, tmp_path: Path) -> None:
    pipeline = Pipeline(Stage(toys.untrained("sasrec", WIDE)))
    out = replace(
        make("sparsify", {"sparsity": 0.7, "epochs": 0}).apply(pipeline, context_of(pipeline)),
        runtime=RuntimePlan(runtime),
    )
    path = export(out, toys.around(), tmp_path / "b", name="toy", recipe={"id": "r"})
    answer = open_bundle(path).recommend([Request(history=toys.around().item_ids[:4])])[0]
    rows = [toys.around().item_ids.index(item) for item in answer.items]
    toys.assert_ranks(rows, answer.scores, toys.expected(out, -1, range(4)), 10, 1e-4)


def test_two_steps_after_each_other_keep_the_zeros_of_the_first() -> None:
    pipeline = toys.original("sasrec")
    once = applied(make("sparsify", {"sparsity": 0.3, "epochs": 1}), pipeline, context_of(pipeline))
    twice = applied(make("sparsify", {"sparsity": 0.7, "epochs": 1}), once, context_of(pipeline))
    first, second = matrices(once.main.model), matrices(twice.main.model)
    assert all((second[name][weight == 0] == 0).all() for name, weight in first.items())
    with pytest.raises(Unsupported, match="changed nothing here"):
        applied(make("sparsify", {"sparsity": 0.3, "epochs": 0}), twice, context_of(pipeline))


@pytest.mark.parametrize("dtype", [np.float32, np.int8])
@pytest.mark.parametrize("shape", [(256, 121), (3, 80, 171), (35001,)])
@pytest.mark.parametrize("share", [0.0, 0.4, 0.95, 1.0])
def test_packed_constants_come_back_exactly(dtype: Any, shape: tuple[int, ...], share: float, tmp_path: Path) -> None:
    draws = np.random.default_rng(0)
    values = draws.integers(1, 100, shape).astype(dtype)
    values[draws.random(shape) < share] = 0
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    gives = helper.make_tensor_value_info("y", kind, list(shape))
    node = helper.make_node("Identity", ["w"], ["y"])
    graph = helper.make_graph([node], "g", [], [gives], [numpy_helper.from_array(values, "w")])
    path = tmp_path / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    before = path.stat().st_size
    pack(path)
    onnx.checker.check_model(onnx.load(path))
    for level in (
        onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL,
        onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL,
    ):
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = level
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        np.testing.assert_array_equal(session.run(None, {})[0], values)
    packed = any(part.name.endswith(".bits") for part in onnx.load(path).graph.initializer)
    assert packed == (share > 0)
    assert packed or path.stat().st_size == before


def test_small_constants_are_left_alone(tmp_path: Path) -> None:
    gives = helper.make_tensor_value_info("y", TensorProto.FLOAT, [100])
    zeros = numpy_helper.from_array(np.zeros(100, np.float32), "w")
    graph = helper.make_graph([helper.make_node("Identity", ["w"], ["y"])], "g", [], [gives], [zeros])
    path = tmp_path / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    before = path.read_bytes()
    pack(path)
    assert path.read_bytes() == before


def test_a_preset_stands_for_its_settings() -> None:
    light = make("sparsify", {"preset": "light"})
    assert light == make("sparsify", {"sparsity": 0.4, "epochs": 2, "data_fraction": 0.1, "learning_rate": 1e-4})
    assert make("sparsify", {"preset": "light", "epochs": 1}) == replace(light, epochs=1)  # type: ignore[type-var]
    assert describe(light) == "sparsify(sparsity=0.4, epochs=2, data_fraction=0.1, learning_rate=0.0001)"
    with pytest.raises(ConfigError, match=r"technique\.sparsify\.preset = 'heavy'; allowed: light"):
        make("sparsify", {"preset": "heavy"})
    with pytest.raises(ConfigError, match=r"technique\.quantize\.preset = 'light'; allowed: none"):
        make("quantize", {"preset": "light"})


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"sparsity": 1.0}, "technique.sparsify.sparsity = 1.0 is outside 0.001 to 0.999"),
        ({"by": "l2"}, "technique.sparsify.by = 'l2'; allowed: l1, taylor, random"),
        ({"scope": "model"}, "technique.sparsify.scope = 'model'; allowed: layer, global"),
        ({"schedule": "linear"}, "technique.sparsify.schedule = 'linear'; allowed: one_shot, cubic"),
    ],
)
def test_a_wrong_setting_is_named(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        make("sparsify", settings)


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        ("ease", "ease is solved in closed form and its matrices belong together; use its own settings"),
        ("popularity", "popularity is solved in closed form"),
    ],
)
def test_where_it_does_not_apply(kind: str, sentence: str) -> None:
    pipeline = Pipeline(Stage(toys.trained(kind, {})))
    with pytest.raises(Unsupported, match=sentence):
        applied(make("sparsify", {}), pipeline, context_of(pipeline))


def test_a_model_that_is_only_a_table_has_nothing_to_sparsify() -> None:
    pipeline = Pipeline(Stage(toys.trained("custom", {"factory": "toys:pooled"})))
    with pytest.raises(Unsupported, match="custom has no matrices beside its item table; use quantize for that"):
        applied(make("sparsify", {}), pipeline, context_of(pipeline))

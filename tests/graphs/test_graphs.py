"""Every format of a graph, found by its file: what it stores, what it keeps of each layer, how far off it may be."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import toys
from recfit import graphs
from recfit.export import Surroundings, sensitivities
from recfit.graphs import layers
from recfit.pipeline import Stage
from recfit.registry import find, names
from recfit.runtimes import ort
from recfit.types import ConfigError, FloatArray, Unsupported

FORMATS = names("graphs")
QUANTIZING = tuple(name for name in FORMATS if name != "float32")
# The options of each format, several where its settings change what is stored.
OPTIONS: dict[str, list[dict[str, Any]]] = {
    "codebook": [{}, {"bits": 2}, {"bits": 8}, {"groups": 5}],
    "int4": [{}, {"block": 16}],
    "int8": [{}, {"per": "tensor"}, {"weights": "asymmetric"}, {"per": "tensor", "weights": "asymmetric"}],
    "int8_block": [{}, {"block": 64}],
    "int8_static": [
        {},
        {"calibration": "percentile", "activations": "symmetric"},
        {"calibration": "entropy", "per": "tensor"},
        {"weights": "asymmetric"},
        {"per": "tensor", "weights": "asymmetric"},
    ],
    "power_of_two": [{}, {"bits": 2}, {"bits": 4, "groups": 3}],
}
PAIRS = [(per, weights) for per in ("channel", "tensor") for weights in ("symmetric", "asymmetric")]
CASES = [(name, options) for name in QUANTIZING for options in OPTIONS.get(name, [{}])]
# Of a weight, as a share of the largest; of an output, of its length.
ERRORS = {"int8": (0.01, 0.03), "int8_block": (0.005, 0.02), "int8_static": (0.01, 0.1), "int4": (0.13, 0.2)}
INPUTS, OUTPUTS = 24, 30


def made(directory: Path) -> Path:
    """A graph with every kind of layer: a look-up, a stack of matrices, a product, and one with a bias."""
    draws = np.random.default_rng(0)

    def constant(name: str, *shape: int) -> Any:
        return numpy_helper.from_array(draws.standard_normal(shape).astype(np.float32) * 0.3, name)

    constants = [
        constant("rows", 50, INPUTS),
        constant("stack", 2, INPUTS, INPUTS),
        constant("square", INPUTS, 41),
        constant("wide", OUTPUTS, 41),
        constant("bias", OUTPUTS),
    ]
    nodes = [
        helper.make_node("Gather", ["rows", "items"], ["looked"], "look"),
        helper.make_node("MatMul", ["looked", "stack"], ["stacked"], "heads"),
        helper.make_node("ReduceMean", ["stacked"], ["mean"], axes=[0], keepdims=0),
        helper.make_node("MatMul", ["mean", "square"], ["between"], "middle"),
        helper.make_node("Gemm", ["between", "wide", "bias"], ["output"], "last", transB=1),
    ]
    value = helper.make_tensor_value_info
    takes = [value("items", TensorProto.INT64, ["batch"])]
    gives = [value("output", TensorProto.FLOAT, ["batch", OUTPUTS])]
    graph = helper.make_graph(nodes, "made", takes, gives, constants)
    path = directory / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def feed() -> Any:
    return iter([{"items": np.arange(start, start + 5)} for start in range(0, 50, 5)])


def answer(path: Path) -> FloatArray:
    found: FloatArray = ort.session(path).run(None, {"items": np.arange(50)})[0]
    return found


def converted(path: Path, name: str, options: Mapping[str, Any]) -> Path:
    target = path.with_name("converted.onnx")
    shutil.copy(path, target)
    graphs.convert(target, name, options, feed)
    return target


@pytest.fixture(params=CASES, ids=str)
def case(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Mapping[str, Any], Path, Path]:
    """A format, its options, the float32 graph, the converted one."""
    name, options = request.param
    path = made(tmp_path)
    return name, options, path, converted(path, name, options)


def test_layers_are_found_with_what_they_take_and_give(tmp_path: Path) -> None:
    found = layers(onnx.load(made(tmp_path)).graph)
    assert [(layer.name, layer.op, layer.shape[layer.channels]) for layer in found] == [
        ("look", "Gather", 50),
        ("heads", "MatMul", INPUTS),
        ("middle", "MatMul", 41),
        ("last", "Gemm", OUTPUTS),
    ]


def test_float32_is_left_as_it_is(tmp_path: Path) -> None:
    path = made(tmp_path)
    assert converted(path, "float32", {}).read_bytes() == path.read_bytes()


def test_the_answer_is_near(case: tuple[str, Mapping[str, Any], Path, Path]) -> None:
    name, _, path, after = case
    wanted = answer(path)
    distance = np.linalg.norm(answer(after) - wanted) / np.linalg.norm(wanted)
    assert 0 < distance < ERRORS.get(name, (1.0, 0.8))[1]


def test_weights_are_read_back_as_they_are_used(case: tuple[str, Mapping[str, Any], Path, Path]) -> None:
    """The float32 graph with the weights that are said to be kept answers as the converted one does, up to what
    activations are rounded by."""
    name, _, path, after = case
    model, kept = onnx.load(path), onnx.load(after).graph
    for layer in layers(model.graph):
        before = next(part for part in model.graph.initializer if part.name == layer.weight)
        try:
            weights = find("graphs", name).weights(kept, layer)
        except KeyError:  # a layer that this format leaves as it is
            continue
        old = numpy_helper.to_array(before)
        assert weights.shape == old.shape
        assert np.abs(weights - old).max() <= ERRORS.get(name, (0.75, 1))[0] * np.abs(old).max()
        before.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(weights, np.float32), layer.weight))
    same = path.with_name("same.onnx")
    onnx.save(model, same)
    rounded = 0.1 if name.startswith("int8") else 1e-5
    wanted = answer(same)
    assert np.linalg.norm(answer(after) - wanted) <= rounded * np.linalg.norm(wanted)


def test_the_graph_is_smaller(case: tuple[str, Mapping[str, Any], Path, Path]) -> None:
    _, _, path, after = case
    kept = sum(len(part.raw_data) for part in onnx.load(after).graph.initializer)
    assert kept < 0.85 * sum(len(part.raw_data) for part in onnx.load(path).graph.initializer)


def test_skipped_layers_keep_their_numbers(case: tuple[str, Mapping[str, Any], Path, Path]) -> None:
    name, options, path, _ = case
    model = onnx.load(path).graph
    skip = [layer.name for layer in layers(model)][:-1]
    after = onnx.load(converted(path, name, {**options, "skip": skip})).graph
    old = {part.name: numpy_helper.to_array(part) for part in model.initializer}
    new = {part.name: numpy_helper.to_array(part) for part in after.initializer}
    for weight in ("rows", "stack", "square"):
        np.testing.assert_array_equal(new[weight], old[weight])
    assert "wide" not in new


@pytest.mark.parametrize("name", QUANTIZING)
def test_nothing_left_to_quantize_is_refused(name: str, tmp_path: Path) -> None:
    path = made(tmp_path)
    every = [layer.name for layer in layers(onnx.load(path).graph)]
    with pytest.raises(Unsupported, match="the graph has no weights left to store in fewer bits; leave it float32"):
        graphs.convert(path, name, {"skip": every}, feed)


@pytest.mark.parametrize("name", QUANTIZING)
def test_an_unknown_layer_is_answered_with_those_there_are(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"graph\.skip = 'midle' \(did you mean 'middle'\?\); allowed: look, heads"):
        graphs.convert(made(tmp_path), name, {"skip": ["midle"]}, feed)


@pytest.mark.parametrize(
    ("name", "options", "sentence"),
    [
        ("int8", {"per": "row"}, r"graph\.int8\.per = 'row'; allowed: channel, tensor"),
        ("int8", {"weights": "unsigned"}, r"graph\.int8\.weights = 'unsigned'; allowed: symmetric, asymmetric"),
        ("int8_static", {"weights": "unsigned"}, r"int8_static\.weights = 'unsigned'; allowed: symmetric, asymmetric"),
        ("int8_static", {"calibration": "max"}, "allowed: minmax, percentile, entropy"),
        ("int8_static", {"activations": "signed"}, "allowed: asymmetric, symmetric"),
        ("int4", {"block": 20}, r"int4\.block = 20; allowed: 16, 32, 64, 128, 256"),
        ("codebook", {"bits": 3}, r"graph\.codebook\.bits = 3; allowed: 2, 4, 8"),
        ("codebook", {"groups": 0}, r"graph\.codebook\.groups = 0 is outside 1 to"),
        ("power_of_two", {"bits": 8}, r"graph\.power_of_two\.bits = 8; allowed: 2, 4"),
        ("float32", {"skip": []}, r"graph\.float32 has no setting 'skip'; allowed: none"),
        ("int9", {}, "no graph named 'int9'"),
    ],
)
def test_a_wrong_setting_is_answered_with_what_is_allowed(name: str, options: Mapping[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        graphs.config_of(name, options)


def product(weights: FloatArray, path: Path) -> Path:
    """A graph of one layer: `x` [batch, in] times `weights` [in, out]."""
    value = helper.make_tensor_value_info
    takes = value("x", TensorProto.FLOAT, ["batch", weights.shape[0]])
    gives = value("y", TensorProto.FLOAT, ["batch", weights.shape[1]])
    node = helper.make_node("MatMul", ["x", "w"], ["y"], "product")
    graph = helper.make_graph([node], "g", [takes], [gives], [numpy_helper.from_array(weights, "w")])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


@pytest.mark.parametrize("name", ["int8_static", "int8_block", "int4"])
def test_activations_of_a_batch_do_not_meet(name: str, tmp_path: Path) -> None:
    """A request is answered alike whatever is asked with it; scales that are found in each run depend on all."""
    draws = np.random.default_rng(0)
    path = product(draws.standard_normal((72, 20)).astype(np.float32), tmp_path / "model.onnx")
    x = draws.standard_normal((50, 72)).astype(np.float32) * np.logspace(-1, 1, 50, dtype=np.float32)[:, None]
    graphs.convert(path, name, {}, lambda: iter([{"x": x}]))
    session = ort.session(path)
    together = session.run(None, {"x": x})[0]
    alone = np.concatenate([session.run(None, {"x": line[None]})[0] for line in x])
    np.testing.assert_allclose(alone, together, rtol=1e-5, atol=1e-5)


def constant_of(path: Path, name: str) -> Any:
    return next(numpy_helper.to_array(part) for part in onnx.load(path).graph.initializer if part.name == name)


def kept(weights: FloatArray, name: str, options: Mapping[str, Any], directory: Path) -> FloatArray:
    """What a format makes of `weights`."""
    path = product(weights, directory / "model.onnx")
    (layer,) = layers(onnx.load(path).graph)
    graphs.convert(path, name, options, feed)
    found: FloatArray = find("graphs", name).weights(onnx.load(path).graph, layer)
    return found


INTEGERS = [(name, {"per": per, "weights": weights}) for name in ("int8", "int8_static") for per, weights in PAIRS]


@pytest.mark.parametrize(("name", "options"), INTEGERS, ids=str)
def test_the_largest_products_do_not_saturate(name: str, options: Mapping[str, Any], tmp_path: Path) -> None:
    """Two products of 8 bits each overflow 16 bits, where processors without VNNI add them."""
    path = product(np.full((64, 8), 0.5, np.float32), tmp_path / "model.onnx")
    x = np.full((3, 64), 2.0, np.float32)
    graphs.convert(path, name, options, lambda: iter([{"x": x}]))
    np.testing.assert_allclose(ort.session(path).run(None, {"x": x})[0], 64.0, rtol=0.01)
    assert np.abs(constant_of(path, "w_quantized").astype(int)).max() <= 64


@pytest.mark.parametrize("name", ["int8", "int8_static"])
@pytest.mark.parametrize("per", ["channel", "tensor"])
def test_leaning_weights_lose_less_with_a_zero_point(name: str, per: str, tmp_path: Path) -> None:
    """Channels on one side of 0 each leave half of the symmetric steps unused; all of them together only where they lean to
    the same side. One integer product stays one, with a zero point for each channel."""
    draws = np.random.default_rng(0)
    values = draws.gamma(2.0, 1.0, (64, 20)).astype(np.float32)
    if per == "channel":
        values *= np.where(np.arange(20) % 2, -1, 1).astype(np.float32)
    x = draws.standard_normal((30, 64)).astype(np.float32)
    lost = []
    for weights in ("symmetric", "asymmetric"):
        path = product(values, tmp_path / "model.onnx")
        (layer,) = layers(onnx.load(path).graph)
        graphs.convert(path, name, {"per": per, "weights": weights}, lambda: iter([{"x": x}]))
        stored = find("graphs", name).weights(onnx.load(path).graph, layer)
        lost.append(float(np.square(stored - values).mean()))
        given = ort.session(path).run(None, {"x": x})[0]
        assert np.linalg.norm(given - x @ stored) < 0.01 * np.linalg.norm(x @ stored)
    assert lost[1] < 0.3 * lost[0]
    zeros = constant_of(path, "w_zero_point")
    assert zeros.size == (20 if per == "channel" else 1)
    assert zeros.any()


def test_a_codebook_finds_the_numbers_there_are(tmp_path: Path) -> None:
    numbers = np.array([-9, -3, -2.5, -1, -0.5, -0.25, 0, 0.1, 0.2, 0.4, 0.8, 1.6, 2, 3, 4, 9], np.float32)
    values = np.random.default_rng(0).permutation(np.repeat(numbers, 20)).reshape(20, 16)
    np.testing.assert_allclose(kept(values, "codebook", {"bits": 8}, tmp_path), values, atol=1e-6)
    few = kept(values, "codebook", {"bits": 2}, tmp_path)
    assert len(np.unique(few)) == 4
    even = np.linspace(-9, 9, 4)
    nearest = even[np.abs(values[..., None] - even).argmin(-1)]
    assert np.square(values - few).mean() < np.square(values - nearest).mean()


def test_groups_have_books_of_their_own(tmp_path: Path) -> None:
    """Channels of very different sizes don't share 16 numbers well."""
    values = (np.random.default_rng(0).standard_normal((40, 16)) * 10.0 ** np.arange(-8, 8)).astype(np.float32)
    for name in ("codebook", "power_of_two"):
        errors = [
            np.abs(kept(values, name, {"groups": groups}, tmp_path) - values).max(axis=0) / np.abs(values).max(axis=0)
            for groups in (1, 16)
        ]
        assert errors[0].max() > 0.9
        assert errors[1].max() < 0.35


def test_powers_of_two_are_powers_of_two(tmp_path: Path) -> None:
    values = np.random.default_rng(0).standard_normal((32, 16)).astype(np.float32)
    found = kept(values, "power_of_two", {}, tmp_path)
    assert len(np.unique(found)) <= 16
    assert (np.log2(np.abs(found[found != 0])) % 1 == 0).all()
    large = np.abs(values) > 2.0**-4
    assert (np.abs(found - values)[large] <= np.abs(values)[large] * 0.34 + 1e-6).mean() > 0.95
    assert not kept(np.zeros((32, 16), np.float32), "power_of_two", {}, tmp_path).any()


def test_the_report_ranks_layers_by_what_they_do_alone(tmp_path: Path) -> None:
    path = made(tmp_path)
    found = graphs.report(path, "codebook", {"bits": 2, "skip": ["middle"]}, feed)
    assert {part.layer for part in found} == {"look", "heads", "middle", "last"}
    assert [part.divergence for part in found] == sorted((part.divergence for part in found), reverse=True)
    assert all(part.divergence > 0 and part.max_error > 0 for part in found)
    wanted = answer(path)
    for part in found:
        others = [other.layer for other in found if other != part]
        alone = answer(converted(path, "codebook", {"bits": 2, "skip": others}))
        assert part.divergence == pytest.approx(np.linalg.norm(alone - wanted) / np.linalg.norm(wanted), rel=1e-4)
        finer = next(p for p in graphs.report(path, "codebook", {"bits": 8}, feed) if p.layer == part.layer)
        assert finer.sqnr_db > part.sqnr_db + 20
        assert finer.divergence < part.divergence


def test_the_report_leaves_out_what_a_format_cannot_hold(tmp_path: Path) -> None:
    assert {part.layer for part in graphs.report(made(tmp_path), "int4", {}, feed)} == {"heads", "middle", "last"}


@pytest.mark.parametrize("name", ["int8", "int8_block", "int8_static", "int4"])
def test_stacks_take_a_byte_a_number(name: str, tmp_path: Path) -> None:
    """ONNX Runtime's quantizers leave them as they are, in this graph and in one that holds nothing else."""
    path = made(tmp_path)
    for skip in ([], ["look", "middle", "last"]):
        after = onnx.load(converted(path, name, {"skip": skip})).graph
        held = {part.name: part for part in after.initializer}
        assert "stack" not in held
        assert len(held["stack.codes"].raw_data) == 2 * INPUTS * INPUTS
        assert ("square" in held) == bool(skip)


@pytest.mark.parametrize("name", ["int8", "codebook"])
def test_sensitivities_of_a_stage_are_reproducible(name: str) -> None:
    stage = Stage(toys.trained("sasrec", toys.SHAPES["sasrec"][0]), graph=name)
    around: Surroundings = toys.around()
    first, again = sensitivities(stage, around), sensitivities(stage, around)
    assert first == again
    assert len(first) > 4

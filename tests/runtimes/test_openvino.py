"""What only OpenVINO's bundles have: IR in place of every graph and table, equal scores in order, several threads at once."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import pytest

import toys
from recfit.engine import open_bundle
from recfit.measure.machine import halves_fast
from recfit.pipeline import Pipeline, RuntimePlan, Stage
from recfit.runtimes import openvino as runtime
from recfit.types import BundleError, Request, Unsupported

Exported = Callable[[Pipeline], Path]
PLAN = RuntimePlan("openvino")
IDS = toys.around().item_ids


@pytest.fixture
def bundle(exported: Exported) -> Path:
    return exported(Pipeline(toys.original("sasrec").main, runtime=PLAN))


def test_the_bundle_holds_numbers_once_and_only_as_ir(bundle: Path) -> None:
    assert sorted(path.name for path in (bundle / "retrieve").rglob("*")) == ["model.bin", "model.xml"]


@pytest.mark.parametrize(
    "stage",
    [
        Stage(toys.trained("popularity", {})),
        Stage(toys.trained("ease", toys.SHAPES["ease"][1])),
        Stage(toys.original("sasrec").main.model, table="int8"),
        Stage(toys.original("sasrec").main.model, graph="int8"),
    ],
    ids=["popularity", "sparse ease", "int8 table", "int8 graph"],
)
def test_lists_are_those_of_onnx_runtime_equal_scores_too(stage: Stage, exported: Exported) -> None:
    ours, theirs = open_bundle(exported(Pipeline(stage, runtime=PLAN))), open_bundle(exported(Pipeline(stage)))
    draws = np.random.default_rng(0)
    for size in draws.integers(1, 14, 30):
        request = Request(history=tuple(IDS[row] for row in draws.integers(0, len(IDS), size)))
        found, wanted = ours.recommend([request], 12)[0], theirs.recommend([request], 12)[0]
        assert found.items == wanted.items
        np.testing.assert_allclose(found.scores, wanted.scores, rtol=1e-4, atol=1e-5)


def test_threads_answer_side_by_side(bundle: Path) -> None:
    engine = open_bundle(bundle)
    requests = [Request(history=IDS[at : at + 1 + at % 7]) for at in range(30)] * 10
    alone = [engine.recommend([request])[0].items for request in requests]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda request: engine.recommend([request])[0].items, requests))
    assert together == alone


def test_answers_stay_when_the_next_request_comes(bundle: Path) -> None:
    scorer = runtime.Session(bundle / "retrieve" / "model.xml", 1)
    none, k = np.empty((0, 2), np.int64), np.array([5])
    first = scorer.run(None, {"history": np.array([[3]]), "gone": none, "k": k})
    before = [part.copy() for part in first]
    scorer.run(None, {"history": np.array([[7, 9]]), "gone": none, "k": k})
    for now, then in zip(first, before, strict=True):
        np.testing.assert_array_equal(now, then)


def test_serving_needs_neither_torch_nor_onnx(bundle: Path) -> None:
    script = (
        "import sys, recfit; engine = recfit.open_bundle(sys.argv[1]);"
        "answer = engine.recommend([recfit.Request(history=engine.bundle.item_ids[:3])])[0];"
        "assert answer.source == 'model'; print(*{'torch', 'onnx'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", script, str(bundle)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_threads_and_precision_reach_the_compiled_model(bundle: Path) -> None:
    threads = min(2, len(os.sched_getaffinity(0)))  # it takes no more than there are cores
    model = runtime.Session(bundle / "retrieve" / "model.xml", threads)._model
    assert model.get_property("INFERENCE_NUM_THREADS") == threads
    assert model.get_property("INFERENCE_PRECISION_HINT").to_string() == "f32"


def test_without_the_package_a_sentence_says_what_to_install(
    bundle: Path, exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(BundleError, match=r"OpenVINO is not installed; pip install 'recfit\[openvino\]'"):
        open_bundle(bundle)
    with pytest.raises(Unsupported, match=r"OpenVINO is not installed; pip install 'recfit\[openvino\]'"):
        exported(Pipeline(Stage(toys.untrained("sasrec", {"ffn": 9})), runtime=PLAN))


def test_an_ir_that_is_none_is_named(tmp_path: Path) -> None:
    (tmp_path / "model.xml").write_text("no model")
    with pytest.raises(BundleError, match=r"OpenVINO [\d.-]+\S* cannot load .*model\.xml"):
        runtime.Session(tmp_path / "model.xml", 1)


def test_a_graph_that_openvino_cannot_read_is_refused(tmp_path: Path) -> None:
    node = onnx.helper.make_node("Mystery", ["x"], ["y"], domain="com.microsoft")
    ports = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in "xy"]
    model = onnx.helper.make_model(onnx.helper.make_graph([node], "g", ports[:1], ports[1:]))
    with pytest.raises(Unsupported, match=r"cannot read this graph: .*com\.microsoft\.Mystery.*; keep name='ort'"):
        runtime.save(model, tmp_path / "model.xml")


@pytest.mark.parametrize(("options", "precision"), [({}, "float32"), ({"precision": "bf16"}, "bf16")])
def test_products_have_the_precision_that_was_asked_for(
    options: dict[str, str], precision: str, exported: Exported
) -> None:
    """What a bundle was measured with must not depend on the processor it opens on, unless it has no such products."""
    main = toys.original("sasrec").main
    engine = open_bundle(exported(Pipeline(main, runtime=RuntimePlan("openvino", options=options))))
    hint = engine._retrieve._session._model.get_property("INFERENCE_PRECISION_HINT").get_type_name()  # type: ignore[attr-defined]
    assert hint == {"float32": "f32", "bf16": "bf16" if halves_fast() else "f32"}[precision]
    requests = [Request(history=IDS[at : at + 1 + at % 7]) for at in range(30)]
    assert engine.manifest["pipeline"]["retrieve"]["alone"] == bool(options)  # rounding differs by the shape of a batch
    alone = [engine.recommend([request])[0] for request in requests]
    plain = [open_bundle(exported(Pipeline(main))).recommend([request])[0] for request in requests]
    for found, wanted in zip(alone, plain, strict=True):
        np.testing.assert_allclose(found.scores, wanted.scores, atol=0.05 if options else 1e-5)
    assert [found.items for found in engine.recommend(requests)] == [found.items for found in alone]

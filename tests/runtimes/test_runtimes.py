"""Every runtime with every model family, both found by their files: the engine answers what the torch model says."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx.reference import ReferenceEvaluator

import toys
from recfit import models
from recfit.engine import Engine, open_bundle
from recfit.graphs import folded
from recfit.models import as_module, rebuilt
from recfit.pipeline import Pipeline, RuntimePlan, Stage
from recfit.registry import names
from recfit.runtimes import Batch, StageSpec, ort
from recfit.runtimes import numpy as numpy_runtime
from recfit.tables._scan import Scan  # noqa: PLC2701
from recfit.techniques import Context, make
from recfit.types import BundleError, Recommendation, Request, Unsupported

Exported = Callable[[Pipeline], Path]

# No event, one, a few, with a repeat, exactly what most models read, more than that.
PASTS = ([], [7], [3, 4, 6], [5, 5, 9, 5], list(range(9)), list(range(30)))
UNKNOWN = -1


# Runtimes that hold encoders only.
LISTS_ONLY = ("fused", "openvino")


def runs(runtime: str, kind: str, options: dict[str, object]) -> bool:
    return runtime not in LISTS_ONLY or Stage(toys.untrained(kind, options)).kind == "encoder"


def pipeline_of(runtime: str, kind: str, options: dict[str, object]) -> Pipeline:
    return Pipeline(Stage(toys.trained(kind, options)), runtime=RuntimePlan(runtime))


@pytest.fixture(
    params=[(runtime, *shape) for runtime in names("runtimes") for shape in toys.SHAPED if runs(runtime, *shape)],
    ids=lambda part: f"{part[0]}, {part[1]} {part[2]}",
)
def opened(request: pytest.FixtureRequest, exported: Exported) -> tuple[Pipeline, Engine]:
    pipeline = pipeline_of(*request.param)
    return pipeline, open_bundle(exported(pipeline))


def requests_of(users: tuple[int, ...] = (UNKNOWN, 0, 17)) -> list[tuple[int, list[int], Request]]:
    """Users' rows, histories, and the requests that they are."""
    around = toys.around()
    ids = {UNKNOWN: None, **dict(enumerate(around.user_ids))}
    past = [(user, history) for user in users for history in PASTS]
    return [(u, h, Request(ids[u], tuple(around.item_ids[row] for row in h))) for u, h in past]


def rows_of(answer: Recommendation) -> list[int]:
    return [toys.around().item_ids.index(item) for item in answer.items]


def test_the_engine_answers_as_the_model_does(opened: tuple[Pipeline, Engine]) -> None:
    pipeline, engine = opened
    for user, history, request in requests_of():
        answer = engine.recommend([request], 10)[0]
        if not history and (user == UNKNOWN or "history" in pipeline.main.model.inputs):
            assert answer.source == "fallback"
            continue
        assert answer.source == "model"
        toys.assert_ranks(rows_of(answer), answer.scores, toys.expected(pipeline, user, history), 10, 1e-4)


def test_a_batch_is_answered_as_one_by_one(opened: tuple[Pipeline, Engine]) -> None:
    _, engine = opened
    requests = [request for _, _, request in requests_of()]
    for together, request in zip(engine.recommend(requests, 10), requests, strict=True):
        alone = engine.recommend([request], 10)[0]
        assert together.source == alone.source
        np.testing.assert_allclose(together.scores, alone.scores, rtol=1e-3, atol=1e-5)
        if len(set(np.round(alone.scores, 4))) == len(alone.scores):
            assert together.items == alone.items


def test_rescoring_agrees_with_the_scan(opened: tuple[Pipeline, Engine]) -> None:
    pipeline, engine = opened
    features = pipeline.main.model.catalogue.user_features
    assert features is not None
    codes = features.codes[[4, 9]].astype(np.int64)
    batch = Batch(np.array([5, 10]), [np.array([3], np.int32), np.array([8, 1, 2], np.int32)], codes)
    candidates = np.array([[5, 0, 39, -1], [2, 1, -1, -1]])
    scorer = engine._retrieve
    every = scorer.top(batch, len(toys.around().item_ids), [np.empty(0, np.int32)] * 2)
    scores = [values[np.argsort(rows)] for rows, values in every]
    wanted = np.take_along_axis(np.array(scores), np.maximum(candidates, 0), axis=1)
    again = scorer.rescore(batch, candidates)
    real = candidates >= 0
    np.testing.assert_allclose(again[real], wanted[real], rtol=1e-4, atol=1e-5)


AHEAD = RuntimePlan("fused", options={"ahead": True})
TRANSFORMERS = [
    *toys.SHAPES["sasrec"],
    {**toys.SHAPES["sasrec"][0], "table_dim": 6, "features": True},
    {**toys.SHAPES["sasrec"][0], "ranks": {"blocks.0.key": 3, "blocks.1.up": 4}},
]


@pytest.mark.parametrize("options", TRANSFORMERS, ids=str)
def test_what_is_made_of_items_ahead_changes_no_answer(options: dict[str, object], exported: Exported) -> None:
    pipeline = Pipeline(Stage(toys.trained("sasrec", options), table="float32"), runtime=AHEAD)
    engine = open_bundle(exported(pipeline))
    plain = open_bundle(exported(replace(pipeline, runtime=RuntimePlan("fused"))))
    for user, history, request in requests_of():
        answer = engine.recommend([request], 10)[0]
        assert answer.items == plain.recommend([request], 10)[0].items
        if answer.source == "model":
            toys.assert_ranks(rows_of(answer), answer.scores, toys.expected(pipeline, user, history), 10, 1e-4)


@pytest.mark.parametrize("graph", names("graphs"))
@pytest.mark.parametrize("table", ["float32", "int8", "int4"])
def test_ahead_is_when_the_bundle_is_opened(graph: str, table: str, exported: Exported, tmp_path: Path) -> None:
    """Of the graph that runs, no node is left that has constants alone, and none that would make keys of all items."""
    stage = Stage(toys.trained("sasrec", TRANSFORMERS[0]), graph, table=table)
    before, step = Pipeline(stage), make("runtime", {"name": "fused", "ahead": True})
    context = Context(toys.split(), before, toys.FIT)
    if not folded(graph):
        with pytest.raises(Unsupported, match=f"format '{graph}' ahead"):
            step.apply(before, context)
        return
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "open.onnx")
    options.log_severity_level = 3
    path = exported(step.apply(before, context)) / "retrieve" / "fused.onnx"
    onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    found = onnx.load(tmp_path / "open.onnx", load_external_data=False).graph
    constants = {part.name for part in found.initializer}
    assert all(set(filter(None, node.input)) - constants for node in found.node)
    assert any([*part.dims] == [toys.N_ITEMS + 1, 16] for part in found.initializer)


@pytest.mark.parametrize(
    ("kind", "name", "reason"),
    [
        ("mlp", "fused", "only a Transformer looks at items ahead, not mlp; leave out ahead"),
        ("als", "fused", "only a Transformer looks at items ahead, not als"),
        ("sasrec", "ort", "ort has no ahead; leave it out, or take name='fused'"),
    ],
)
def test_nothing_to_look_at_ahead_is_refused(kind: str, name: str, reason: str) -> None:
    pipeline = toys.original(kind)
    with pytest.raises(Unsupported, match=reason):
        make("runtime", {"name": name, "ahead": True}).apply(pipeline, Context(toys.split(), pipeline, toys.FIT))


def test_a_second_stage_looks_at_nothing_ahead(exported: Exported) -> None:
    rank = toys.original("sasrec").main
    engine = open_bundle(exported(Pipeline(toys.original("als").main, rank, 15, runtime=AHEAD)))
    plain = open_bundle(exported(Pipeline(toys.original("als").main, rank, 15)))
    for _, _, request in requests_of((0, 17)):
        assert engine.recommend([request])[0].items == plain.recommend([request])[0].items


def test_a_graph_goes_on_from_sessions_or_looks_ahead(exported: Exported) -> None:
    with pytest.raises(Unsupported, match="goes on from sessions makes nothing of items ahead"):
        exported(Pipeline(toys.original("sasrec").main, runtime=replace(AHEAD, sessions=True)))


def test_nothing_is_ahead_where_nothing_is_folded() -> None:
    pipeline = toys.original("sasrec")
    step = make("runtime", {"name": "fused", "ahead": True, "graph": "none"})
    with pytest.raises(Unsupported, match="nothing ahead with graph='none'"):
        step.apply(pipeline, Context(toys.split(), pipeline, toys.FIT))


@pytest.mark.parametrize("runtime", LISTS_ONLY)
def test_lists_of_a_fused_graph_are_re_scored_by_another(runtime: str, exported: Exported) -> None:
    ranker, encoder = Stage(toys.trained("neumf", toys.SHAPES["neumf"][0])), toys.original("sasrec").main
    with pytest.raises(Unsupported, match="needs an encoder"):
        exported(Pipeline(ranker, runtime=RuntimePlan(runtime)))
    for rank in (ranker, encoder):
        pipeline = Pipeline(toys.original("als").main, rank=rank, candidates=15, runtime=RuntimePlan(runtime))
        engine = open_bundle(exported(pipeline))
        plain = open_bundle(exported(Pipeline(pipeline.retrieve, rank=rank, candidates=15)))
        assert engine.manifest["pipeline"]["rank"]["runtime"] == "ort"
        for _, _, request in requests_of((0, 17)):
            assert engine.recommend([request])[0].items == plain.recommend([request])[0].items


def test_a_fused_graph_never_shows_what_is_no_number(exported: Exported) -> None:
    stage = toys.original("sasrec").main
    model = rebuilt(stage.model, stage.model.config)
    as_module(model).load_state_dict(as_module(stage.model).state_dict())
    with torch.no_grad():
        model.items.weight[[11, 30]] = torch.nan  # type: ignore[attr-defined]
    engine = open_bundle(exported(Pipeline(replace(stage, model=model), runtime=RuntimePlan("fused"))))
    answer = engine.recommend([Request(history=("item № 3", "item № 4"))], toys.N_ITEMS)[0]
    assert len(answer.items) == toys.N_ITEMS - 4
    assert np.isfinite(answer.scores).all()


def test_a_fused_graph_refuses_a_table_whose_rows_it_cannot_read(
    exported: Exported, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr("recfit.tables.int4.row_nodes")  # which a format need not have
    stage = Stage(toys.original("sasrec").main.model, table="int4")
    with pytest.raises(Unsupported, match="int4"):
        exported(Pipeline(stage, runtime=RuntimePlan("fused")))
    untied = Stage(toys.trained("custom", toys.SHAPES["custom"][0]), table="int4")
    exported(Pipeline(untied, runtime=RuntimePlan("fused")))


@pytest.mark.parametrize(
    ("table", "options"),
    [
        ("pq", {"parts": 4, "codes": 16}),
        ("pq", {"parts": 4, "codes": 32, "rotate": True}),
        ("binary", {}),
        ("int4", {}),
        ("int4", {"block": 16}),
    ],
)
@pytest.mark.parametrize("dim", [16, 12])
def test_a_fused_graph_reads_and_scans_codes(
    table: str, options: dict[str, object], dim: int, exported: Exported
) -> None:
    model = toys.original("sasrec").main.model
    model = model if dim == 16 else model.shrink("table_dim", torch.arange(dim))
    stage = Stage(model, table=table, table_options=options)
    requests = [request for _, history, request in requests_of((UNKNOWN,)) if history]
    fused, apart = (open_bundle(exported(Pipeline(stage, runtime=RuntimePlan(name)))) for name in ("fused", "ort"))
    for one, other in zip(fused.recommend(requests), apart.recommend(requests), strict=True):
        assert one.items == other.items
        np.testing.assert_allclose(one.scores, other.scores, rtol=1e-4, atol=1e-5)


def test_a_ranker_scans_chunk_by_chunk(exported: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = open_bundle(exported(toys.original("neumf")))
    requests = [Request(user) for user in toys.around().user_ids[:3]]
    whole = engine.recommend(requests)
    monkeypatch.setattr("recfit.runtimes._scorers.SCAN_PAIRS", 3 * 7)  # 40 items in chunks of 7, 7, ..., 5
    for chunked, one in zip(engine.recommend(requests), whole, strict=True):
        assert chunked.items == one.items
        np.testing.assert_allclose(chunked.scores, one.scores, rtol=1e-5)


def test_an_unknown_user_has_unknown_features(exported: Exported) -> None:
    pipeline = Pipeline(Stage(toys.trained("neumf", toys.SHAPES["neumf"][1])))
    engine = open_bundle(exported(pipeline))
    history = [2, 3]
    batch = [Request(history=tuple(toys.around().item_ids[row] for row in history))]
    answer = engine.recommend([*batch, Request(toys.around().user_ids[3])])[0]
    toys.assert_ranks(rows_of(answer), answer.scores, toys.expected(pipeline, UNKNOWN, history), 10, 1e-4)


def test_tokens_are_padded_on_the_left() -> None:
    histories = [np.array(part, np.int32) for part in ([4, 5, 6, 7], [0], [])]
    batch = Batch(np.zeros(3, np.int64), histories)
    assert batch.tokens(3).tolist() == [[6, 7, 8], [0, 0, 1], [0, 0, 0]]
    assert batch.tokens(9).tolist() == [[5, 6, 7, 8], [0, 0, 0, 1], [0, 0, 0, 0]]
    assert Batch(np.zeros(1, np.int64), histories[2:]).tokens(9).tolist() == [[0]]


def test_tokens_hold_the_largest_row() -> None:
    largest = np.iinfo(np.int32).max
    assert Batch(np.zeros(1, np.int64), [np.array([largest], np.int32)]).tokens(2).tolist() == [[largest + 1]]


def test_inputs_are_those_of_the_stage() -> None:
    batch = Batch(np.array([3]), [np.array([1], np.int32)], np.array([[2, 0]]))
    spec = StageSpec("ranker", "ort", ("user_features", "user"), 5)
    assert {name: array.tolist() for name, array in batch.inputs(spec).items()} == {
        "user": [3],
        "user_features": [[2, 0]],
    }


def test_a_graph_that_is_none_is_named(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"no graph")
    with pytest.raises(BundleError, match=r"ONNX Runtime [\d.]+ cannot load .*model\.onnx"):
        ort.session(tmp_path / "model.onnx")


@pytest.mark.parametrize("level", list(ort.LEVELS))
def test_every_graph_level_answers_alike(level: str, exported: Exported) -> None:
    pipeline = toys.original("sasrec")
    plan = RuntimePlan("ort", 1, {"graph": level})
    engine = open_bundle(exported(Pipeline(pipeline.retrieve, runtime=plan)))
    history = [3, 4, 6]
    answer = engine.recommend([Request(history=tuple(toys.around().item_ids[row] for row in history))])[0]
    toys.assert_ranks(rows_of(answer), answer.scores, toys.expected(pipeline, UNKNOWN, history), 10, 1e-4)


def test_threads_and_level_reach_the_session(exported: Exported) -> None:
    path = exported(toys.original("sasrec")) / "retrieve" / "model.onnx"
    options = ort.session(path, threads=2, graph="basic").get_session_options()
    assert options.intra_op_num_threads == 2
    assert options.graph_optimization_level == onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC


def sessions_of(engine: Engine) -> list[onnxruntime.InferenceSession]:
    """Every session that answers: that of the encoder, and that of the table's scan."""
    scorer = engine._retrieve
    graph = getattr(scorer, "_graph", scorer)._session
    return [graph, *([scorer._table.scores._session] if hasattr(scorer, "_table") else [])]


@pytest.mark.parametrize("name", ["ort", "fused"])
@pytest.mark.parametrize(
    ("settings", "arena", "spinning"),
    [
        ({}, True, "0"),
        ({"arena": False}, False, "0"),
        ({"spinning": True}, True, "1"),
        ({"arena": False, "spinning": True}, False, "1"),
    ],
)
def test_arena_and_spinning_reach_every_session(
    name: str, settings: dict[str, bool], arena: bool, spinning: str, exported: Exported
) -> None:
    original = toys.original("sasrec")
    step = make("runtime", {"name": name, "threads": 2, **settings})
    engine = open_bundle(exported(step.apply(original, Context(toys.split(), original, toys.FIT))))
    assert engine.manifest["pipeline"]["retrieve"]["options"] == settings
    for _, _, request in requests_of((UNKNOWN,)):
        answer, plain = engine.recommend([request])[0], open_bundle(exported(original)).recommend([request])[0]
        assert answer.items == plain.items
    sessions = sessions_of(engine)
    assert len(sessions) == (2 if name == "ort" else 1)
    for session in sessions:
        options = session.get_session_options()
        assert options.intra_op_num_threads == 2
        assert (options.enable_cpu_mem_arena, options.enable_mem_pattern) == (arena, arena)
        assert options.get_session_config_entry("session.intra_op.allow_spinning") == spinning


@pytest.mark.parametrize(("table", "options"), [("int8", {}), ("pq", {"parts": 4, "codes": 16}), ("identity", {})])
def test_a_scan_of_any_table_has_the_settings_of_its_stage(
    table: str, options: dict[str, object], exported: Exported
) -> None:
    stage = toys.original("ease").main if table == "identity" else toys.original("sasrec").main
    stage = replace(stage, table=table, table_options=options) if table != "identity" else stage
    engine = open_bundle(exported(Pipeline(stage, runtime=RuntimePlan("ort", options={"arena": False}))))
    assert engine.recommend([Request(history=toys.around().item_ids[3:5])])[0].source == "model"
    scans = [part for part in vars(engine._retrieve._table).values() if isinstance(part, Scan)]  # type: ignore[attr-defined]
    assert [scan._session.get_session_options().enable_cpu_mem_arena for scan in scans] == [False] * len(scans)
    assert len(scans) == (table != "identity")


WINDOWED = {**toys.SHAPES["sasrec"][0], "window": 3}


@pytest.mark.parametrize(
    ("kind", "options"),
    [("sasrec", toys.SHAPES["sasrec"][0]), ("sasrec", WINDOWED), ("neumf", toys.SHAPES["neumf"][1])],
    ids=str,
)
def test_no_request_waits_for_a_compiler(
    kind: str, options: dict[str, object], exported: Exported, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever their number and length: all code is there when the bundle is open. (Traced here, and run as it is.)"""
    made: list[object] = []

    def backend(module: torch.fx.GraphModule, _: object) -> Callable[..., object]:
        made.append(module)
        return module.forward

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    torch.compiler.reset()
    pipeline = Pipeline(Stage(toys.trained(kind, options)), runtime=RuntimePlan("torch", options={"compile": True}))
    engine = open_bundle(exported(pipeline))
    compiled = len(made)
    assert compiled >= 4
    requests = [request for _, _, request in requests_of()]
    for user, history, request in requests_of((0,)):
        answer = engine.recommend([request])[0]
        if answer.source == "model":
            toys.assert_ranks(rows_of(answer), answer.scores, toys.expected(pipeline, user, history), 10, 1e-4)
        engine.score(request, toys.around().item_ids[:1])
    for count in (2, 3, len(requests)):
        engine.recommend(requests[-count:])
    assert len(made) == compiled


@pytest.mark.filterwarnings("ignore:.*script_method")  # of PyTorch's own, when its compiler is loaded
def test_a_compiled_bundle_answers_as_the_model_does(exported: Exported) -> None:
    options = toys.SHAPES["two_tower"][2]
    pipeline = Pipeline(
        Stage(toys.trained("two_tower", options)), runtime=RuntimePlan("torch", options={"compile": True})
    )
    torch.compiler.reset()
    answer = open_bundle(exported(pipeline)).recommend([Request(toys.around().user_ids[3])])[0]
    toys.assert_ranks(rows_of(answer), answer.scores, toys.expected(pipeline, 3, []), 10, 1e-4)


def test_a_bundle_that_cannot_be_compiled_says_why(exported: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = exported(Pipeline(toys.original("als").main, runtime=RuntimePlan("torch", options={"compile": True})))
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(BundleError, match=r"needs a C\+\+ compiler and there is no 'no-such-compiler'"):
        open_bundle(bundle)
    monkeypatch.setenv("CXX", sys.executable)

    def backend(module: torch.fx.GraphModule, _: object) -> Callable[..., object]:
        raise RuntimeError("Python.h: no such file")

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    torch.compiler.reset()
    with pytest.raises(BundleError, match=r"torch\.compile cannot compile .*model: (.|\n)*Python\.h: no such file"):
        open_bundle(bundle)


def test_a_numpy_bundle_needs_no_onnx_runtime(exported: Exported) -> None:
    """Most of what a small model's process holds is ONNX Runtime; this one must never load it."""
    bundle = exported(Pipeline(toys.original("sasrec").retrieve, runtime=RuntimePlan("numpy")))
    assert not list(bundle.rglob("model.onnx"))
    script = (
        "import sys, recfit; engine = recfit.open_bundle(sys.argv[1]);"
        "answer = engine.recommend([recfit.Request(history=engine.bundle.item_ids[:3])])[0];"
        "assert answer.source == 'model'; print('onnxruntime' in sys.modules);"
        "import threadpoolctl; print(*{pool['num_threads'] for pool in threadpoolctl.threadpool_info()})"
    )
    command, threads = [sys.executable, "-c", script, str(bundle)], {**os.environ, "OPENBLAS_NUM_THREADS": "2"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=threads)
    assert done.stdout.split() == ["False", "1"], "as many threads as were measured, wherever it is served"


def test_a_graph_with_an_operator_that_numpy_lacks_is_refused(
    exported: Exported, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = {name: made for name, made in numpy_runtime.OPERATORS.items() if name != "SimplifiedLayerNormalization"}
    monkeypatch.setattr(numpy_runtime, "OPERATORS", known)
    with pytest.raises(Unsupported, match="NumPy has no SimplifiedLayerNormalization; keep runtime name='ort'"):
        exported(Pipeline(Stage(toys.untrained("sasrec", {"ffn": 17})), runtime=RuntimePlan("numpy")))


def test_a_plan_that_is_gone_is_named(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"holds no plan for NumPy: .*export it again"):
        numpy_runtime.Graph(tmp_path)


@pytest.mark.parametrize(
    ("starts", "ends", "axes", "steps"),
    [([-3], [2**62], [1], [1]), ([1, 0], [3, 2], [1, 0], [1, 1]), ([-1], [-(2**62)], [1], [-1]), ([4], [0], [1], [-2])],
)
def test_slices_are_those_of_onnx(starts: list[int], ends: list[int], axes: list[int], steps: list[int]) -> None:
    node = onnx.helper.make_node("Slice", ["x", "starts", "ends", "axes", "steps"], ["y"])
    x = np.arange(15, dtype=np.float32).reshape(3, 5)
    given = [x, *(np.array(part, np.int64) for part in (starts, ends, axes, steps))]
    wanted = ReferenceEvaluator(node).run(None, dict(zip(node.input, given, strict=True)))[0]
    np.testing.assert_array_equal(numpy_runtime.OPERATORS["Slice"]()(*given), wanted)


def test_the_error_function_is_near() -> None:
    x = np.linspace(-6, 6, 1001, dtype=np.float32)
    wanted = np.array([math.erf(value) for value in x.tolist()])
    np.testing.assert_allclose(numpy_runtime.OPERATORS["Erf"]()(x), wanted, atol=5e-7)


def test_families_are_all_tried() -> None:
    assert {kind for kind, _ in toys.SHAPED} == set(names("models"))
    kinds = {Stage(toys.untrained(kind, options)).kind for kind, options in toys.SHAPED}
    assert kinds == {"encoder", "ranker"}
    assert any(models.is_identity(toys.untrained(kind, options)) for kind, options in toys.SHAPED)

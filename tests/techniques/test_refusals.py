"""A technique that does not apply, or would change nothing, says so in a sentence; a wrong setting says what is allowed."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

import toys
from recfit import techniques
from recfit.models import mlp
from recfit.pipeline import Pipeline, RuntimePlan, Stage
from recfit.techniques import Context, applied, available, describe, make, quantize
from recfit.types import ConfigError, Unsupported

SASREC, NEUMF, EASE, ALS, TOWERS = (toys.original(kind) for kind in ("sasrec", "neumf", "ease", "als", "two_tower"))
INT8 = Pipeline(replace(SASREC.main, graph="int8", table="int8"))
EAGER = replace(SASREC, runtime=RuntimePlan("torch"))
SMALL = replace(SASREC, runtime=RuntimePlan("numpy"))
INT4 = Pipeline(replace(SASREC.main, table="int4"))
TWO = Pipeline(ALS.main, SASREC.main, candidates=20)


def context_of(pipeline: Pipeline, **changes: Any) -> Context:
    return Context(toys.split(), pipeline, toys.FIT, **changes)


REFUSED: list[tuple[Pipeline, str, Mapping[str, Any], str]] = [
    (SASREC, "prune", {"axis": "ffn", "keep": 1.0}, "keep=1.0 of 24 ffn removes nothing; pass keep < 0.98"),
    (SASREC, "prune", {"axis": "fnn"}, "sasrec has no axis 'fnn'; it has: layers, heads"),
    (
        SASREC,
        "prune",
        {"axis": "layers", "scope": "global"},
        "layers of sasrec are compared as a whole anyway; leave out",
    ),
    (
        NEUMF,
        "prune",
        {"axis": "hidden", "scope": "global"},
        "hidden of neumf are compared as a whole anyway; leave out",
    ),
    (EASE, "prune", {"axis": "ffn"}, "ease has no axis 'ffn'; it has: none"),
    (SASREC, "reduce", {"size": 16}, "size=16 is not below the 16 of embedding_dim; pass size <= 15"),
    (SASREC, "reduce", {"axis": "features", "size": 1}, "sasrec has no axis 'features'"),
    (NEUMF, "reduce", {"axis": "history_length", "size": 1}, "neumf has no axis 'history_length'"),
    (
        ALS,
        "reduce",
        {"axis": "table_dim", "size": 4},
        "als has no table narrower than itself; pass axis='embedding_dim'",
    ),
    (TOWERS, "reduce", {"axis": "table_dim", "size": 4}, "two_tower has no table narrower than itself; pass axis="),
    (SASREC, "distill", {"kind": "ease"}, "ease is solved in closed form and cannot learn a teacher's scores"),
    (EAGER, "quantize", {}, "torch runs no graph of format int8 and no stage in fewer bits; change the runtime first"),
    (EAGER, "quantize", {"graph": "float32"}, "torch runs no graph of format float32 and no stage in fewer bits"),
    (SMALL, "quantize", {"graph": "codebook"}, "numpy runs no graph of format codebook and no stage in fewer bits"),
    (
        NEUMF,
        "quantize",
        {"graph": "float32"},
        "neumf has no item table of its own to store in fewer bits; name a format",
    ),
    (EASE, "quantize", {"graph": "float32"}, "ease has no item table of its own"),
    (SASREC, "quantize", {"restore": 99}, "restore=99 leaves none of 12 layers in int8; pass less, or more tolerance"),
    (INT8, "quantize", {}, r"quantize\(\) changed nothing here; leave it out of the recipe"),
    (INT8, "runtime", {"name": "torch"}, "PyTorch runs the float32 model as it is"),
    (INT8, "runtime", {"name": "numpy"}, "numpy runs no int8 graph; leave out quantize's, or keep name='ort'"),
    (
        SASREC,
        "runtime",
        {"name": "torch", "graph": "basic"},
        "torch has no graph; leave it out, or take name='fused' or",
    ),
    (
        SASREC,
        "runtime",
        {"name": "numpy", "graph": "none"},
        "numpy has no graph; leave it out, or take name='fused' or",
    ),
    (SASREC, "runtime", {"name": "openvino", "graph": "basic"}, "openvino has no graph; leave it out"),
    *(
        (
            SASREC,
            "runtime",
            {"name": name, "threads": 2, setting: value},
            f"{name} has no {setting}; .*'fused' or 'ort'",
        )
        for name in ("numpy", "openvino", "torch")
        for setting, value in (("arena", False), ("spinning", True))
    ),
    (SASREC, "runtime", {"compile": True}, "ort has no compile; leave it out, or take name='torch'"),
    (SASREC, "runtime", {"precision": "bf16"}, "ort has no precision; leave it out, or take name='openvino'"),
    (SASREC, "runtime", {"name": "fused", "spinning": True}, "one thread waits for no other; leave out spinning, or"),
    (SASREC, "runtime", {}, r"runtime\(\) changed nothing here"),
    (TWO, "two_stage", {"retriever": "ease"}, "this pipeline already has two stages"),
    (SASREC, "two_stage", {"retriever": "als", "candidates": 40}, "candidates=40 is the whole catalogue of 40 items"),
    (NEUMF, "two_stage", {"retriever": "itself", "candidates": 5}, "neumf has no item vectors to search; name another"),
    (EASE, "two_stage", {"retriever": "itself", "candidates": 5, "table": "ivf"}, "ease has no item vectors to search"),
    (
        SASREC,
        "two_stage",
        {"retriever": "itself", "candidates": 5},
        "table 'float32' scores every item exactly already",
    ),
    (
        INT4,
        "two_stage",
        {"retriever": "itself", "candidates": 5, "table": "ivf"},
        "an index keeps rows as int8 or float32",
    ),
    (
        SASREC,
        "two_stage",
        {"retriever": "itself", "candidates": 5, "table": "ivf", "distilled": True},
        "the retriever 'itself' is not trained; leave out options and distilled",
    ),
    (
        SASREC,
        "two_stage",
        {"retriever": "itemknn", "candidates": 5, "table": "int8"},
        "itemknn has no item table to store",
    ),
    (SASREC, "two_stage", {"retriever": "als", "candidates": 5, "distilled": True}, "als is solved in closed form"),
    (NEUMF, "cache", {"key": "state"}, "neumf reads no history, so every state would get one list; pass key='user'"),
    (SASREC, "cache", {"key": "state", "depth": 12}, "depth=12 among 40 items are too many; pass depth <= 11"),
    (EASE, "simplify", {"kind": "ease", "options": {"l2": 5.0}}, "changed nothing here"),
]


@pytest.mark.parametrize(("pipeline", "name", "settings", "sentence"), REFUSED, ids=lambda part: str(part)[:40])
def test_a_step_without_effect_is_refused(
    pipeline: Pipeline, name: str, settings: Mapping[str, Any], sentence: str
) -> None:
    with pytest.raises(Unsupported, match=sentence):
        applied(make(name, settings), pipeline, context_of(pipeline))


def test_a_second_cache_is_refused() -> None:
    once = applied(make("cache", {}), SASREC, context_of(SASREC))
    with pytest.raises(Unsupported, match="this pipeline already has a cache"):
        applied(make("cache", {"share": 0.1}), once, context_of(SASREC))


WRONG = [
    ("prune", {}, "technique.prune needs the setting 'axis'; add it"),
    ("prune", {"axis": "ffn", "kep": 0.5}, r"no setting 'kep' \(did you mean 'keep'\?\); allowed: axis, keep"),
    ("prune", {"axis": 3}, "technique.prune.axis = 3; it must be a text in quotes"),
    ("prune", {"axis": "ffn", "keep": 0.0}, "technique.prune.keep = 0.0 is outside"),
    ("prune", {"axis": "ffn", "keep": -0.5}, "keep = -0.5 is outside"),
    ("prune", {"axis": "ffn", "epochs": -1}, "epochs = -1 is outside"),
    ("prune", {"axis": "ffn", "scope": "model"}, "technique.prune.scope = 'model'; allowed: layer, global"),
    ("prune", {"axis": "ffn", "rounds": 0}, "technique.prune.rounds = 0 is outside 1 to"),
    ("reduce", {"size": 0}, "technique.reduce.size = 0 is outside 1 to"),
    ("cache", {"share": 0.0}, "share = 0.0 is outside"),
    ("cache", {"share": 1.5}, "share = 1.5 is outside"),
    ("cache", {"length": 0}, "length = 0 is outside"),
    ("cache", {"key": "states"}, r"technique.cache.key = 'states' \(did you mean 'state'\?\); allowed: user, state"),
    ("cache", {"key": "state", "depth": 0}, "technique.cache.depth = 0 is outside 1 to"),
    ("cache", {"ttl_seconds": 0}, "ttl_seconds = 0.0 is outside"),
    ("two_stage", {"retriever": "als", "candidates": 0}, "candidates = 0 is outside"),
    (
        "two_stage",
        {"retriever": "als", "table": "hnws"},
        r"two_stage.table = 'hnws' \(did you mean 'hnsw'\?\); allowed",
    ),
    (
        "two_stage",
        {"retriever": "als", "table": "ivf", "table_options": {"probes": 3}},
        "table_options has no setting 'pro",
    ),
    (
        "two_stage",
        {"retriever": "als", "table": "ivf", "table_options": {"nprobe": 0}},
        "ivf.nprobe = 0 is outside 1 to",
    ),
    ("runtime", {"threads": -1}, "threads = -1 is outside 0 to"),
    ("runtime", {"name": "openvno"}, "technique.runtime.name = 'openvno'.*; allowed: .*numpy, .*ort"),
    ("runtime", {"graph": "most"}, "allowed: none, basic, extended, all"),
    ("runtime", {"precision": "int8"}, "technique.runtime.precision = 'int8'"),
    ("runtime", {"arena": 1}, "technique.runtime.arena = 1; it must be true or false"),
    ("runtime", {"spinning": "yes"}, "technique.runtime.spinning = 'yes'; it must be true or false"),
    ("quantize", {"graph": True}, "technique.quantize.graph = True; it must be a text in quotes"),
    (
        "quantize",
        {"graph": "int9"},
        r"technique.quantize.graph = 'int9' \(did you mean 'int8'\?\); allowed: codebook, float32",
    ),
    ("quantize", {"graph_options": {"bits": 3}}, "graph.int8 has no setting 'bits'; allowed: per, weights, skip"),
    (
        "quantize",
        {"graph_options": {"weights": "asymetric"}},
        r"graph.int8.weights = 'asymetric' \(did you mean 'asymmetric'\?\); allowed: symmetric, asymmetric",
    ),
    ("qat", {"graph_options": {"per": "row"}}, "graph.int8.per = 'row'; allowed: channel, tensor"),
    ("qat", {"graph_options": {"skip": ["up"]}}, "graph_options.skip: all linear layers learn; leave it out"),
    ("quantize", {"restore": "all"}, "restore = 'all'; allowed: \"auto\", or a number from 0"),
    ("quantize", {"restore": -1}, 'restore = -1; allowed: "auto", or a number from 0'),
    ("quantize", {"restore": 1.5}, "restore = 1.5; it must be a whole number"),
    ("quantize", {"tolerance": 2.0}, "tolerance = 2.0 is outside 0 to 1"),
    (
        "quantize",
        {"table": "pq", "table_options": {"part": 4}},
        r"table_options has no setting 'part' \(did you mean 'parts'",
    ),
    ("quantize", {"table": "pq", "table_options": {"codes": 300}}, "codes = 300; give 1 part or more, 2 to 256 codes"),
    ("quantize", {"table_options": {"block": 16}}, "table_options has no setting 'block'; allowed: dim, asymmetric"),
    ("quantize", {"table_options": {"asymmetric": 1}}, "table_options.asymmetric = 1; it must be true or false"),
    ("low_rank", {"by": "luck"}, "technique.low_rank.by = 'luck'; allowed: budget, energy"),
    ("low_rank", {"keep": 0}, "technique.low_rank.keep = 0.0 is outside"),
    ("matryoshka", {"epochs": 0}, "technique.matryoshka.epochs = 0 is outside 1 to"),
    ("matryoshka", {"widths": 8}, "technique.matryoshka.widths = 8; it must be a list"),
    ("prune_items", {"keep": 1.5}, "technique.prune_items.keep = 1.5 is outside"),
    ("prune_items", {"min_events": -1}, "min_events = -1 is outside 0 to"),
    ("prunne", {}, "no technique named 'prunne'; did you mean 'prune'?"),
]


@pytest.mark.parametrize(("name", "settings", "sentence"), WRONG, ids=str)
def test_a_wrong_setting_is_answered_with_what_is_allowed(name: str, settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        make(name, settings)


def test_a_wrong_setting_of_the_model_is_noticed_too() -> None:
    for name in ("simplify", "distill"):
        with pytest.raises(ConfigError, match=r"model\.sasrec has no setting 'depth'"):
            make(name, {"kind": "sasrec", "options": {"depth": 3}}).apply(SASREC, context_of(SASREC))
    with pytest.raises(ConfigError, match="no model named 'nothing'"):
        make("two_stage", {"retriever": "nothing", "candidates": 5}).apply(SASREC, context_of(SASREC))


def test_wanted_techniques_come_in_recipe_order() -> None:
    context = context_of(SASREC)
    found = [step for variants in available(["runtime", "quantize", "prune"]) for step in variants(context)]
    assert [step.order for step in found] == sorted(step.order for step in found)
    assert {step.family for step in found} == {"prune", "quantize", "runtime"}
    with pytest.raises(ConfigError, match="no technique named 'melt'"):
        available(["melt"])


def test_a_technique_that_does_not_say_what_it_works_on_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    class Technique:
        family, order, trains = "prune", 25, False

    monkeypatch.setattr(techniques, "find", lambda room, name: SimpleNamespace(Technique=Technique))
    with pytest.raises(
        ConfigError, match=r"technique 'melt' does not declare works_on; docs/extend\.md has an example"
    ):
        available(["melt"])


def test_a_description_shows_what_is_not_default() -> None:
    assert describe(make("quantize", {})) == "quantize()"
    assert describe(make("prune", {"axis": "ffn", "keep": 0.25})) == "prune(ffn, keep=0.25)"
    two_stage = make("two_stage", {"retriever": "als", "options": {"steps": 3}, "candidates": 100})
    assert describe(two_stage) == "two_stage(als, steps=3)"
    student = make("distill", {"kind": "sasrec", "options": {"layers": 1, "embedding_dim": 64, "ffn": 9}, "alpha": 0.5})
    assert describe(student) == "distill(sasrec, 1 x 64, alpha=0.5)"


# What quantize proposes of each original, a graph of any size taken for a large one or not.
SMALL_GRAPH = ["quantize()", "quantize(graph=float32)", "quantize(table=int4)"]
LARGE_GRAPH = [
    *SMALL_GRAPH[:2],
    "quantize(graph=int4)",
    "quantize(restore=auto)",
    "quantize(graph=int4, restore=auto)",
    "quantize(table=int4)",
    "quantize(graph=int8_static)",
]
NO_TABLE = ["quantize()", "quantize(graph=codebook)"]
PROPOSED: list[tuple[Pipeline, bool, list[str]]] = [
    (SASREC, False, SMALL_GRAPH),
    (SASREC, True, LARGE_GRAPH),
    (ALS, True, SMALL_GRAPH),
    (NEUMF, False, NO_TABLE),
    (NEUMF, True, [*NO_TABLE, *LARGE_GRAPH[2:5], LARGE_GRAPH[6]]),
    (EASE, True, NO_TABLE),
]


@pytest.mark.parametrize(("pipeline", "large", "names"), PROPOSED, ids=str)
def test_nothing_is_proposed_that_does_not_fit(
    pipeline: Pipeline, large: bool, names: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On an original without an item table, quantize proposes the graph alone; few bits and restored layers where there are
    linear layers of some size."""
    if large:
        monkeypatch.setattr(quantize, "LARGE", 1)
    (variants,) = available(["quantize"])
    steps = variants(context_of(pipeline))
    assert [describe(step) for step in steps] == names
    for step in steps:
        applied(step, pipeline, context_of(pipeline, structure_only=True))


def test_product_quantization_is_proposed_for_large_catalogues_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantize, "CODED_ITEMS", 40)
    monkeypatch.setattr(quantize, "LARGE", 1)
    (variants,) = available(["quantize"])
    steps = variants(context_of(SASREC))
    assert [step.table_options for step in steps if step.table == "pq"] == [{"parts": 4}]  # type: ignore[attr-defined]
    assert len(steps) == 8
    assert not [step for step in variants(context_of(EASE)) if step.table == "pq"]  # type: ignore[attr-defined]


def test_layers_are_restored_until_the_budgets_limit_on_quality_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantize, "LARGE", 1)
    (variants,) = available(["quantize"])
    found = [step for step in variants(context_of(SASREC, tolerance=0.05)) if step.restore == "auto"]  # type: ignore[attr-defined]
    assert [step.tolerance for step in found] == [0.05, 0.05]  # type: ignore[attr-defined]
    assert {step.graph for step in found} == {"int8", "int4"}  # type: ignore[attr-defined]


def test_table_options_reach_the_stage() -> None:
    step = make("quantize", {"graph": "float32", "table": "int4", "table_options": {"block": 16}})
    assert describe(step) == "quantize(graph=float32, table=int4, block=16)"
    out = applied(step, SASREC, context_of(SASREC)).main
    assert (out.table, out.table_options) == ("int4", {"block": 16})
    again = applied(make("quantize", {"graph": "float32"}), Pipeline(out), context_of(SASREC)).main
    assert (again.table, again.table_options) == ("int8", {})


def test_a_model_can_stand_in_for_another_family() -> None:
    student = make("simplify", {"kind": "mlp", "options": {"embedding_dim": 4, "hidden": 4}})
    out = student.apply(TWO, context_of(TWO, structure_only=True))
    assert isinstance(out.main.model, mlp.Mlp)
    assert out.retrieve == TWO.retrieve
    assert out.main == Stage(out.main.model)


@pytest.mark.parametrize("installed", [True, False])
def test_openvino_is_proposed_where_it_is_installed(installed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("recfit.techniques.runtime.find_spec", lambda name: object() if installed else None)
    [variants] = available(["runtime"])
    assert ("openvino" in [step.name for step in variants(context_of(SASREC))]) == installed
    assert "openvino" not in [step.name for step in variants(context_of(NEUMF))]


@pytest.mark.parametrize(
    ("kind", "steps", "sentence"),
    [
        (
            "sasrec",
            [("two_stage", {"retriever": "itself", "table": "hnsw", "candidates": 20})],
            "ONNX cannot search a table of format 'hnsw'",
        ),
        ("neumf", [], "a fused graph needs an encoder, this stage is a ranker"),
    ],
)
def test_what_is_not_one_graph_is_refused_before_it_is_built(kind: str, steps: Any, sentence: str) -> None:
    pipeline = toys.original(kind)
    context = Context(toys.split(), pipeline, toys.FIT, structure_only=True)
    for name, settings in steps:
        pipeline = applied(make(name, settings), pipeline, context)
    with pytest.raises(Unsupported, match=sentence):
        applied(make("runtime", {"name": "fused"}), pipeline, context)


def test_item_vectors_are_cut_to_what_keeps_their_quality_and_narrow_ones_not_at_all() -> None:
    (variants,) = available(["reduce"])

    def sizes(**options: int) -> list[int]:
        pipeline = Pipeline(Stage(toys.untrained("sasrec", {"layers": 1, "heads": 2, "ffn": 8, **options})))
        return [step.size for step in variants(context_of(pipeline)) if step.axis == "table_dim"]  # type: ignore[attr-defined]

    assert sizes(embedding_dim=256) == [64]
    assert sizes(embedding_dim=64) == [32]
    assert sizes(embedding_dim=32) == []


@pytest.mark.parametrize("cores", [1, 2])
def test_threads_spin_only_where_there_are_two(cores: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: cores)
    [variants] = available(["runtime"])
    found = [describe(step) for step in variants(context_of(SASREC))]
    assert ("runtime(threads=2, spinning=True)" in found) == (cores == 2)
    assert not [name for name in found if "compile" in name]


@pytest.mark.parametrize("fast", [False, True])
def test_products_of_16_bits_are_proposed_where_the_processor_has_them(
    fast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("recfit.techniques.runtime.halves_fast", lambda: fast)
    [variants] = available(["runtime"])
    found = [describe(step) for step in variants(context_of(SASREC))]
    assert ("runtime(name=openvino, precision=bf16)" in found) == fast


@pytest.mark.parametrize(("pipeline", "name"), [(SASREC, "fused"), (NEUMF, "ort")])
def test_memory_is_given_back_where_there_is_much(
    pipeline: Pipeline, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A study measures memory after requests one at a time, which leave little of a small catalogue."""
    [variants] = available(["runtime"])
    for many, proposed in ((40, []), (39, [name])):
        monkeypatch.setattr("recfit.techniques.runtime.MANY", many)
        found = variants(context_of(pipeline))
        assert [step.name for step in found if not step.arena] == proposed  # type: ignore[attr-defined]


def test_nothing_is_compiled_without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    step = make("runtime", {"name": "torch", "compile": True})
    monkeypatch.setenv("CXX", sys.executable)
    assert applied(step, SASREC, context_of(SASREC)).runtime == RuntimePlan("torch", options={"compile": True})
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(
        Unsupported, match=r"needs a C\+\+ compiler and there is no 'no-such-compiler'; install it, name"
    ):
        applied(step, SASREC, context_of(SASREC))


def test_a_bundle_holds_the_settings_that_are_not_the_default() -> None:
    """So that what was exported before there was a setting is what is exported now."""
    for settings, options in (
        ({"name": "fused"}, {}),
        ({"name": "fused", "graph": "basic", "arena": False}, {"graph": "basic", "arena": False}),
        ({"threads": 2, "spinning": True, "arena": True}, {"spinning": True}),
    ):
        assert applied(make("runtime", settings), SASREC, context_of(SASREC)).runtime.options == options

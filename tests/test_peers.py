"""The benchmark of peers: what a peer makes is served by recfit's engine, and what fails is a row of the table."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from benchmarks.peers import given as giving
from benchmarks.peers import run
from benchmarks.peers.given import Given, into_bundle, made_by

import toys
from recfit import pipeline as pipelines
from recfit.engine import open_bundle
from recfit.measure import Measurement
from recfit.search.build import Workshop
from recfit.types import Request, Unsupported

Exported = Callable[[pipelines.Pipeline], Path]
PLUGINS = {path.stem for path in (run.HERE / "plugins" / "runtimes").glob("*.py")}


@pytest.fixture
def given(tmp_path: Path) -> Given:
    """The toy original, as a peer gets it."""
    pipelines.save(toys.original("sasrec"), tmp_path / "original")
    workshop = Workshop(toys.split(), tmp_path / "original", tmp_path / "models", toys.FIT, 1, progress=False)
    (tmp_path / "made").mkdir()
    return Given(workshop, tmp_path / "made")


def served(given: Given, base: Path, runtime: str = "ort") -> Path:
    return into_bundle(base, given.output, "toy peer", runtime)


@pytest.mark.parametrize("name", run.peers())
def test_a_peer_says_what_it_is_without_being_installed(name: str) -> None:
    module = importlib.import_module(f"benchmarks.peers.{name}")
    assert module.SHOWN
    assert module.NEEDS
    assert module.CANNOT
    assert module.RUNTIME in {"ort", *PLUGINS}
    assert run.user_lines(name) > 2


def test_the_page_says_what_each_peer_cannot() -> None:
    page = (run.HERE.parents[1] / "docs" / "peers.md").read_text()
    modules = [importlib.import_module(f"benchmarks.peers.{name}") for name in run.peers()]
    assert not [module.SHOWN for module in modules if f"| {module.SHOWN} | {module.CANNOT} |" not in page]


def test_a_chain_counts_the_lines_of_all_its_links() -> None:
    assert run.user_lines("torch_pruning_int8") > run.user_lines("torch_pruning") + 5


def test_the_graph_that_peers_are_given_answers_like_the_original(given: Given, exported: Exported) -> None:
    given.graph.rename(given.output / "model.onnx")
    engine = open_bundle(served(given, exported(toys.original("sasrec"))))
    for user in (0, 20, 41):
        history = toys.around().histories[user].tolist()
        answer = engine.recommend([Request(toys.around().user_ids[user])])[0]
        rows = [toys.around().item_ids.index(item) for item in answer.items]
        wanted = toys.expected(toys.original("sasrec"), user, history)
        toys.assert_ranks(rows, answer.scores, wanted, 10, 1e-5)


@pytest.mark.parametrize("name", ["ort_dynamic", "ort_static"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_what_onnx_runtime_makes_is_int8_and_served(given: Given, exported: Exported, name: str) -> None:
    made_by(name, given.workshop, given.output)
    engine = open_bundle(served(given, exported(toys.original("sasrec"))))
    history = toys.around().histories[20].tolist()
    answer = engine.recommend([Request(toys.around().user_ids[20])])[0]
    rows = [toys.around().item_ids.index(item) for item in answer.items]
    toys.assert_ranks(rows, answer.scores, toys.expected(toys.original("sasrec"), 20, history), 10, 0.2)
    operators = {node.op_type for node in onnx.load(given.output / "model.onnx").graph.node}
    assert operators & {"MatMulInteger", "QuantizeLinear"}


def test_a_request_judges_scores_by_what_came_next(given: Given) -> None:
    request = given.judged[0]
    scores = np.zeros((1, toys.N_ITEMS), np.float32)
    scores[0, request.wanted] = 1
    assert request.ndcg(scores) == 1
    scores[0, request.wanted] = -1
    assert request.ndcg(scores) == 0
    assert not set(request.wanted.tolist()) & set(request.seen.tolist())


def bench_of(given: Given) -> Any:
    return SimpleNamespace(workshop=given.workshop, settings=SimpleNamespace(search=SimpleNamespace(memory_gb=4.0)))


def test_a_peer_that_is_not_installed_is_a_row(given: Given, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(
        importlib.import_module("benchmarks.peers.ort_dynamic"), "NEEDS", ("onnxruntime", "no_such_peer")
    )
    row = run.peer(bench_of(given), "ort_dynamic", tmp_path, tmp_path / "rows")
    assert row.error == "not installed: no_such_peer"
    assert row.bundle is None


def test_a_peer_that_fails_is_a_row(given: Given, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(*_: object, **__: object) -> None:
        raise Unsupported("no kernel\nfor this")

    monkeypatch.setattr(run, "isolated", fail)
    (tmp_path / "rows").mkdir()
    row = run.peer(bench_of(given), "ort_dynamic", tmp_path, tmp_path / "rows")
    assert row.error == "no kernel for this"
    assert any("no kernel" in line for line in run.table([run.described(row, None, measurement())]))


def measurement(quality: float = 0.5, **costs: float) -> Measurement:
    metrics: Mapping[str, float] = {run.METRIC: quality, **dict.fromkeys(run.COSTS, 1.0), **costs}
    users = np.linspace(-0.01, 0.01, 100) + quality
    intervals = dict.fromkeys(("p50_ms", "p99_ms"), (0.9, 1.1))
    return Measurement(metrics, intervals, {run.METRIC: users}, {})


def test_who_is_ahead_where() -> None:
    base = measurement()
    assert run.ahead(base, base) == []
    assert run.ahead(base, measurement(p99_ms=0.5)) == ["p99"]
    assert run.ahead(base, measurement(quality=0.6)) == ["quality"]
    assert run.ahead(base, measurement(quality=0.4, bundle_mb=2.0)) == []


def test_the_frontier_names_the_row_that_leaves_a_peer_least() -> None:
    rows = [run.Row("recfit", "slow"), run.Row("recfit", "small"), run.Row("peer", "other")]
    found = [measurement(p99_ms=9, bundle_mb=9), measurement(p99_ms=2), measurement()]
    [line] = run.frontier(list(zip(rows, found, strict=True)))
    assert line == "- other is ahead in p99 of small (whose ndcg@10 is +0.0000 to +0.0000 higher)"
    found[1] = replace(found[1], metrics={**found[1].metrics, "p99_ms": 0.5})
    assert "behind or level on every axis with small" in next(run.frontier(list(zip(rows, found, strict=True))))


def test_the_recipes_of_the_table_are_recipes() -> None:
    entries = run.recipes.entries(run.HERE / "recfit.toml")
    assert len(entries) > 2
    assert giving.INPUT == "history"

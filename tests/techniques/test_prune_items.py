"""Items that leave: what stays answers as before, what is gone never appears, and measuring still speaks of all the data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import toys
from recfit import measure, models
from recfit import pipeline as pipelines
from recfit.data.requests import write_queries
from recfit.engine import Engine, open_bundle
from recfit.measure.reading import queries_of
from recfit.models._items import with_items  # noqa: PLC2701
from recfit.pipeline import CachePlan, Pipeline, RuntimePlan, Stage
from recfit.techniques import Context, applied, make
from recfit.types import ConfigError, Ragged, Request, Unsupported

Exported = Callable[[Pipeline], Path]
SPLIT, AROUND = toys.split(), toys.around()
COUNTS = np.bincount(SPLIT.train.item, minlength=toys.N_ITEMS)
TWO = Pipeline(toys.original("als").main, toys.original("neumf").main, candidates=12)


def context_of(pipeline: Pipeline) -> Context:
    return Context(SPLIT, pipeline, toys.FIT)


def pruned(pipeline: Pipeline, **settings: Any) -> Pipeline:
    return applied(make("prune_items", settings), pipeline, context_of(pipeline))


def rows_of(pipeline: Pipeline) -> list[int]:
    rows = pipeline.main.model.catalogue.item_rows
    assert rows is not None
    return rows.tolist()  # type: ignore[no-any-return]


@pytest.mark.parametrize(("kind", "options"), toys.SHAPED, ids=str)
def test_every_family_answers_about_what_is_left_as_before(
    kind: str, options: dict[str, object], exported: Exported
) -> None:
    pipeline = Pipeline(Stage(toys.trained(kind, options)))
    out = pruned(pipeline, keep=0.6)
    kept = rows_of(out)
    past = kept[3:7]
    before, after = toys.expected(pipeline, 5, past), toys.expected(out, 5, past)
    gone = np.setdiff1d(np.arange(toys.N_ITEMS), kept)
    assert np.isneginf(after[gone]).all()
    known = np.setdiff1d(kept, past)
    np.testing.assert_allclose(after[known], before[known], rtol=1e-4, atol=1e-5)
    answer = open_bundle(exported(out)).recommend([Request("üser 5", tuple(AROUND.item_ids[row] for row in past))])[0]
    rows = [AROUND.item_ids.index(item) for item in answer.items]
    toys.assert_ranks(rows, answer.scores, after, 10, 1e-4)


def test_the_most_popular_stay() -> None:
    out = pruned(toys.original("sasrec"), keep=0.5)
    kept = rows_of(out)
    gone = np.setdiff1d(np.arange(toys.N_ITEMS), kept)
    assert len(kept) == toys.N_ITEMS // 2
    assert kept == sorted(kept)
    assert COUNTS[kept].min() >= COUNTS[gone].max()
    least = int(np.median(COUNTS)) + 1
    assert (
        rows_of(pruned(toys.original("sasrec"), keep=1.0, min_events=least)) == np.flatnonzero(least <= COUNTS).tolist()
    )


def engine_of(pipeline: Pipeline, exported: Exported) -> Engine:
    return open_bundle(exported(pipeline))


def test_the_bundle_forgets_what_is_gone(exported: Exported) -> None:
    out = pruned(toys.original("sasrec"), keep=0.5)
    kept, bundle = rows_of(out), engine_of(out, exported).bundle
    assert bundle.item_ids == tuple(AROUND.item_ids[row] for row in kept)
    assert bundle.titles == tuple(AROUND.titles[row] for row in kept)  # type: ignore[index]
    assert bundle.item_rows.tolist() == kept
    assert [bundle.item_rows[row] for row in bundle.fallback] == [row for row in AROUND.fallback if row in kept]
    for user in range(toys.N_USERS):
        assert bundle.item_rows[bundle.histories[user]].tolist() == [r for r in AROUND.histories[user] if r in kept]
    assert not (exported(toys.original("sasrec")) / "item_rows.npy").exists()


def test_a_history_that_is_all_gone_gets_the_fallback(exported: Exported) -> None:
    out = pruned(toys.original("sasrec"), keep=0.5)
    engine, kept = engine_of(out, exported), set(rows_of(out))
    gone = [AROUND.item_ids[row] for row in range(toys.N_ITEMS) if row not in kept]
    answer = engine.recommend([Request(history=tuple(gone[:3]))])[0]
    assert answer.source == "fallback"
    assert not set(answer.items) & set(gone)
    some = (gone[0], AROUND.item_ids[min(kept)], gone[1])
    mixed, alone = engine.recommend([Request(history=some), Request(history=some[1:2])])
    assert (mixed.source, mixed.items) == ("model", alone.items)


@pytest.mark.parametrize("name", ["torch", "numpy", "fused"])
def test_every_runtime_knows_what_is_left(name: str, exported: Exported) -> None:
    """Of a model that is of low rank in its layers and its table, too."""
    pipeline = toys.original("sasrec")
    steps = (
        ("reduce", {"axis": "table_dim", "size": 5, "epochs": 0}),
        ("low_rank", {"epochs": 0}),
        ("prune_items", {}),
    )
    for step, settings in steps:
        pipeline = applied(make(step, settings), pipeline, context_of(pipeline))
    requests = [Request(user) for user in AROUND.user_ids[:9]]
    wanted, found = (
        open_bundle(exported(out)).recommend(requests)
        for out in (pipeline, replace(pipeline, runtime=RuntimePlan(name)))
    )
    assert [answer.items for answer in found] == [answer.items for answer in wanted]
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_allclose(one.scores, other.scores, rtol=1e-4, atol=1e-5)


def test_both_stages_lose_them_and_the_cache_knows(exported: Exported) -> None:
    out = replace(pruned(TWO, keep=0.5), cache=CachePlan(0.5, 8))
    kept = {AROUND.item_ids[row] for row in rows_of(out)}
    engine = engine_of(out, exported)
    answers = engine.recommend([Request(user) for user in AROUND.user_ids], 8)
    assert {answer.source for answer in answers} == {"cache", "model"}
    assert all(set(answer.items) <= kept and len(answer.items) == 8 for answer in answers)


def test_what_reaches_the_second_stage_is_counted_in_rows_of_the_data(exported: Exported) -> None:
    out, queries = pruned(replace(TWO, candidates=toys.N_ITEMS), keep=0.5), SPLIT.test
    _, found = measure.users_quality(exported(out), queries, COUNTS)
    unseen = [set(targets) - set(past) for targets, past in zip(queries.targets, queries.history, strict=True)]
    left = [len(targets & set(rows_of(out))) / len(targets) for targets in unseen if targets]
    assert found["recall_of_stage_one"] == pytest.approx(np.mean(left))
    assert found["overlap_with_exact"] == 1.0


def test_it_survives_saving(tmp_path: Path) -> None:
    out = pruned(TWO, keep=0.5)
    pipelines.save(out, tmp_path)
    again = pipelines.load(tmp_path)
    assert pipelines.fingerprint(again) == pipelines.fingerprint(out)
    assert rows_of(again) == rows_of(out)


def test_other_items_make_another_fingerprint() -> None:
    model = models.build("popularity", {}, models.catalogue_of(SPLIT))
    prints = {models.fingerprint(with_items(model, np.array(rows, np.int32))) for rows in ([0, 1], [1, 2], [0, 2])}
    assert len(prints) == 3


def test_quality_counts_targets_that_are_gone_as_misses(exported: Exported, tmp_path: Path) -> None:
    out = pruned(toys.original("sasrec"), keep=0.5)
    kept, queries = rows_of(out), SPLIT.test
    found, _ = measure.lists(exported(out), queries)
    assert set(found.ravel().tolist()) <= {*kept, -1}, "rows of the data, not of the bundle"
    engine = engine_of(out, exported)
    for line in (0, 7):
        past = tuple(AROUND.item_ids[row] for row in queries.history[line])
        answer = engine.recommend([Request(AROUND.user_ids[line], past)])[0]
        assert [AROUND.item_ids[row] for row in found[line] if row >= 0] == list(answer.items)
    users, _ = measure.users_quality(exported(out), queries, COUNTS)
    missed = np.flatnonzero(~np.isin(queries.targets.values, kept))
    assert len(missed)
    assert not users["recall@10"][missed].any()
    paths = tmp_path / "requests.jsonl", tmp_path / "targets.csv"
    write_queries(queries, AROUND.user_ids, AROUND.item_ids, *paths)
    read, popularity = queries_of(exported(out), *paths)
    again, _ = measure.users_quality(exported(out), read, popularity)
    np.testing.assert_allclose(again["ndcg@10"], users["ndcg@10"])


def test_nothing_trains_once_items_have_left() -> None:
    out = pruned(toys.original("sasrec"))
    for name, settings in (("prune", {"axis": "ffn"}), ("two_stage", {"retriever": "als", "candidates": 5})):
        with pytest.raises(Unsupported, match="items have left this pipeline; put prune_items behind what trains"):
            applied(make(name, settings), out, context_of(out))
    applied(make("quantize", {}), out, context_of(out))


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"keep": 1.0}, "keep=1.0 and min_events=0 keep all of 40 items, which have .* events; pass others"),
        ({"min_events": 10_000}, "min_events=10000 keep none of 40 items"),
    ],
)
def test_keeping_all_or_nothing_is_refused(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(Unsupported, match=sentence):
        pruned(toys.original("sasrec"), **settings)


def test_once_is_enough() -> None:
    with pytest.raises(Unsupported, match="items have left this pipeline already"):
        pruned(pruned(toys.original("sasrec")), keep=0.25)


class Fixed(torch.nn.Module):
    """A model of someone's own whose weights count items twice over."""

    def __init__(self, n_items: int) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(2 * n_items, 3))
        self.kind, self.config, self.inputs, self.max_history = "fixed", None, ("history",), 1


def test_weights_that_count_items_otherwise_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from recfit.models import _items  # noqa: PLC2701

    model: Any = Fixed(40)
    model.catalogue = models.catalogue_of(SPLIT)
    monkeypatch.setattr(_items, "rebuilt", lambda model, config, catalogue: Fixed(catalogue.n_items))
    with pytest.raises(
        ConfigError, match=r"fixed.weight has 80 entries for 40 items and 4 for 2; its items can't be told"
    ):
        with_items(model, np.array([3, 5], np.int32))


def test_lists_are_renumbered() -> None:
    lists = Ragged.from_lists([[0, 1, 2], [], [2, 2], [1]])
    numbers = np.array([-1, 5, 0], np.int32)
    assert [part.tolist() for part in lists.renumbered(numbers)] == [[5, 0], [], [0, 0], [5]]

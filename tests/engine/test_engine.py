"""What a request is answered with, from bundles whose scores are known."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import toys
from recfit.engine import Engine, open_bundle
from recfit.export import Surroundings, export
from recfit.models import Catalogue, popularity
from recfit.pipeline import CachePlan, Pipeline, RuntimePlan, Stage
from recfit.types import ConfigError, FloatArray, IntArray, Ragged, Request

Exported = Callable[[Pipeline], Path]
USERS, ITEMS = toys.around().user_ids, toys.around().item_ids
HISTORIES = toys.around().histories


def counting(counts: Sequence[float]) -> Pipeline:
    """A pipeline that gives item i the score `counts[i]`, whoever asks."""
    model = popularity.build(popularity.Config(), Catalogue(toys.N_USERS, len(counts)))
    model.counts.copy_(torch.tensor(counts)[:, None])  # type: ignore[attr-defined]
    return Pipeline(Stage(model))


def small(counts: Sequence[float], directory: Path, histories: Sequence[Sequence[int]] = ((0,), ())) -> Engine:
    """An engine over items `0`, `1`, ... with known scores, and users `a`, `b` with `histories`."""
    around = Surroundings(
        user_ids=("a", "b"),
        item_ids=tuple(str(row) for row in range(len(counts))),
        titles=None,
        user_features=None,
        histories=Ragged.from_lists(histories),
        fallback=np.argsort(-np.asarray(counts), kind="stable").astype(np.int32),
    )
    return open_bundle(export(counting(counts), around, directory / "small", name="small", recipe={}))


@pytest.fixture(scope="module")
def engine(exported: Exported) -> Engine:
    return open_bundle(exported(toys.original("sasrec")))


@pytest.fixture(scope="module")
def two_stages(exported: Exported) -> Engine:
    als = Stage(toys.trained("als", toys.SHAPES["als"][0]))
    return open_bundle(exported(Pipeline(als, toys.original("neumf").main, candidates=15)))


def items(rows: Sequence[int]) -> tuple[str, ...]:
    return tuple(ITEMS[row] for row in rows)


def test_a_known_user_is_answered_from_the_stored_history(engine: Engine) -> None:
    stored = tuple(ITEMS[row] for row in HISTORIES[5])
    assert engine.recommend([Request(USERS[5])]) == engine.recommend([Request(history=stored)])
    assert engine.recommend([Request(USERS[5])])[0].source == "model"


def test_a_history_wins_over_the_stored_one(engine: Engine) -> None:
    asked = Request(USERS[5], items([1, 2, 3]))
    assert engine.recommend([asked]) == engine.recommend([Request(history=items([1, 2, 3]))])
    assert engine.recommend([asked]) != engine.recommend([Request(USERS[5])])


def test_an_empty_history_wins_too(engine: Engine) -> None:
    assert engine.recommend([Request(USERS[5], ())])[0].source == "fallback"


def test_an_unknown_user_gets_the_popular_items(engine: Engine) -> None:
    train = toys.split().train
    popular = np.argsort(-np.bincount(train.item, minlength=toys.N_ITEMS), kind="stable")
    for request in (Request("nobody"), Request(), Request("nobody", ()), Request("nobody", ("no such item",))):
        answer = engine.recommend([request], 5)[0]
        assert (answer.items, answer.source) == (items(popular[:5]), "fallback")
        assert list(answer.scores) == sorted(answer.scores, reverse=True)


def test_the_fallback_reaches_every_item(engine: Engine) -> None:
    answer = engine.recommend([Request(exclude=items(range(30)))], 1000)[0]
    assert sorted(answer.items) == sorted(items(range(30, 40)))


def test_unknown_items_are_skipped(engine: Engine) -> None:
    known = engine.recommend([Request(history=items([4, 5]))])
    assert engine.recommend([Request(history=(ITEMS[4], "?", ITEMS[5], ""), exclude=("?",))]) == known


def test_k_below_one_is_refused(engine: Engine) -> None:
    for k in (0, -3):
        with pytest.raises(ConfigError, match=f"k = {k}; ask for at least 1 item"):
            engine.recommend([Request(USERS[0])], k)


def test_nobody_asks(engine: Engine) -> None:
    assert engine.recommend([]) == []


def test_a_mixed_batch_keeps_its_order(engine: Engine) -> None:
    asked = [Request("nobody"), Request(USERS[1]), Request(history=items([9])), Request(USERS[2], ())]
    answers = engine.recommend(asked, 3)
    assert [answer.source for answer in answers] == ["fallback", "model", "model", "fallback"]
    assert [engine.recommend([one], 3)[0].items for one in asked] == [answer.items for answer in answers]


@pytest.mark.parametrize("graph", ["float32", "int8", "int8_block", "int8_static", "int4", "codebook"])
@pytest.mark.parametrize("runtime", ["ort", "fused"])
def test_requests_of_a_batch_are_answered_as_if_they_came_alone(exported: Exported, graph: str, runtime: str) -> None:
    pipeline = toys.original("sasrec")
    engine = open_bundle(
        exported(replace(pipeline, retrieve=replace(pipeline.main, graph=graph), runtime=RuntimePlan(runtime)))
    )
    requests = [Request(user) for user in USERS[:20]] + [Request(), Request(history=ITEMS[:3])]
    together = engine.recommend(requests)
    for request, answer in zip(requests, together, strict=True):
        (single,) = engine.recommend([request])
        assert answer.items == single.items
        np.testing.assert_allclose(answer.scores, single.scores, rtol=1e-4, atol=1e-5)


def test_ties_go_to_the_lower_row(tmp_path: Path) -> None:
    engine = small([1, 3, 2, 3, 2, 3], tmp_path)
    answer = engine.recommend([Request("a")], 4)[0]
    assert (answer.items, answer.scores) == (("1", "3", "5", "2"), (3.0, 3.0, 3.0, 2.0))


def test_k_beyond_what_is_left_gives_what_is_left(tmp_path: Path) -> None:
    engine = small([1, 3, 2, 5], tmp_path)
    answer = engine.recommend([Request(history=("3", "0"), exclude=("1",))], 100)[0]
    assert (answer.items, answer.scores) == (("2",), (2.0,))


def test_nothing_is_left(tmp_path: Path) -> None:
    engine = small([1, 3], tmp_path)
    for request in (Request(history=("0", "1")), Request("a", exclude=("1",)), Request(exclude=("1", "0"))):
        assert engine.recommend([request])[0].items == ()


def test_one_item(tmp_path: Path) -> None:
    engine = small([2.0], tmp_path, [(), (0,)])
    assert engine.recommend([Request("a")])[0].items == ("0",)
    assert engine.recommend([Request("b")])[0].items == ()
    engine.warm_up()


def test_titles_and_membership(engine: Engine, tmp_path: Path) -> None:
    assert engine.title(ITEMS[3]) == "Title “3”"
    assert engine.title("?") is None
    assert (engine.known_user(USERS[0]), engine.known_user("?")) == (True, False)
    assert (engine.known_item(ITEMS[0]), engine.known_item("?")) == (True, False)
    assert small([1.0], tmp_path).title("0") is None


def test_ids_with_spaces_and_beyond_ascii_come_back(engine: Engine) -> None:
    assert engine.known_user("üser 7")
    assert set(engine.recommend([Request("üser 7")])[0].items) <= {f"item № {row}" for row in range(toys.N_ITEMS)}


def test_features_of_users_reach_the_ranker(exported: Exported) -> None:
    pipeline = Pipeline(Stage(toys.trained("neumf", toys.SHAPES["neumf"][1])))
    engine = open_bundle(exported(pipeline))
    for user in (0, 1, toys.N_USERS - 1):
        answer = engine.recommend([Request(USERS[user])])[0]
        rows = [ITEMS.index(item) for item in answer.items]
        toys.assert_ranks(rows, answer.scores, toys.expected(pipeline, user, HISTORIES[user].tolist()), 10, 1e-4)


def test_two_stages_are_the_two_models_by_hand(exported: Exported) -> None:
    als, sasrec = Stage(toys.trained("als", toys.SHAPES["als"][0])), toys.original("sasrec").main
    for first, second in ((als, sasrec), (sasrec, als), (als, toys.original("neumf").main)):
        pipeline = Pipeline(first, second, candidates=12)
        engine = open_bundle(exported(pipeline))
        for user in (0, 8, 33):
            answer = engine.recommend([Request(USERS[user])])[0]
            rows = [ITEMS.index(item) for item in answer.items]
            wanted = toys.expected(pipeline, user, HISTORIES[user].tolist())
            toys.assert_ranks(rows, answer.scores, wanted, 10, 1e-4)


def test_ties_of_the_second_stage_go_to_the_lower_row(tmp_path: Path) -> None:
    around = replace(toys.around(), item_ids=tuple("abcdefgh"), titles=None)
    around = replace(around, histories=Ragged.from_lists([[0]] * toys.N_USERS))
    rising, level = counting(range(8)).main, counting([3, 3, 3, 3, 3, 9, 3, 3]).main
    path = export(Pipeline(rising, level, candidates=5), around, tmp_path / "b", name="n", recipe={})
    assert open_bundle(path).recommend([Request(USERS[0])], 4)[0].items == ("f", "d", "e", "g")


def test_more_than_the_candidates_can_be_asked_for(two_stages: Engine) -> None:
    assert len(two_stages.recommend([Request(history=items([0]))], 30)[0].items) == 30
    assert len(two_stages.recommend([Request(history=items([0]))], 100)[0].items) == 39


def test_candidates_run_short_in_one_request_of_a_batch(two_stages: Engine) -> None:
    hidden = Request(history=items([0]), exclude=items(range(1, 37)))
    short, full = two_stages.recommend([hidden, Request(history=items([0]))], 10)
    assert sorted(short.items) == sorted(items([37, 38, 39]))
    assert len(full.items) == 10


ROWS = st.lists(st.integers(0, toys.N_ITEMS - 1), max_size=60)


@given(history=ROWS, exclude=ROWS, user=st.sampled_from([None, "nobody", *USERS[:9]]), k=st.integers(1, 60))
def test_never_seen_nor_excluded_nor_twice(engine, two_stages, history, exclude, user, k) -> None:
    for one in (engine, two_stages):
        answer = one.recommend([Request(user, items(history), items(exclude))], k)[0]
        assert not set(answer.items) & set(items([*history, *exclude]))
        assert len(set(answer.items)) == len(answer.items) == len(answer.scores)
        assert len(answer.items) == min(k, toys.N_ITEMS - len({*history, *exclude}))
        assert list(answer.scores) == sorted(answer.scores, reverse=True)


@given(exclude=ROWS, user=st.sampled_from(range(toys.N_USERS)), k=st.integers(1, 60))
def test_never_what_the_stored_history_holds(engine: Engine, exclude: list[int], user: int, k: int) -> None:
    answer = engine.recommend([Request(USERS[user], exclude=items(exclude))], k)[0]
    gone = {*HISTORIES[user].tolist(), *exclude}
    assert not set(answer.items) & set(items(sorted(gone)))
    assert len(answer.items) == min(k, toys.N_ITEMS - len(gone))


def test_threads_get_the_same_answers(engine: Engine, two_stages: Engine) -> None:
    requests = [Request(user) for user in USERS[:25]]
    for one in (engine, two_stages):
        alone = [one.recommend([request])[0] for request in requests]

        def ask(at: int, one: Engine = one) -> object:
            return [one.recommend([requests[(at + turn) % 25]])[0] for turn in range(25)]

        with ThreadPoolExecutor(8) as pool:
            for at, answers in enumerate(pool.map(ask, range(8))):
                assert answers == [alone[(at + turn) % 25] for turn in range(25)]


def test_warming_up_runs_every_kind_of_pipeline(exported: Exported) -> None:
    for kind, options in toys.SHAPED:
        open_bundle(exported(Pipeline(Stage(toys.trained(kind, options))))).warm_up(3)


def test_candidates_are_what_the_first_stage_hands_on(two_stages: Engine, exported: Exported) -> None:
    first = open_bundle(exported(Pipeline(Stage(toys.trained("als", toys.SHAPES["als"][0])))))
    request = Request(USERS[3])
    proposed = two_stages.candidates(request)
    assert [ITEMS[row] for row in proposed] == [*first.recommend([request], 15)[0].items]
    assert len(two_stages.candidates(request, 20)) == 20
    assert not len(two_stages.candidates(Request()))


def test_the_exhaustive_list_is_the_deciding_models_own(
    two_stages: Engine, exported: Exported, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = open_bundle(exported(toys.original("neumf")))
    monkeypatch.setattr("recfit.engine.CHUNK", 7)
    request = Request(USERS[3], exclude=items([1, 2]))
    assert items(two_stages.exhaustive(request).tolist()) == alone.recommend([request])[0].items
    assert not len(two_stages.exhaustive(Request()))


def test_one_exact_stage_hands_on_its_list(engine: Engine) -> None:
    request = Request(USERS[3])
    assert items(engine.candidates(request, 5).tolist()) == engine.recommend([request], 5)[0].items
    assert engine.exhaustive(request, 5).tolist() == engine.candidates(request, 5).tolist()


@pytest.mark.parametrize("kind", ["sasrec", "neumf"])
def test_single_items_are_scored_seen_or_not(exported: Exported, kind: str) -> None:
    asked, engine = Request(USERS[5]), open_bundle(exported(toys.original(kind)))
    best = engine.recommend([asked])[0]
    seen = ITEMS[HISTORIES[5][0]]
    found = engine.score(asked, (*best.items[::-1], seen, "no such item"))
    np.testing.assert_allclose(found[:-2], best.scores[::-1], rtol=1e-4, atol=1e-5)
    assert np.isfinite(found[-2])
    assert np.isnan(found[-1])
    assert engine.score(asked, ()).shape == (0,)


def test_nobody_has_no_scores(engine: Engine, exported: Exported) -> None:
    assert np.isnan(engine.score(Request("nobody"), ITEMS[:3])).all()


RUNTIMES = [("sasrec", "ort"), ("sasrec", "fused"), ("neumf", "ort"), ("ease", "fused"), ("sasrec", "torch")]


@pytest.mark.parametrize(("kind", "runtime"), RUNTIMES)
def test_candidates_are_ranked_by_the_deciding_stage(exported: Exported, kind: str, runtime: str) -> None:
    engine = open_bundle(exported(replace(toys.original(kind), runtime=RuntimePlan(runtime))))
    request = Request(USERS[5], exclude=(ITEMS[0],))
    whole = engine.recommend([request], toys.N_ITEMS)[0]
    named = (*whole.items[3:20:4], *whole.items[:2], ITEMS[0], ITEMS[HISTORIES[5][0]], "no such item")
    found = engine.recommend([replace(request, candidates=named)], 4)[0]
    wanted = [item for item in whole.items if item in named][:4]
    assert list(found.items) == wanted
    scores = dict(zip(whole.items, whole.scores, strict=True))
    np.testing.assert_allclose(found.scores, [scores[item] for item in wanted], rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(engine.score(request, wanted), found.scores, rtol=1e-3, atol=1e-4)
    assert engine.recommend([replace(request, candidates=())])[0].items == ()


def test_candidates_without_a_history_come_by_popularity(engine: Engine) -> None:
    popular = engine.recommend([Request()], toys.N_ITEMS)[0].items
    found = engine.recommend([Request(candidates=(popular[7], popular[2], popular[30]), exclude=(popular[7],))])[0]
    assert (found.items, found.source) == ((popular[2], popular[30]), "fallback")


def test_what_happened_since_continues_a_history(engine: Engine) -> None:
    past = tuple(ITEMS[row] for row in HISTORIES[5].tolist())
    since = tuple(item for item in ITEMS if item not in past)[:3]
    wanted = engine.recommend([Request(history=past + since)])
    assert engine.recommend([Request(USERS[5], recent=since)]) == wanted
    assert engine.recommend([Request(USERS[5], history=past, recent=since)]) == wanted
    assert (
        engine.recommend([Request(USERS[5], recent=past[-2:] + since)]) == wanted
    )  # the bundle knows two of them already
    assert engine.recommend([Request("nobody", recent=since)]) == engine.recommend([Request(history=since)])
    assert engine.recommend([Request(USERS[5], recent=("no such item",))]) == engine.recommend([Request(USERS[5])])


def test_a_users_list_is_not_given_to_a_user_who_went_on(exported: Exported) -> None:
    cached = open_bundle(exported(replace(toys.original("sasrec"), cache=CachePlan(1.0))))
    assert cached.recommend([Request(USERS[5])])[0].source == "cache"
    since = (cached.recommend([Request(USERS[5])])[0].items[0],)
    assert cached.recommend([Request(USERS[5], recent=since)])[0].source == "model"


def test_stages_tell_the_time_they_took(two_stages: Engine, engine: Engine) -> None:
    for asked, stages in ((two_stages, {"retrieve", "rank"}), (engine, {"retrieve"})):
        spent: dict[str, float] = {}
        assert asked.recommend([Request(USERS[5])], spent=spent) == asked.recommend([Request(USERS[5])])
        assert set(spent) == stages
        assert all(0 < ms < 1000 for ms in spent.values())
    nothing: dict[str, float] = {}
    engine.recommend([Request()], spent=nothing)
    assert not nothing


@pytest.mark.parametrize("runtime", ["ort", "fused", "torch"])
def test_similar_items_have_the_nearest_vectors(
    exported: Exported, runtime: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = replace(toys.original("sasrec"), runtime=RuntimePlan(runtime))
    engine = open_bundle(exported(pipeline))
    monkeypatch.setattr("recfit.engine._similar.CHUNK", 7)
    vectors = pipeline.main.model.item_vectors().detach().numpy()
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    order = [ITEMS[row] for row in np.argsort(-(unit @ unit[4]), kind="stable") if row != 4][:6]
    found = engine.similar(ITEMS[4], 6)
    if runtime != "torch":  # its bundle has no table
        assert list(found.items) == order
    assert len(found.items) == 6
    assert ITEMS[4] not in found.items


def test_the_lengths_of_vectors_are_worked_out_once(exported: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = open_bundle(exported(toys.original("sasrec")))
    seen: list[int] = []
    norm = np.linalg.norm

    def counted(vectors: FloatArray, **options: int) -> FloatArray:
        seen.append(len(vectors))
        lengths: FloatArray = norm(vectors, **options)
        return lengths

    first = engine.similar(ITEMS[4], 6)
    monkeypatch.setattr("recfit.engine._similar.np.linalg.norm", counted)
    assert engine.similar(ITEMS[4], 6) == first
    assert len(ITEMS) not in seen


def test_the_first_similar_items_read_every_vector_once_too(
    exported: Exported, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = open_bundle(exported(toys.original("sasrec")))
    assert engine._neighbours is not None
    table, seen = engine._neighbours._table, list[int]()
    rows = table.rows

    def counted(items: IntArray) -> FloatArray:
        seen.append(len(items))
        return rows(items)

    monkeypatch.setattr(table, "rows", counted)
    first = engine.similar(ITEMS[4], 6)
    assert seen == [1, len(ITEMS)]
    assert engine.similar(ITEMS[4], 6) == first
    assert seen == [1, len(ITEMS)] * 2


def test_similar_items_of_a_model_without_vectors_follow_the_item(exported: Exported) -> None:
    engine = open_bundle(exported(toys.original("ease")))
    assert engine.similar(ITEMS[4], 6) == engine.recommend([Request(history=(ITEMS[4],))], 6)[0]
    assert engine.similar("no such item").items == ()

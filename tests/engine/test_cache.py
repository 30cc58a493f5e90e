"""Precomputed lists: who gets one, what is taken out of it, and when it is too old."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

import toys
from recfit import bundle, engine
from recfit.engine import Engine, open_bundle
from recfit.export import export
from recfit.pipeline import CachePlan, Pipeline
from recfit.types import Ragged, Request

Exported = Callable[[Pipeline], Path]
USERS, ITEMS = toys.around().user_ids, toys.around().item_ids
HISTORIES = toys.around().histories
ACTIVE = np.argsort(-HISTORIES.sizes, kind="stable")[:30].tolist()
QUIET = next(user for user in range(toys.N_USERS) if user not in ACTIVE)
PLAN = CachePlan(share=0.5, length=12, ttl_seconds=3600.0)


@pytest.fixture(scope="module")
def plain(exported: Exported) -> Engine:
    return open_bundle(exported(toys.original("sasrec")))


@pytest.fixture(scope="module")
def path(exported: Exported) -> Path:
    return exported(replace(toys.original("sasrec"), cache=PLAN))


@pytest.fixture(scope="module")
def cached(path: Path) -> Engine:
    return open_bundle(path)


def test_a_hit_is_what_the_model_would_say(cached: Engine, plain: Engine) -> None:
    for user in ACTIVE:
        hit, scored = (one.recommend([Request(USERS[user])])[0] for one in (cached, plain))
        assert (hit.source, scored.source) == ("cache", "model")
        assert hit.items == scored.items
        np.testing.assert_allclose(hit.scores, scored.scores, rtol=1e-5)


def test_only_the_most_active_are_precomputed(cached: Engine) -> None:
    assert cached.recommend([Request(USERS[QUIET])])[0].source == "model"
    assert cached.recommend([Request("nobody")])[0].source == "fallback"
    stored = cached.bundle.cache
    assert stored is not None
    assert stored.keys.tolist() == sorted(ACTIVE)
    assert cached.manifest["pipeline"]["cache"] == {"users": 30, "length": 12, "ttl_seconds": 3600.0}


def test_a_history_without_a_user_goes_to_the_model(cached: Engine) -> None:
    stored = tuple(ITEMS[row] for row in HISTORIES[ACTIVE[0]])
    assert cached.recommend([Request(history=stored)])[0].source == "model"


def test_what_was_seen_or_excluded_since_is_taken_out(cached: Engine) -> None:
    user = ACTIVE[0]
    whole = cached.recommend([Request(USERS[user])], 12)[0]
    past = tuple(ITEMS[row] for row in HISTORIES[user])
    less = cached.recommend([Request(USERS[user], (*past, whole.items[0]), (whole.items[2],))], 10)[0]
    assert less.source == "cache"
    assert less.items == (whole.items[1], *whole.items[3:12])
    assert less.scores == (whole.scores[1], *whole.scores[3:12])


def test_a_list_that_has_become_too_short_goes_to_the_model(cached: Engine, plain: Engine) -> None:
    user = ACTIVE[0]
    whole = cached.recommend([Request(USERS[user])], 12)[0]
    request = Request(USERS[user], exclude=whole.items[:3])
    assert cached.recommend([request], 9)[0].source == "cache"
    assert cached.recommend([request], 10) == plain.recommend([request], 10)
    assert cached.recommend([Request(USERS[user])], 13) == plain.recommend([Request(USERS[user])], 13)


def test_a_history_with_repeats_does_not_shorten_the_answer(cached: Engine) -> None:
    user = ACTIVE[0]
    repeated = tuple(ITEMS[row] for row in HISTORIES[user]) * 10
    whole = cached.recommend([Request(USERS[user])], 12)[0]
    assert len(cached.recommend([Request(USERS[user], repeated, whole.items[:8])], 10)[0].items) == 10


def test_a_list_expires(cached: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    created = datetime.fromisoformat(cached.manifest["created"]).timestamp()
    sources = {}
    for age in (0, 3599, 3601, 10**7):
        monkeypatch.setattr(engine.time, "time", lambda age=age: created + age)
        sources[age] = cached.recommend([Request(USERS[ACTIVE[0]])])[0].source
    assert sources == {0: "cache", 3599: "cache", 3601: "model", 10**7: "model"}


def test_its_age_counts_from_the_export_not_from_the_start_of_a_server(path: Path, tmp_path: Path) -> None:
    old = Path(shutil.copytree(path, tmp_path / "old"))
    manifest = json.loads((old / bundle.MANIFEST).read_text())
    manifest["created"] = (datetime.now(UTC) - timedelta(seconds=3700)).isoformat(timespec="seconds")
    (old / bundle.MANIFEST).write_text(json.dumps(manifest))
    assert open_bundle(old).recommend([Request(USERS[ACTIVE[0]])])[0].source == "model"


def test_users_that_tell_the_model_nothing_are_left_to_the_fallback(tmp_path: Path) -> None:
    around = replace(toys.around(), histories=Ragged.from_lists([[], *([row] for row in range(1, 39)), *([[]] * 21)]))
    pipeline = replace(toys.original("sasrec"), cache=CachePlan(1.0, length=100))
    opened = open_bundle(export(pipeline, around, tmp_path / "b", name="n", recipe={}))
    stored = opened.bundle.cache
    assert stored is not None
    assert stored.keys.tolist() == list(range(1, 39))
    assert stored.items.shape == (38, 40), "no longer than the catalogue"
    assert opened.recommend([Request(USERS[0])])[0].source == "fallback"


def test_models_of_users_alone_are_cached_for_every_user(tmp_path: Path) -> None:
    around = replace(toys.around(), histories=Ragged.from_lists([[]] * toys.N_USERS))
    pipeline = replace(toys.original("neumf"), cache=CachePlan(1.0))
    opened = open_bundle(export(pipeline, around, tmp_path / "b", name="n", recipe={}))
    answer = opened.recommend([Request(USERS[0])], 40)[0]
    assert (answer.source, len(answer.items)) == ("cache", 40)


def test_nobody_is_cached(tmp_path: Path) -> None:
    around = replace(toys.around(), histories=Ragged.from_lists([[]] * toys.N_USERS))
    pipeline = replace(toys.original("sasrec"), cache=PLAN)
    opened = open_bundle(export(pipeline, around, tmp_path / "b", name="n", recipe={}))
    assert opened.recommend([Request(USERS[0])])[0].source == "fallback"


STATES = CachePlan(share=1.0, length=12, ttl_seconds=3600.0, key="state", depth=2)


@pytest.fixture(scope="module")
def by_state(exported: Exported) -> Engine:
    return open_bundle(exported(replace(toys.original("sasrec"), cache=STATES)))


def ids(rows: Sequence[int]) -> tuple[str, ...]:
    return tuple(ITEMS[row] for row in rows)


def test_a_state_is_answered_whoever_asks(by_state: Engine, plain: Engine) -> None:
    """The list is the model's for the newest items alone; without the rest of the history, that is all there is."""
    newest = HISTORIES[ACTIVE[0]][1:3].tolist()
    wanted = plain.recommend([Request(history=ids(newest))])[0]
    for user in (None, "nobody", USERS[QUIET]):
        answer = by_state.recommend([Request(user, ids(newest))])[0]
        assert answer.source == "cache"
        assert answer.items == wanted.items
        np.testing.assert_allclose(answer.scores, wanted.scores, rtol=1e-5)


def test_the_stored_history_of_a_known_user_has_a_state_too(by_state: Engine, plain: Engine) -> None:
    past = HISTORIES[ACTIVE[0]].tolist()
    answer = by_state.recommend([Request(USERS[ACTIVE[0]])], 5)[0]
    wanted = plain.recommend([Request(history=ids(past[-2:]), exclude=ids(past))], 5)[0]
    assert (answer.source, answer.items) == ("cache", wanted.items)


def test_of_a_state_what_was_seen_or_excluded_is_taken_out(by_state: Engine) -> None:
    newest = HISTORIES[ACTIVE[0]][1:3].tolist()
    whole = by_state.recommend([Request(history=ids(newest))], 12)[0]
    seen = ITEMS.index(whole.items[0])
    less = by_state.recommend([Request(history=ids([seen, *newest]), exclude=(whole.items[2],))], 10)[0]
    assert (less.source, less.items) == ("cache", (whole.items[1], *whole.items[3:12]))
    short = by_state.recommend([Request(history=ids([seen, *newest]), exclude=whole.items[1:4])], 10)[0]
    assert short.source == "model"


def test_unseen_states_go_to_the_model_and_no_history_to_the_fallback(by_state: Engine) -> None:
    assert by_state.recommend([Request(history=ids([3, 20]))])[0].source == "model"
    assert by_state.recommend([Request("nobody")])[0].source == "fallback"
    assert by_state.recommend([Request(history=("what",))])[0].source == "fallback"


def test_only_the_most_frequent_states_are_precomputed(exported: Exported) -> None:
    opened = open_bundle(exported(replace(toys.original("sasrec"), cache=replace(STATES, share=0.1, depth=1))))
    counts = np.bincount(HISTORIES.values, minlength=toys.N_ITEMS)
    stored = opened.bundle.cache
    assert stored is not None
    wanted = np.sort(np.argsort(-counts, kind="stable")[: round(0.1 * np.count_nonzero(counts))])
    assert stored.keys.tolist() == (wanted + 1).tolist()
    described = {"states": len(wanted), "depth": 1, "length": 12, "ttl_seconds": 3600.0}
    assert opened.manifest["pipeline"]["cache"] == described


def test_state_lists_expire(by_state: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    created = datetime.fromisoformat(by_state.manifest["created"]).timestamp()
    monkeypatch.setattr(engine.time, "time", lambda: created + 3601)
    assert by_state.recommend([Request(USERS[ACTIVE[0]])])[0].source == "model"


def test_warming_up_runs_the_model_where_a_cache_answers(by_state: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    scored = by_state._scored
    monkeypatch.setattr(
        by_state, "_scored", lambda asked, k, spent: calls.append(len(asked)) or scored(asked, k, spent)
    )
    by_state.warm_up(3)
    assert calls.count(1) >= 3

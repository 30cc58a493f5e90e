"""Values of user features that come with a request are worth what those of a known user are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import toys
from recfit.data import load
from recfit.engine import Engine, open_bundle
from recfit.export import Surroundings, export
from recfit.models import Catalogue, as_module, build
from recfit.pipeline import CachePlan, Pipeline, RuntimePlan, Stage
from recfit.types import ConfigError, Features, Recommendation, Request

Exported = Callable[[Pipeline], Path]
USERS, ITEMS = toys.around().user_ids, toys.around().item_ids
NEUMF: dict[str, Any] = {"embedding_dim": 4, "hidden": 8, "top": 4, "features": True, "users": False}
TOWERS: dict[str, Any] = {"embedding_dim": 8, "hidden": 12, "features": True, "users": False, "max_history": 0}
MODELS = [("neumf", NEUMF), ("two_tower", TOWERS), ("two_tower", {**TOWERS, "max_history": 9})]


def features() -> Features:
    known = toys.around().user_features
    assert known is not None
    return known


def context_of(user: int) -> dict[str, str]:
    """What the data says of a user; nothing of what it does not know."""
    known = features()
    assert known.values is not None
    columns = zip(known.names, known.values, known.codes[user].tolist(), strict=True)
    return {name: str(values[code - 1]) for name, values, code in columns if code}


def told() -> list[int]:
    """Users of whom both features are known, a few with others."""
    return np.flatnonzero((features().codes > 0).all(1))[:6].tolist()


def alike(one: Recommendation, other: Recommendation) -> None:
    assert (one.items, one.source) == (other.items, other.source)
    np.testing.assert_allclose(one.scores, other.scores, rtol=1e-4, atol=1e-6)


@pytest.fixture(scope="module")
def engine(exported: Exported) -> Engine:
    return open_bundle(exported(Pipeline(Stage(toys.trained("neumf", NEUMF)))))


RUNTIMES = [
    ("neumf", NEUMF, "ort"),
    *(("two_tower", TOWERS, runtime) for runtime in ("ort", "numpy", "fused", "torch")),
]


@pytest.mark.parametrize(("kind", "options", "runtime"), RUNTIMES)
def test_a_context_is_worth_the_row_of_a_known_user(
    exported: Exported, kind: str, options: dict[str, Any], runtime: str
) -> None:
    pipeline = Pipeline(Stage(toys.trained(kind, options)), runtime=RuntimePlan(runtime))
    engine = open_bundle(exported(pipeline))
    users, answers = told(), set()
    for user in users:
        wanted = engine.recommend([Request(USERS[user], ())])[0]
        for asks in (None, "nobody", USERS[users[0]], USERS[users[-1]]):
            alike(engine.recommend([Request(asks, (), context=context_of(user))])[0], wanted)
        answers.add(wanted.scores)
    assert len(answers) > 1


def test_requests_of_a_batch_keep_their_own_context(engine: Engine) -> None:
    asked = [
        Request(USERS[user], (), context=context_of(other)) for user, other in zip(told(), told()[::-1], strict=True)
    ]
    asked += [Request(USERS[told()[0]], ()), Request()]
    for request, answer in zip(asked, engine.recommend(asked), strict=True):
        alike(answer, engine.recommend([request])[0])


def test_what_a_context_leaves_out_is_the_users_own(engine: Engine) -> None:
    user, other = told()[0], next(row for row in told() if (features().codes[row] != features().codes[told()[0]]).all())
    age, job = context_of(other)["age"], context_of(user)["job"]
    mixed = engine.recommend([Request(context={"age": age, "job": job})])[0]
    alike(engine.recommend([Request(USERS[user], (), context={"age": age})])[0], mixed)


def test_an_unknown_value_is_worth_nothing(engine: Engine) -> None:
    user, job = told()[0], context_of(told()[0])["job"]
    wanted = engine.recommend([Request(context={"job": job})])[0]
    assert wanted.source == "model"
    for value in ("no such value", "", 7, float("inf")):
        alike(engine.recommend([Request(USERS[user], (), context={"age": value, "job": job})])[0], wanted)
    assert engine.recommend([Request(context={"age": "no such value"})]) == engine.recommend([Request()])


def test_a_context_alone_is_no_request_for_what_is_popular(exported: Exported) -> None:
    for kind, options in MODELS:
        engine = open_bundle(exported(Pipeline(Stage(toys.trained(kind, options)))))
        request = Request(context=context_of(told()[0]))
        assert engine.recommend([request])[0].source == "model"
        assert np.isfinite(engine.score(request, ITEMS[:3])).all()
        assert len(engine.exhaustive(request)) == 10
        assert np.isnan(engine.score(Request(), ITEMS[:3])).all()


def test_candidates_are_ranked_in_their_context(engine: Engine) -> None:
    request = Request(context=context_of(told()[0]))
    whole = engine.recommend([request], toys.N_ITEMS)[0].items
    assert engine.recommend([replace(request, candidates=whole[5:1:-1])])[0].items == whole[2:6]


def test_a_list_made_without_the_context_is_not_given(exported: Exported) -> None:
    users = {**NEUMF, "users": True}
    cached = open_bundle(exported(Pipeline(Stage(toys.trained("neumf", users)), cache=CachePlan(1.0))))
    assert cached.recommend([Request(USERS[5])])[0].source == "cache"
    assert cached.recommend([Request(USERS[5], context=context_of(told()[0]))])[0].source == "model"
    assert cached.recommend([Request(USERS[5], context={})])[0].source == "cache"


def test_an_unknown_name_is_refused(engine: Engine) -> None:
    assert tuple(engine.context_names) == ("age", "job")
    with pytest.raises(ConfigError, match="context: there is no feature 'hour'; there are age, job"):
        engine.recommend([Request(USERS[5], context={"age": "few", "hour": "13"})])
    with pytest.raises(ConfigError, match=r"there is no feature 'x{100}';"):
        engine.score(Request(context={"x" * 5000: "13"}), ITEMS[:1])


def test_a_model_that_reads_no_user_features_refuses_a_context(exported: Exported) -> None:
    engine = open_bundle(exported(toys.original("sasrec")))
    assert tuple(engine.context_names) == ()
    with pytest.raises(ConfigError, match="this bundle reads no user features; leave `context` out"):
        engine.recommend([Request(USERS[5], context={"age": "few"})])
    assert engine.recommend([Request(USERS[5], context={})]) == engine.recommend([Request(USERS[5])])


def test_a_bundle_without_values_answers_and_refuses_a_context(engine: Engine, tmp_path: Path) -> None:
    around = replace(toys.around(), user_features=replace(features(), values=None))
    pipeline = Pipeline(Stage(toys.trained("neumf", NEUMF)))
    old = open_bundle(export(pipeline, around, tmp_path / "old", name="toy", recipe={}))
    assert old.recommend([Request(USERS[5])]) == engine.recommend([Request(USERS[5])])
    with pytest.raises(
        ConfigError, match="does not know the values of its features; export it again, or leave `context`"
    ):
        old.recommend([Request(context={"age": "few"})])


def test_values_as_the_file_has_them_find_the_row_they_describe(tmp_path: Path) -> None:
    """Texts, numbers in buckets, and lists; as texts and as numbers."""
    draws = np.random.default_rng(0)
    users = [f"u{row}" for row in range(40)]
    weather, income = draws.choice(["dry", "wet", ""], 40), np.round(draws.random(40) * 1e5, 2)
    tags = ["|".join(draws.permutation(list("abcde"))[: draws.integers(0, 4)]) for _ in users]
    rows = zip(users, weather, income, tags, strict=True)
    events, table = tmp_path / "e.csv", tmp_path / "u.csv"
    events.write_text("user_id,item_id\n" + "".join(f"{user},i{row % 9}\n" for row, user in enumerate(users)))
    table.write_text("user_id,weather,income,tag\n" + "".join(",".join(map(str, row)) + "\n" for row in rows))
    data = load(events, user_features=table)
    assert data.user_features is not None
    torch.manual_seed(0)
    model = build("neumf", NEUMF, Catalogue(data.n_users, data.n_items, data.user_features))
    with torch.no_grad():
        for weight in as_module(model).parameters():
            weight.mul_(5)
    popular = np.arange(data.n_items, dtype=np.int32)
    around = Surroundings(data.user_ids, data.item_ids, None, data.user_features, data.histories(), popular)
    engine = open_bundle(export(Pipeline(Stage(as_module(model).eval())), around, tmp_path / "b", name="n", recipe={}))
    assert tuple(engine.context_names) == ("weather", "income", "tag")
    for row, user in enumerate(users):
        context = {"weather": str(weather[row]), "income": float(income[row]), "tag": tags[row]}
        wanted = engine.recommend([Request(user, ())])[0]
        for income_ in (context["income"], str(context["income"])):
            alike(engine.recommend([Request(context={**context, "income": income_})])[0], wanted)
    backwards = {"tag": "|".join(reversed(tags[0].split("|")))}
    alike(engine.recommend([Request(users[0], (), context=backwards)])[0], engine.recommend([Request(users[0], ())])[0])

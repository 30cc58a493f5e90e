"""Which feature columns stay: each way of judging finds the one that matters in data made so."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest

import toys
from recfit import models, training
from recfit.models import Model, as_module
from recfit.pipeline import Pipeline, Stage
from recfit.techniques import Context, available, describe, make
from recfit.techniques._features import WAYS, information  # noqa: PLC2701
from recfit.training import Fit, train
from recfit.types import ConfigError, DataError, Features, Queries, Ragged, Split

FIT = Fit(epochs=15, patience=15, batch_size=32, negatives=8, threads=1, precision="fp32", learning_rate=5e-2, warmup=5)
OPTIONS = {"embedding_dim": 4, "hidden": 8, "top": 4, "features": True, "forget": 0.9}


@cache
def telling() -> Split:
    """Users of group g choose items of group g. Of the columns `noise` means nothing and `taste` is that group."""
    draws = np.random.default_rng(0)
    user = np.repeat(np.arange(60), 8).astype(np.int32)
    item = (draws.integers(0, 10, len(user)) * 4 + user % 4).astype(np.int32)
    base = toys.split()
    noise, group = draws.integers(1, 5, 60), np.arange(60) % 4 + 1
    users = Features(("noise", "taste"), np.stack((noise, group), 1).astype(np.int32), (5, 5))
    events = replace(base.train, user=user, item=item, weight=np.ones(len(user), np.float32))
    events = replace(events, timestamp=np.arange(len(user), dtype=np.float64), user_features=users, item_features=None)
    wanted = Ragged.from_lists([[row] for row in draws.integers(0, 10, 60) * 4 + np.arange(60) % 4])
    return replace(base, train=events, validation=Queries(np.arange(60, dtype=np.int32), events.histories(), wanted))


@cache
def taught() -> Model:
    model = models.build("neumf", OPTIONS, models.catalogue_of(telling()))
    train(model, telling(), FIT, progress=False)
    return model


def context() -> Context:
    return Context(telling(), Pipeline(Stage(taught())), FIT)


@pytest.mark.parametrize("by", WAYS)
def test_it_finds_the_column_that_matters(by: str) -> None:
    model: Any = taught()
    before = models.fingerprint(model)
    assert model.feature_names() == ["noise", "taste"]
    noise, taste = WAYS[by](model, context()).tolist()
    assert taste > noise + 0.01
    assert models.fingerprint(model) == before
    assert all(weight.requires_grad for weight in as_module(model).parameters())


def test_permutation_asks_held_out_events() -> None:
    """Where these say the opposite of what was learned, the model is better off without the column."""
    wanted = Ragged.from_lists([(targets + 1) % 40 for targets in telling().validation.targets])
    opposite = replace(telling(), validation=replace(telling().validation, targets=wanted))
    model: Any = taught()
    _, taste = WAYS["permutation"](model, replace(context(), split=opposite)).tolist()
    assert taste < -0.01


def test_permutation_reads_the_data_once_and_builds_no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    read, real = [], training.Unseen.of
    monkeypatch.setattr(training.Unseen, "of", lambda *given: (read.append(given), real(*given))[1])
    monkeypatch.setattr(training, "_Loop", lambda *_, **__: pytest.fail("a training was built"))
    model: Any = taught()
    WAYS["permutation"](model, context())
    assert len(read) == 1


def test_permutation_says_so_where_nothing_is_held_out() -> None:
    """All losses would be the same, and the columns that stay chance."""
    empty = replace(telling(), validation=telling().validation.take(np.arange(0)))
    step = make("reduce", {"axis": "features", "size": 1, "by": "permutation", "epochs": 0})
    sentence = r"leave_last\(1\) left no validation events whose loss could be told; take another split"
    with pytest.raises(DataError, match=sentence):
        step.apply(context().original, replace(context(), split=empty))


def test_the_search_proposes_what_shuffling_judges() -> None:
    (variants,) = available(["reduce"])
    assert "reduce(axis=features, size=1, by=permutation)" in [describe(step) for step in variants(context())]


@pytest.mark.parametrize("by", ["weights", *WAYS])
def test_reduce_keeps_it(by: str) -> None:
    step = make("reduce", {"axis": "features", "size": 1, "by": by, "epochs": 0})
    out = step.apply(context().original, context()).main.model
    assert out.axes()["features"] == 1
    if by != "weights":
        assert out.config.without == ("noise",)


def test_structure_alone_judges_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(WAYS, "gates", lambda *_: pytest.fail("trained"))  # type: ignore[misc]
    step = make("reduce", {"axis": "features", "size": 1, "by": "gates"})
    alone = replace(context(), structure_only=True)
    assert step.apply(alone.original, alone).main.model.axes()["features"] == 1


def test_information_is_that_of_the_textbook() -> None:
    coin = np.array([0, 0, 1, 1], np.int32)
    assert information(coin, coin) == pytest.approx(np.log(2))
    assert information(coin, np.array([0, 1, 0, 1], np.int32)) == pytest.approx(0.0)
    assert information(coin[:0], coin[:0]) == 0.0


def test_it_agrees_with_scikit_learn() -> None:
    from sklearn.metrics import mutual_info_score

    draws = np.random.default_rng(0)
    left, right = draws.integers(0, 5, 300).astype(np.int32), draws.integers(0, 9, 300).astype(np.int32)
    assert information(left, right) == pytest.approx(mutual_info_score(left, right))


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (
            {"axis": "features", "by": "luck"},
            r"technique.reduce.by = 'luck'; allowed: weights, permutation, mutual_inf",
        ),
        ({"axis": "ffn", "by": "gates"}, r"technique.reduce.by = 'gates'; allowed: weights"),
    ],
)
def test_only_features_are_judged_in_other_ways(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        make("reduce", settings)

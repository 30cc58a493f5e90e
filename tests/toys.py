"""A small data set with a pattern that can be learned, small models of every family, and what an answer should be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from recfit import models
from recfit.export import Surroundings, surroundings
from recfit.models import Catalogue, Model
from recfit.pipeline import Pipeline, Stage
from recfit.registry import names
from recfit.training import Fit, inputs_for, train
from recfit.types import Features, FloatArray, Interactions, Queries, Ragged, Rows, Split

N_USERS, N_ITEMS = 60, 40
FIT = Fit(epochs=2, batch_size=32, threads=1, precision="fp32", learning_rate=1e-2)

# Options of each family, several where it has several shapes; a family that is not named is built as it comes.
SHAPES: dict[str, list[dict[str, Any]]] = {
    "als": [{"embedding_dim": 8, "sweeps": 3}],
    "custom": [
        {"factory": "toys:pooled"},
        {"factory": "toys:pairs", "inputs": ("user", "history"), "max_history": 5},
    ],
    "ease": [{"l2": 5.0}, {"l2": 5.0, "neighbours": 7}],
    "itemknn": [{"neighbours": 6}],
    "mlp": [
        {"embedding_dim": 8, "hidden": 12, "max_history": 9},
        {"embedding_dim": 8, "hidden": 12, "max_history": 9, "features": True},
    ],
    "neumf": [
        {"embedding_dim": 4, "hidden": 8, "top": 4},
        {"embedding_dim": 4, "hidden": 8, "top": 4, "features": True},
    ],
    "sasrec": [
        {"layers": 2, "embedding_dim": 16, "heads": 2, "ffn": 24, "max_history": 9},
        {"layers": 1, "embedding_dim": 16, "heads": 2, "ffn": 24, "max_history": 9, "parts": 4, "codes": 16},
        {"layers": 3, "embedding_dim": 16, "heads": 2, "ffn": 24, "max_history": 9, "window": 3},
        {"layers": 3, "embedding_dim": 16, "heads": [1, 2, 3], "ffn": [24, 5, 16], "max_history": 9},
    ],
    "two_tower": [
        {"embedding_dim": 8, "hidden": 12, "max_history": 9},
        {"embedding_dim": 8, "hidden": 12, "max_history": 9, "features": True},
        {"embedding_dim": 8, "hidden": 0, "max_history": 0},
        {"embedding_dim": 8, "hidden": 12, "max_history": 9, "parts": 2, "codes": 16, "ranks": {"first": 4}},
    ],
}
SHAPED = [(kind, options) for kind in names("models") for options in SHAPES.get(kind, [{}])]


class Pooled(nn.Module):
    """A user's own encoder: the mean of the history's vectors."""

    def __init__(self, n_items: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(n_items, 6))

    def encode(self, history: Tensor) -> Tensor:
        real = (history > 0)[..., None].float()
        rows = self.table[(history - 1).clamp(min=0)] * real
        return rows.sum(1) / real.sum(1).clamp(min=1)

    def item_vectors(self) -> Tensor:
        return self.table


class Pairs(nn.Module):
    """A user's own ranker. It is given the user too, and makes nothing of it."""

    def __init__(self, n_items: int) -> None:
        super().__init__()
        self.pooled = Pooled(n_items)

    def score(self, items: Tensor, user: Tensor, history: Tensor) -> Tensor:
        return (self.pooled.table[items - 1] * self.pooled.encode(history)[:, None]).sum(-1)


def pooled(options: Mapping[str, Any], catalogue: Catalogue) -> nn.Module:
    return Pooled(catalogue.n_items)


def pairs(options: Mapping[str, Any], catalogue: Catalogue) -> nn.Module:
    return Pairs(catalogue.n_items)


@cache
def split() -> Split:
    """Users walk around a ring of items in steps of 1 or 2; their last two events are validation and test."""
    draws = np.random.default_rng(0)
    steps = [draws.integers(1, 3, draws.integers(5, 16)) for _ in range(N_USERS)]
    paths = [((np.cumsum(part) + draws.integers(N_ITEMS)) % N_ITEMS).astype(np.int32) for part in steps]
    user = np.repeat(np.arange(N_USERS), [len(path) - 2 for path in paths]).astype(np.int32)
    train = Interactions(
        name="ring",
        user=user,
        item=np.concatenate([path[:-2] for path in paths]),
        weight=np.ones(len(user), np.float32),
        timestamp=np.arange(len(user), dtype=np.float64),
        user_ids=tuple(f"üser {row}" for row in range(N_USERS)),
        item_ids=tuple(f"item № {row}" for row in range(N_ITEMS)),
        user_features=_features(N_USERS, ("age", "job")),
        item_features=_features(N_ITEMS, ("genre.0", "genre.1", "decade")),
        titles=tuple(f"Title “{row}”" for row in range(N_ITEMS)),
    )
    return Split("leave_last(1)", train, _queries(paths, 2), _queries(paths, 1), {}, "hash")


def _features(rows: int, columns: tuple[str, ...]) -> Features:
    codes = np.random.default_rng(1).integers(0, 4, (rows, len(columns))).astype(np.int32)
    return Features(columns, codes, (4,) * len(columns), (("few", "some", "many"),) * len(columns))


def _queries(paths: Sequence[Rows], back: int) -> Queries:
    targets = [path[len(path) - back : len(path) - back + 1] for path in paths]
    users = np.arange(len(paths), dtype=np.int32)
    return Queries(users, Ragged.from_lists([path[:-back] for path in paths]), Ragged.from_lists(targets))


@cache
def around() -> Surroundings:
    return surroundings(split(), split().train.histories())


def untrained(kind: str, options: Mapping[str, Any]) -> Model:
    torch.manual_seed(0)
    model = models.build(kind, options, models.catalogue_of(split()))
    models.as_module(model).eval()
    return model


_TRAINED: dict[str, Model] = {}


def trained(kind: str, options: Mapping[str, Any]) -> Model:
    """A small trained model; the same object for the same arguments, so leave it as it is."""
    key = f"{kind} {options}"
    if key not in _TRAINED:
        model = untrained(kind, options)
        train(model, split(), FIT, progress=False)
        _TRAINED[key] = model
    return _TRAINED[key]


def original(kind: str) -> Pipeline:
    """The first shape of a family as a pipeline of its own."""
    return Pipeline(Stage(trained(kind, SHAPES[kind][0])))


def expected(pipeline: Pipeline, user: int, history: Sequence[int]) -> FloatArray:
    """Every item's score by the torch models, float32 [n_items]; -inf for what is seen or was not retrieved.

    `user` is a row, -1 unknown.
    """
    scores = _scores(pipeline.retrieve.model, user, history)
    scores[list(history)] = -np.inf
    if pipeline.rank is None:
        return scores
    candidates = np.lexsort((np.arange(len(scores)), -scores))[: pipeline.candidates]
    again = np.full_like(scores, -np.inf)
    again[candidates] = _scores(pipeline.rank.model, user, history)[candidates]
    again[np.isneginf(scores)] = -np.inf
    return again


def _scores(model: Model, user: int, history: Sequence[int]) -> FloatArray:
    rows = model.catalogue.item_rows
    known = list(range(N_ITEMS)) if rows is None else rows.tolist()
    tokens = torch.tensor([[known.index(row) + 1 for row in history if row in known] or [0]])
    with torch.inference_mode():
        found = models.scores(model, inputs_for(model, torch.tensor([user + 1]), tokens))
    scores = np.full(N_ITEMS, -np.inf, np.float32)
    scores[known] = found[0].numpy()
    return scores


def assert_ranks(rows: Sequence[int], scores: Sequence[float], wanted: FloatArray, k: int, error: float) -> None:
    """`rows` and `scores` are the top k of `wanted`, to within `error` of its spread; -inf never appears."""
    alive = wanted[wanted > -np.inf]
    slack = error * max(float(np.ptp(alive)), 1e-6) if len(alive) else 0.0
    assert len(rows) == len(set(rows)) == min(k, len(alive))
    given = wanted[list(rows)]
    np.testing.assert_allclose(scores, given, rtol=0, atol=slack)
    assert (np.diff(given) <= slack).all(), "not ordered"
    left = np.setdiff1d(np.flatnonzero(wanted > -np.inf), rows)
    assert not len(left) or wanted[left].max() <= given.min() + slack, "a better item is missing"

"""Small synthetic data and one built, non-trivial model of every family."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from recfit import models
from recfit.models import Catalogue, Model
from recfit.types import Features, Interactions, Queries, Ragged, Split

N_USERS, N_ITEMS = 30, 25

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "popularity": ("popularity", {}),
    "itemknn": ("itemknn", {"neighbours": 6}),
    "itemknn-tfidf": ("itemknn", {"neighbours": 6, "similarity": "tfidf"}),
    "ease": ("ease", {"l2": 5.0}),
    "ease-sparse": ("ease", {"l2": 5.0, "neighbours": 7}),
    "als": ("als", {"embedding_dim": 6, "sweeps": 3}),
    "neumf": ("neumf", {"embedding_dim": 4, "hidden": 6, "top": 4}),
    "neumf-history": ("neumf", {"embedding_dim": 4, "hidden": 6, "top": 4, "max_history": 9}),
    "neumf-features": ("neumf", {"embedding_dim": 4, "hidden": 6, "top": 4, "features": True}),
    "sasrec": ("sasrec", {"layers": 2, "embedding_dim": 8, "heads": 2, "ffn": 12, "max_history": 9}),
    "sasrec-1": ("sasrec", {"layers": 1, "embedding_dim": 8, "heads": 2, "ffn": 12, "max_history": 9}),
    "sasrec-window": (
        "sasrec",
        {"layers": 3, "embedding_dim": 8, "heads": 2, "ffn": 12, "max_history": 9, "window": 3},
    ),
    "sasrec-uneven": (
        "sasrec",
        {"layers": 3, "embedding_dim": 8, "heads": [3, 1, 2], "ffn": [12, 5, 9], "max_history": 9},
    ),
    "sasrec-features": (
        "sasrec",
        {
            "layers": 2,
            "embedding_dim": 8,
            "heads": 2,
            "ffn": 12,
            "max_history": 9,
            "features": True,
            "without": ["decade"],
        },
    ),
    "sasrec-codes": (
        "sasrec",
        {"layers": 2, "embedding_dim": 8, "heads": 2, "ffn": 12, "max_history": 9, "parts": 4, "codes": 6},
    ),
    "sasrec-narrow-codes": (
        "sasrec",
        {
            "layers": 2,
            "embedding_dim": 8,
            "heads": 2,
            "ffn": 12,
            "max_history": 9,
            "parts": 3,
            "codes": 6,
            "table_dim": 6,
        },
    ),
    "sasrec-low-rank": (
        "sasrec",
        {
            "layers": 2,
            "embedding_dim": 8,
            "heads": 2,
            "ffn": 12,
            "max_history": 9,
            "table_dim": 4,
            "ranks": {"blocks.0.query": 3, "blocks.1.key": 2, "blocks.1.value": 3, "blocks.1.up": 2},
        },
    ),
    "mlp-low-rank": (
        "mlp",
        {"embedding_dim": 8, "hidden": 10, "max_history": 9, "table_dim": 5, "ranks": {"first": 4, "second": 3}},
    ),
    "neumf-no-users": ("neumf", {"embedding_dim": 4, "hidden": 6, "top": 4, "users": False, "max_history": 9}),
    "neumf-described": ("neumf", {"embedding_dim": 4, "hidden": 6, "top": 4, "users": False, "features": True}),
    "neumf-low-rank": ("neumf", {"embedding_dim": 4, "hidden": 6, "top": 4, "ranks": {"from_user": 2, "top": 2}}),
    "mlp": ("mlp", {"embedding_dim": 8, "hidden": 10, "max_history": 9}),
    "two_tower": ("two_tower", {"embedding_dim": 8, "hidden": 10, "max_history": 9}),
    "two_tower-history": ("two_tower", {"embedding_dim": 8, "hidden": 0, "users": False, "max_history": 9}),
    "two_tower-users": ("two_tower", {"embedding_dim": 8, "hidden": 0, "max_history": 0}),
    "two_tower-features": ("two_tower", {"embedding_dim": 8, "hidden": 10, "max_history": 9, "features": True}),
    "two_tower-codes": (
        "two_tower",
        {"embedding_dim": 8, "hidden": 10, "max_history": 9, "features": True, "parts": 2, "codes": 6},
    ),
    "two_tower-low-rank": (
        "two_tower",
        {"embedding_dim": 8, "hidden": 10, "max_history": 9, "widths": [4], "ranks": {"first": 4, "second": 3}},
    ),
    "mlp-features": ("mlp", {"embedding_dim": 8, "hidden": 10, "max_history": 9, "features": True}),
    "mlp-codes": ("mlp", {"embedding_dim": 8, "hidden": 10, "max_history": 9, "parts": 2, "codes": 6}),
}


def _features(rows: int, names: tuple[str, ...], size: int) -> Features:
    codes = np.random.default_rng(1).integers(0, size, (rows, len(names))).astype(np.int32)
    return Features(names, codes, (size,) * len(names))


@pytest.fixture(scope="session")
def split() -> Split:
    """Every user walks through the items in steps of 1 or 2; the last two events are validation and test."""
    draws = np.random.default_rng(0)
    walks = [np.cumsum(draws.integers(1, 3, draws.integers(4, 14))) + draws.integers(N_ITEMS) for _ in range(N_USERS)]
    paths = [(walk % N_ITEMS).astype(np.int32) for walk in walks]
    user = np.repeat(np.arange(N_USERS), [len(path) - 2 for path in paths]).astype(np.int32)
    item = np.concatenate([path[:-2] for path in paths])
    train = Interactions(
        "walks",
        user,
        item,
        np.ones(len(user), np.float32),
        np.arange(len(user), dtype=np.float64),
        tuple(f"u{row}" for row in range(N_USERS)),
        tuple(f"i{row}" for row in range(N_ITEMS)),
        _features(N_USERS, ("age", "job"), 4),
        _features(N_ITEMS, ("genre.0", "genre.1", "decade"), 5),
    )
    return Split("leave_last(1)", train, _queries(paths, 2), _queries(paths, 1), {}, "hash")


def _queries(paths: list[np.ndarray], back: int) -> Queries:
    users = np.arange(len(paths), dtype=np.int32)
    targets = [path[len(path) - back : len(path) - back + 1] for path in paths]
    return Queries(users, Ragged.from_lists([path[:-back] for path in paths]), Ragged.from_lists(targets))


@pytest.fixture(scope="session")
def catalogue(split: Split) -> Catalogue:
    return models.catalogue_of(split)


@pytest.fixture
def make(split: Split) -> Callable[[str], Model]:
    """Builds a variant; solved ones are solved, the others get weights large enough that every part of them matters."""

    def made(name: str) -> Model:
        kind, options = VARIANTS[name]
        torch.manual_seed(0)
        model = models.build(kind, options, models.catalogue_of(split))
        if isinstance(model, models.Solved):
            model.solve(split)
        else:
            with torch.no_grad():
                for weight in models.as_module(model).parameters():
                    weight.add_(0.3 * torch.randn_like(weight))
        models.as_module(model).eval()
        return model

    return made


def requests(model: Model, batch: int = 3, length: int = 5) -> dict[str, torch.Tensor]:
    """Inputs of `batch` requests; the second history is all padding, the first is mostly."""
    generator = torch.Generator().manual_seed(batch * 100 + length)
    history = torch.randint(1, N_ITEMS + 1, (batch, length), generator=generator)
    history[0, : length - 1] = 0
    history[1:2] = 0
    every = {
        "history": history,
        "user": torch.randint(0, N_USERS + 1, (batch,), generator=generator),
        "user_features": torch.randint(0, 4, (batch, 2), generator=generator),
    }
    return {name: every[name] for name in model.inputs}


def rows_of(model: Model, tokens: torch.Tensor) -> torch.Tensor:
    """The item table's rows of these tokens, zeros where 0."""
    table = model.item_vectors().detach()  # type: ignore[attr-defined]
    return torch.cat((torch.zeros(1, table.shape[1]), table))[tokens]


def chosen_matrix(split: Split) -> np.ndarray:
    """Who chose what in training: ones [N_USERS, N_ITEMS]."""
    matrix = np.zeros((N_USERS, N_ITEMS), np.float32)
    matrix[split.train.user, split.train.item] = 1.0
    return matrix

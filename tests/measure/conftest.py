"""A small data set with order in it, and real bundles of it."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from recfit.data.splits import split as split_by
from recfit.types import Interactions, Ragged, Split

USERS, ITEMS, EVENTS = 40, 30, 9


@pytest.fixture(scope="session")
def split() -> Split:
    rng = np.random.default_rng(0)
    user = np.repeat(np.arange(USERS), EVENTS)
    step = np.concatenate([np.arange(EVENTS) + rng.integers(ITEMS) for _ in range(USERS)]) % ITEMS
    order = np.argsort(np.tile(np.arange(EVENTS), USERS), kind="stable")
    interactions = Interactions(
        "walks",
        user[order].astype(np.int32),
        step[order].astype(np.int32),
        np.ones(len(user), np.float32),
        np.arange(len(user), dtype=np.float64),
        tuple(f"user {row}" for row in range(USERS)),
        tuple(f"item {row}" for row in range(ITEMS)),
    )
    return split_by(interactions, "leave_last(n=2)")


@pytest.fixture(scope="session")
def popularity(split):
    return np.bincount(split.train.item, minlength=split.n_items)


def exported(
    split: Split, directory: Path, storage: dict | None = None, keep_histories: bool = True, **changes
) -> Path:
    import torch

    from recfit.export import export, surroundings
    from recfit.models import build, catalogue_of
    from recfit.pipeline import Pipeline, Stage

    torch.manual_seed(0)
    options = {"layers": 1, "embedding_dim": 8, "heads": 2, "ffn": 16, "max_history": 6}
    stage = Stage(build("sasrec", options, catalogue_of(split)), **(storage or {}))
    pipeline = replace(Pipeline(stage), **changes)
    # One event behind the requests, as in a study.
    past = Ragged.from_lists([history[:-1] for history in split.train.histories()])
    around = surroundings(split, past, keep_histories)
    return export(pipeline, around, directory, name="tiny", recipe={"id": "r", "steps": []})


@pytest.fixture(scope="session")
def bundle(split, tmp_path_factory) -> Path:
    return exported(split, tmp_path_factory.mktemp("bundles") / "plain")


@pytest.fixture(scope="session")
def userless_bundle(split, tmp_path_factory) -> Path:
    """The same model without the users: requests bring their histories."""
    return exported(split, tmp_path_factory.mktemp("bundles") / "userless", keep_histories=False)


@pytest.fixture(scope="session")
def cached_bundle(split, tmp_path_factory) -> Path:
    from recfit.pipeline import CachePlan

    return exported(split, tmp_path_factory.mktemp("bundles") / "cached", cache=CachePlan(share=0.5, length=20))


@pytest.fixture(scope="session")
def two_stage_bundle(split, tmp_path_factory) -> Path:
    from recfit.models import build, catalogue_of
    from recfit.pipeline import Stage

    rank = Stage(build("mlp", {"embedding_dim": 4, "hidden": 4, "max_history": 6}, catalogue_of(split)))
    return exported(split, tmp_path_factory.mktemp("bundles") / "two", rank=rank, candidates=12)


@pytest.fixture(scope="session")
def indexed_bundle(split, tmp_path_factory) -> Path:
    storage = {"table": "pq_scan", "table_options": {"k_factor": 1}}
    return exported(split, tmp_path_factory.mktemp("bundles") / "indexed", storage)

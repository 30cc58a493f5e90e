"""Lists that are there before anybody asks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from recfit import bundle
from recfit.engine import Engine
from recfit.export.surroundings import Surroundings
from recfit.pipeline import CachePlan
from recfit.states import items_of, most_frequent, states
from recfit.types import Recommendation, Request


def write_cache(plan: CachePlan, around: Surroundings, directory: Path) -> dict[str, Any]:
    """Precompute the lists of the most frequent keys, asked one by one of the bundle itself."""
    engine = Engine(bundle.open_files(directory))
    length = min(plan.length, len(around.item_ids))
    requests = _active(plan, around) if plan.key == "user" else _seen(plan, around)
    answers = {key: engine.recommend([request], length)[0] for key, request in requests.items()}
    # A fallback list is there already, and no cheaper to find in a cache.
    answers = {key: answer for key, answer in answers.items() if answer.source == "model"}
    rows = {item: row for row, item in enumerate(around.item_ids)}
    keys = "users" if plan.key == "user" else "states"
    _write_lists(keys, answers, rows, length, directory / "cache")
    depth = {} if plan.key == "user" else {"depth": plan.depth}
    return {keys: len(answers), **depth, "length": length, "ttl_seconds": plan.ttl_seconds}


def _active(plan: CachePlan, around: Surroundings) -> dict[int, Request]:
    """A request for each of the most active users, by row."""
    users = most_frequent(around.histories.sizes, plan.share)
    items = around.item_ids
    known = {user: tuple(items[row] for row in around.histories[user].tolist()) for user in users.tolist()}
    return {user: Request(around.user_ids[user], history) for user, history in known.items()}


def _seen(plan: CachePlan, around: Surroundings) -> dict[int, Request]:
    """A request for each of the most frequent last-seen states, by state."""
    n_items = len(around.item_ids)
    found, counts = np.unique(states(around.histories, plan.depth, n_items), return_counts=True)
    kept = found[most_frequent(counts, plan.share)].tolist()
    return {state: Request(history=tuple(around.item_ids[row] for row in items_of(state, n_items))) for state in kept}


def _write_lists(
    keys: str, answers: Mapping[int, Recommendation], rows: Mapping[str, int], length: int, directory: Path
) -> None:
    """The arrays of `bundle.Cache`, by key; `keys` names their file."""
    items = np.full((len(answers), length), -1, dtype=np.int32)
    scores = np.zeros((len(answers), length), dtype=np.float32)
    for line, answer in enumerate(answers.values()):
        items[line, : len(answer.items)] = [rows[item] for item in answer.items]
        scores[line, : len(answer.items)] = answer.scores
    directory.mkdir()
    np.save(directory / f"{keys}.npy", np.array([*answers], dtype=np.int64))
    np.save(directory / "items.npy", items)
    np.save(directory / "scores.npy", scores)

"""Runtimes: one file each, the file's name is its key in a bundle; it runs a stage's model and answers with scores.

A runtime's file offers `open_scorer(directory, stage, threads) -> Scorer`, and, where it does not read a stage as it is
exported, `convert(directory, stage)`, which replaces the files there by what it reads. Where its scorers score single items
by scoring all of them, `RESCORER` names the runtime that takes its place in a second stage. Where it does not run every
format of `graphs/`, `GRAPHS` names those that it runs; where it does not run every stage, `check(kind, table, tied)` raises
`Unsupported` for one that it does not, before anything is trained. `SESSIONS = True` says that its scorers have a
`SessionCache`, `rounds(stage)` that answers depend a little on what runs in the same batch. `OPTIONS` names the settings of
technique `runtime` that it finds in a stage's `options`; others are refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from recfit.registry import find
from recfit.topk import Found
from recfit.types import FloatArray, IntArray, Rows


@dataclass(frozen=True)
class StageSpec:
    """How a stage is stored in a bundle (`pipeline.retrieve` and `pipeline.rank` of the manifest).

    `kind` is `encoder` or `ranker`; `inputs` what its graph takes; `max_history` how much history it reads;
    `tied` that it reads the table's rows of the history; `table` the format and settings of an encoder's table; `alone` that
    requests which run together would change each other's answers, so that each runs alone; `remembers` how many numbers its
    graph leaves of each event, for requests that go on from there (0: it can't).
    """

    kind: str
    runtime: str
    inputs: tuple[str, ...]
    n_items: int
    max_history: int = 0
    tied: bool = False
    table: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    alone: bool = False
    remembers: int = 0


@dataclass(frozen=True)
class Batch:
    """Requests as rows: `users` int64 [B] (user row + 1, 0 unknown), `histories` item rows each oldest first,
    `user_features` codes int64 [B, F] where a stage takes them. B is at least 1."""

    users: IntArray
    histories: Sequence[Rows]
    user_features: IntArray | None = None

    def __len__(self) -> int:
        return len(self.users)

    def only(self, lines: Sequence[int], newest: int) -> Batch:
        """The requests at `lines`, with no more than so many events, at least 1."""
        codes = None if self.user_features is None else self.user_features[lines]
        return Batch(self.users[lines], [self.histories[line][-newest:] for line in lines], codes)

    def tokens(self, max_history: int) -> IntArray:
        """int64 [B, L], left-padded with 0, L the longest history of the batch, at least 1 and at most `max_history`."""
        length = min(max(1, max(map(len, self.histories))), max_history)
        rows = np.full((len(self.histories), length), -1, dtype=np.int64)
        for line, history in zip(rows, self.histories, strict=True):
            kept = history[-length:]
            line[length - len(kept) :] = kept
        return rows + 1

    def inputs(self, spec: StageSpec) -> dict[str, IntArray]:
        """The arrays that the stage's model takes, by name."""
        arrays: dict[str, IntArray] = {}
        if "history" in spec.inputs:
            arrays["history"] = self.tokens(spec.max_history)
        if "user" in spec.inputs:
            arrays["user"] = self.users
        if "user_features" in spec.inputs and self.user_features is not None:
            arrays["user_features"] = self.user_features
        return arrays


class SessionCache(Protocol):
    """What a scorer keeps of histories for the requests that go on from them; its `sessions`, where its stage `remembers`."""

    bytes: int
    hits: int
    misses: int

    def limit(self, most_bytes: int) -> None:
        """Keep no more than that, from now on; nothing is kept before."""
        ...


class Rescorer(Protocol):
    """A stage, ready to judge given items. It answers with new arrays, which the caller may write to."""

    def rescore(self, batch: Batch, candidates: IntArray) -> FloatArray:
        """The scores of candidate rows int64 [B, C], float32 [B, C]; row -1 is padding and may score anything."""
        ...


class Scorer(Rescorer, Protocol):
    """A stage that finds the best items too."""

    def top(self, batch: Batch, k: int, gone: Sequence[Rows]) -> list[Found]:
        """For every request its `k` >= 1 best items that are not in its `gone`; fewer where there are no more."""
        ...


def rounds_by_batch(spec: StageSpec) -> bool:
    """Whether answers of the runtime of `spec` depend a little on what runs in the same batch."""
    rounds = getattr(find("runtimes", spec.runtime), "rounds", None)
    return bool(rounds and rounds(spec))

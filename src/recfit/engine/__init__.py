"""The request path: the only code that answers a request, in measurement and in production. No torch here, ever."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from recfit import bundle as bundles
from recfit.engine.topk import mask, top_k
from recfit.registry import find
from recfit.runtimes import Batch, Scorer
from recfit.types import FloatArray, IntArray, Recommendation, Request, Rows

_NONE = np.empty(0, np.int32)


class Engine:
    """Answers requests from one bundle. Thread-safe; scoring releases the interpreter lock inside the runtime."""

    def __init__(self, bundle: bundles.Bundle) -> None:
        self.bundle = bundle
        self._user_rows = {user: row for row, user in enumerate(bundle.user_ids)}
        self._item_rows = {item: row for row, item in enumerate(bundle.item_ids)}
        retrieve = self._open("retrieve")
        assert retrieve is not None
        self._retrieve = retrieve
        self._rank = self._open("rank")
        self._user_based = self._needs_only_the_user()
        self._opened = time.monotonic()

    @property
    def manifest(self) -> Mapping[str, Any]:
        return self.bundle.manifest

    def known_user(self, user_id: str) -> bool:
        return user_id in self._user_rows

    def known_item(self, item_id: str) -> bool:
        return item_id in self._item_rows

    def title(self, item_id: str) -> str | None:
        row = self._item_rows.get(item_id)
        return None if row is None or self.bundle.titles is None else self.bundle.titles[row]

    def warm_up(self, rounds: int = 20) -> None:
        """Run the whole path a few times so that the first caller does not pay for it."""
        lengths = np.linspace(1, 50, rounds).astype(int)
        for length in lengths:
            self.recommend([Request(history=tuple(self.bundle.item_ids[:length]))])

    def recommend(self, requests: Sequence[Request], k: int = 10) -> list[Recommendation]:
        """The `k` best unseen items for every request, best first; fewer where the catalogue has no more."""
        answers: list[Recommendation | None] = [None] * len(requests)
        users = [self._user_rows.get(r.user_id, -1) if r.user_id is not None else -1 for r in requests]
        histories = [self._history(request, user) for request, user in zip(requests, users, strict=True)]
        excluded = [self._rows(request.exclude) for request in requests]
        scored: list[int] = []
        for at, user in enumerate(users):
            answers[at] = self._cached(user, histories[at], excluded[at], k)
            if answers[at] is None and (len(histories[at]) == 0 and not (self._user_based and user >= 0)):
                answers[at] = self._fallback(excluded[at], k)
            if answers[at] is None:
                scored.append(at)
        if scored:
            batch = self._batch([users[at] for at in scored], [histories[at] for at in scored])
            found = self.top_k(batch, [excluded[at] for at in scored], k)
            for at, (rows, scores) in zip(scored, found, strict=True):
                answers[at] = self._answer(rows, scores, "model")
        return [answer for answer in answers if answer is not None]

    def top_k(self, batch: Batch, excluded: Sequence[Rows], k: int) -> list[tuple[IntArray, FloatArray]]:
        """Item rows and scores of the `k` best unseen, not excluded items for each request of `batch`."""
        scores = self._retrieve.scores(batch)
        if not scores.flags.writeable:
            scores = scores.copy()
        for row, (history, out) in enumerate(zip(batch.histories, excluded, strict=True)):
            mask(scores[row], history, out)
        if self._rank is None:
            return [top_k(line, k) for line in scores]
        return self._ranked(batch, scores, k)

    def _ranked(self, batch: Batch, scores: FloatArray, k: int) -> list[tuple[IntArray, FloatArray]]:
        assert self._rank is not None
        width = min(max(self.bundle.candidates, k), self.bundle.n_items)
        candidates = np.full((len(batch), width), -1, dtype=np.int64)
        for row, line in enumerate(scores):
            rows, _ = top_k(line, width)
            candidates[row, : len(rows)] = rows
        again = self._rank.rescore(batch, candidates).astype(np.float32, copy=True)
        again[candidates < 0] = -np.inf
        found = []
        for line, items in zip(again, candidates, strict=True):
            at, best = top_k(line, k)
            found.append((items[at], best))
        return found

    def _open(self, name: str) -> Scorer | None:
        spec = self.bundle.stage(name)
        if spec is None:
            return None
        module = find("runtimes", spec.runtime)
        scorer: Scorer = module.open_scorer(self.bundle.directory / name, spec, self.bundle.threads)
        return scorer

    def _needs_only_the_user(self) -> bool:
        spec = self.bundle.stage("retrieve")
        assert spec is not None
        return "history" not in spec.inputs

    def _history(self, request: Request, user: int) -> Rows:
        if request.history is not None:
            return self._rows(request.history)
        return self.bundle.histories[user] if user >= 0 else _NONE

    def _rows(self, ids: Sequence[str]) -> Rows:
        """Rows of the known ids; unknown ones carry no signal and are skipped."""
        get = self._item_rows.get
        return np.array([row for item in ids if (row := get(item)) is not None], dtype=np.int32)

    def _batch(self, users: Sequence[int], histories: Sequence[Rows]) -> Batch:
        rows = np.array(users, dtype=np.int64)
        features = self.bundle.user_features
        codes = None if features is None else np.where(rows[:, None] >= 0, features.codes[rows], 0).astype(np.int64)
        return Batch(rows + 1, histories, codes)

    def _cached(self, user: int, history: Rows, excluded: Rows, k: int) -> Recommendation | None:
        cache = self.bundle.cache
        if cache is None or user < 0 or time.monotonic() - self._opened > cache.ttl_seconds:
            return None
        at = cache.find(user)
        if at is None:
            return None
        items = cache.items[at]
        keep = (items >= 0) & ~np.isin(items, np.concatenate((history, excluded)))
        rows = items[keep][:k]
        if len(rows) < min(k, self.bundle.n_items - len(history) - len(excluded)):
            return None
        return self._answer(rows, cache.scores[at][keep][:k], "cache")

    def _fallback(self, excluded: Rows, k: int) -> Recommendation:
        items = self.bundle.fallback
        rows = items[~np.isin(items, excluded)][:k]
        return self._answer(rows, -np.arange(len(rows), dtype=np.float32), "fallback")

    def _answer(self, rows: IntArray | Rows, scores: FloatArray, source: str) -> Recommendation:
        ids = self.bundle.item_ids
        return Recommendation(tuple([ids[row] for row in rows.tolist()]), tuple(scores.tolist()), source)


def open_bundle(path: Path | str) -> Engine:
    """Verify the bundle at `path` and make it ready to answer. Raises `BundleError` for a damaged one."""
    return Engine(bundles.open_files(path))

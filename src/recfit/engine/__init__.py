"""The request path: the only code that answers a request, in measurement and in production. No torch here, ever."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from recfit import bundle as bundles
from recfit.registry import find
from recfit.runtimes import Batch, Rescorer, Scorer, StageSpec
from recfit.topk import Found, best, first, top_k
from recfit.types import BundleError, ConfigError, FloatArray, IntArray, Recommendation, Request, Rows

_NONE = np.empty(0, np.int32)
_NO_ROWS = np.empty(0, np.int64)
# Items that `exhaustive` scores in one run: bounds the memory of their rows.
CHUNK = 32_768


class Asked(NamedTuple):
    """A request as rows: the user's (-1 unknown), the history, oldest first, and what must not be shown besides."""

    user: int
    history: Rows
    excluded: Rows


class Engine:
    """Answers requests from one bundle. Thread-safe; scoring releases the interpreter lock inside the runtime."""

    def __init__(self, bundle: bundles.Bundle) -> None:
        self.bundle = bundle
        self._user_rows = {user: row for row, user in enumerate(bundle.user_ids)}
        self._item_rows = {item: row for row, item in enumerate(bundle.item_ids)}
        stages = bundle.stages
        self._retrieve: Scorer = _opened(bundle, "retrieve")
        self._rank: Rescorer | None = _opened(bundle, "rank") if "rank" in stages else None
        self._reads_history = "history" in stages["retrieve"].inputs
        self._codes = _feature_codes(bundle, stages)
        self._cache_ends = 0.0 if bundle.cache is None else _created(bundle) + bundle.cache.ttl_seconds

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
            request = Request(history=self.bundle.item_ids[:length])
            self.recommend([request])
            self._scored([self._asked(request)], 10)  # a cache may have answered

    def recommend(self, requests: Sequence[Request], k: int = 10) -> list[Recommendation]:
        """The `k` >= 1 best unseen items for every request, best first; fewer where the catalogue has no more."""
        if k < 1:
            raise ConfigError(f"k = {k}; ask for at least 1 item")
        asked = [self._asked(request) for request in requests]
        ready = [self._cached(one, k) or self._fallback(one, k) for one in asked]
        scored = iter(self._scored([one for one, answer in zip(asked, ready, strict=True) if answer is None], k))
        return [answer or next(scored) for answer in ready]

    def _asked(self, request: Request) -> Asked:
        user = -1 if request.user_id is None else self._user_rows.get(request.user_id, -1)
        if request.history is not None:
            history = self._rows(request.history)
        else:
            history = self.bundle.histories[user] if user >= 0 else _NONE
        return Asked(user, history, self._rows(request.exclude) if request.exclude else _NONE)

    def _rows(self, ids: Sequence[str]) -> Rows:
        """Rows of the known ids; unknown ones carry no signal and are skipped."""
        get = self._item_rows.get
        return np.array([row for item in ids if (row := get(item)) is not None], np.int32)

    def _cached(self, asked: Asked, k: int) -> Recommendation | None:
        """The precomputed list of the user, or of what was last seen, less what was seen or excluded; None if it is too
        old or too short."""
        cache = self.bundle.cache
        if cache is None or time.time() > self._cache_ends:
            return None
        line = cache.find(asked.user, asked.history)
        if line is None:
            return None
        at = first(cache.items[line], k, asked.history, asked.excluded)
        return self._answer(cache.items[line][at], cache.scores[line][at], "cache") if len(at) == k else None

    def _fallback(self, asked: Asked, k: int) -> Recommendation | None:
        """The most popular items for a request that tells the model nothing, else None."""
        if len(asked.history) or (asked.user >= 0 and not self._reads_history):
            return None
        items = self.bundle.fallback[: k + len(asked.excluded)]
        rows = items[first(items, k, asked.excluded)]
        return self._answer(rows, -np.arange(len(rows), dtype=np.float32), "fallback")

    def _scored(self, asked: Sequence[Asked], k: int) -> list[Recommendation]:
        if not asked:
            return []
        batch, gone = self._batch(asked), [_gone(one) for one in asked]
        found = self._retrieve.top(batch, self._width(k), gone)
        if self._rank is not None:
            found = self._ranked(batch, found, k)
        return [self._answer(rows, scores, "model") for rows, scores in found]

    def _width(self, k: int) -> int:
        """How many items the first stage finds for a list of `k`."""
        return k if self._rank is None else min(max(self.bundle.candidates, k), self.bundle.n_items)

    def score(self, request: Request, items: Sequence[str]) -> FloatArray:
        """What the deciding stage gives each of `items`, seen or not, float32 [len(items)]; NaN for an item that is not
        known, and for all where the request tells the model nothing. Raises `ConfigError` where the runtime gives whole
        lists only."""
        asked = self._asked(request)
        rows = np.array([[self._item_rows.get(item, -1) for item in items]], np.int64)
        if not items or self._fallback(asked, 1):
            return np.full(len(items), np.nan, np.float32)
        decides: Any = self._rank or self._retrieve
        if not hasattr(decides, "rescore"):
            name = self.bundle.stages["retrieve"].runtime
            raise ConfigError(f"runtime {name!r} finds the best items and scores no single ones; export it for 'ort'")
        found: FloatArray = decides.rescore(self._batch([asked]), np.maximum(rows, 0))[0]
        return np.where(rows[0] >= 0, found, np.float32(np.nan))

    def candidates(self, request: Request, k: int = 10) -> IntArray:
        """The item rows that reach the deciding stage for a list of `k`; none where no model answers."""
        asked = self._asked(request)
        if self._fallback(asked, k):
            return _NO_ROWS
        return self._retrieve.top(self._batch([asked]), self._width(k), [_gone(asked)])[0][0]

    def exhaustive(self, request: Request, k: int = 10) -> IntArray:
        """The item rows of the list that the deciding stage gives if all items reach it; none where no model answers."""
        asked = self._asked(request)
        if self._fallback(asked, k):
            return _NO_ROWS
        batch, rows = self._batch([asked]), np.arange(self.bundle.n_items)[None]
        decides: Any = self._rank or self._retrieve
        parts = [decides.rescore(batch, rows[:, at : at + CHUNK]) for at in range(0, rows.shape[1], CHUNK)]
        return best(np.concatenate(parts, axis=1), k, [_gone(asked)])[0][0]

    def _ranked(self, batch: Batch, retrieved: Sequence[Found], k: int) -> list[Found]:
        """The best of what the first stage found, re-scored by the second."""
        assert self._rank is not None
        width = max(1, *[len(rows) for rows, _ in retrieved])
        candidates = np.full((len(batch), width), -1, dtype=np.int64)
        for line, (rows, _) in zip(candidates, retrieved, strict=True):
            line[: len(rows)] = np.sort(rows)  # ascending, so that ties go to the lower row here too
        again = self._rank.rescore(batch, candidates)
        again[candidates < 0] = -np.inf
        kept = [top_k(line, k) for line in again]
        return [(line[at], values) for line, (at, values) in zip(candidates, kept, strict=True)]

    def _batch(self, asked: Sequence[Asked]) -> Batch:
        users = np.array([one.user for one in asked], dtype=np.int64)
        codes = None
        if self._codes is not None:
            codes = np.where(users[:, None] >= 0, self._codes[users], 0).astype(np.int64)
        return Batch(users + 1, [one.history for one in asked], codes)

    def _answer(self, rows: IntArray | Rows, scores: FloatArray, source: str) -> Recommendation:
        ids = self.bundle.item_ids
        return Recommendation(tuple([ids[row] for row in rows.tolist()]), tuple(scores.tolist()), source)


def _gone(asked: Asked) -> Rows:
    """What must not be shown."""
    return np.concatenate((asked.history, asked.excluded)) if len(asked.excluded) else asked.history


def open_bundle(path: Path | str) -> Engine:
    """Verify the bundle at `path` and make it ready to answer. Raises `BundleError` for a damaged one."""
    return Engine(bundles.open_files(path))


def _opened(bundle: bundles.Bundle, name: str) -> Any:
    spec = bundle.stages[name]
    try:
        return find("runtimes", spec.runtime).open_scorer(bundle.directory / name, spec, bundle.threads)
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise BundleError(f"stage {name!r} of {bundle.directory} can't be opened: {error}; export it again") from error


def _feature_codes(bundle: bundles.Bundle, stages: Mapping[str, StageSpec]) -> Rows | None:
    """The users' feature codes where a stage takes them."""
    if not any("user_features" in spec.inputs for spec in stages.values()):
        return None
    if bundle.user_features is None:
        raise BundleError(f"a stage of {bundle.directory} takes user features and the bundle has none; export it again")
    return bundle.user_features.codes


def _created(bundle: bundles.Bundle) -> float:
    """When the bundle, and every list in its cache, was made: seconds since 1970."""
    return datetime.fromisoformat(bundle.manifest["created"]).timestamp()

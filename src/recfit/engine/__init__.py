"""The request path: the only code that answers a request, in measurement and in production. No torch here, ever."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from recfit import bundle as bundles
from recfit.engine._reading import Asked, Reader
from recfit.engine._similar import Neighbours, neighbours
from recfit.registry import find
from recfit.runtimes import Batch, Rescorer, Scorer, SessionCache, StageSpec
from recfit.topk import Found, best, first, top_k
from recfit.types import BundleError, ConfigError, FloatArray, IntArray, Recommendation, Request, RequestContext, Rows

_NO_ROWS = np.empty(0, np.int64)
# Items that `exhaustive` scores in one run: bounds the memory of their rows.
CHUNK = 32_768


class Engine:
    """Answers requests from one bundle. Thread-safe; scoring releases the interpreter lock inside the runtime."""

    def __init__(self, bundle: bundles.Bundle) -> None:
        self.bundle = bundle
        try:
            self._read = Reader(bundle)
        except UnicodeDecodeError as error:  # of ids that are mapped, which nothing has read before
            raise BundleError(f"the ids of {bundle.directory} can't be read: {error}; export it again") from error
        stages = bundle.stages
        self._retrieve: Scorer = _opened(bundle, "retrieve")
        self._rank: Rescorer | None = _opened(bundle, "rank") if "rank" in stages else None
        scorers = (self._retrieve, self._rank)
        self.sessions: Sequence[SessionCache] = [
            kept for scorer in scorers if (kept := getattr(scorer, "sessions", None)) is not None
        ]
        self._alone = any(spec.alone for spec in stages.values())
        self._reads_history, self._reads_features = (
            name in stages["retrieve"].inputs for name in ("history", "user_features")
        )
        self._codes = _feature_codes(bundle, stages)
        self._cache_ends = 0.0 if bundle.cache is None else _created(bundle) + bundle.cache.ttl_seconds

    @property
    def manifest(self) -> Mapping[str, Any]:
        return self.bundle.manifest

    def known_user(self, user_id: str) -> bool:
        return user_id in self._read.users

    def known_item(self, item_id: str) -> bool:
        return item_id in self._read.items

    def title(self, item_id: str) -> str | None:
        row = self._read.items.get(item_id)
        return None if row is None or self.bundle.titles is None else self.bundle.titles[row]

    @property
    def context_names(self) -> Sequence[str]:
        """The features that a request's context may give a value."""
        return self._read.vocabulary.names

    def refusal(self, context: RequestContext | None) -> str:
        """Why a request with this context raises `ConfigError`; empty where it does not."""
        return self._read.vocabulary.refusal(context)

    def keep_sessions(self, most_mb: float) -> None:
        """Go on, for a request whose history starts with one that was asked, from what was worked out then. Stages whose
        graphs can (none: this changes nothing) share `most_mb`."""
        for kept in self.sessions:
            kept.limit(int(most_mb * 2**20 / len(self.sessions)))

    def warm_up(self, rounds: int = 20) -> None:
        """Run the whole path a few times so that the first caller does not pay for it."""
        lengths = np.linspace(1, 50, rounds).astype(int)
        for length in lengths:
            request = Request(history=tuple(self.bundle.item_ids[:length]))
            self.recommend([request])
            self._scored([self._read.asked(request)], 10, {})  # a cache may have answered

    def recommend(
        self, requests: Sequence[Request], k: int = 10, *, spent: dict[str, float] | None = None
    ) -> list[Recommendation]:
        """The `k` >= 1 best unseen items for every request, best first; fewer where the catalogue has no more. Raises
        `ConfigError` for a context that the bundle cannot read.

        `spent`, where it is given, is filled with the milliseconds of every stage that ran.
        """
        if k < 1:
            raise ConfigError(f"k = {k}; ask for at least 1 item")
        asked = [self._read.asked(request) for request in requests]
        ready = [self._ready(one, k) for one in asked]
        left = [one for one, answer in zip(asked, ready, strict=True) if answer is None]
        scored = iter(self._scored(left, k, {} if spent is None else spent))
        return [answer or next(scored) for answer in ready]

    def _ready(self, asked: Asked, k: int) -> Recommendation | None:
        """An answer that needs no scan of the catalogue, if there is one."""
        return self._cached(asked, k) or self._fallback(asked, k) or self._judged(asked, k)

    def _cached(self, asked: Asked, k: int) -> Recommendation | None:
        """The precomputed list of the user, or of what was last seen, less what was seen or excluded; None if it is too
        old or too short."""
        cache = self.bundle.cache
        if cache is None or asked.only is not None or time.time() > self._cache_ends:
            return None
        if asked.context is not None or (asked.fresh and not cache.depth):  # the list knows nothing of it
            return None
        line = cache.find(asked.user, asked.history)
        if line is None:
            return None
        at = first(cache.items[line], k, asked.history, asked.excluded)
        return self._answer(cache.items[line][at], cache.scores[line][at], "cache") if len(at) == k else None

    def _fallback(self, asked: Asked, k: int) -> Recommendation | None:
        """The most popular items for a request that tells the model nothing, else None."""
        if len(asked.history) or (asked.user >= 0 and not self._reads_history) or (asked.told and self._reads_features):
            return None
        items = self.bundle.fallback
        items = items[: k + len(asked.excluded)] if asked.only is None else items[np.isin(items, asked.only)]
        rows = items[first(items, k, asked.excluded)]
        return self._answer(rows, -np.arange(len(rows), dtype=np.float32), "fallback")

    def _judged(self, asked: Asked, k: int) -> Recommendation | None:
        """The best of the items that the request names, by the deciding stage."""
        if asked.only is None:
            return None
        rows = np.setdiff1d(asked.only, asked.gone).astype(np.int64)
        if not len(rows):
            return self._answer(rows, np.empty(0, np.float32), "model")
        at, scores = top_k(self._decides.rescore(self._batch([asked]), rows[None])[0], k)
        return self._answer(rows[at], scores, "model")

    @property
    def _decides(self) -> Rescorer:
        """The stage that has the last word."""
        return self._rank or self._retrieve

    def _scored(self, asked: Sequence[Asked], k: int, spent: dict[str, float]) -> list[Recommendation]:
        if not asked:
            return []
        if self._alone and len(asked) > 1:
            return [self._scored([one], k, spent)[0] for one in asked]
        begin = time.perf_counter()
        batch, gone = self._batch(asked), [one.gone for one in asked]
        found = self._retrieve.top(batch, self._width(k), gone)
        spent["retrieve"] = (time.perf_counter() - begin) * 1e3
        if self._rank is not None:
            found = self._ranked(batch, found, k)
            spent["rank"] = (time.perf_counter() - begin) * 1e3 - spent["retrieve"]
        return [self._answer(rows, scores, "model") for rows, scores in found]

    def _width(self, k: int) -> int:
        """How many items the first stage finds for a list of `k`."""
        return k if self._rank is None else min(max(self.bundle.candidates, k), self.bundle.n_items)

    def score(self, request: Request, items: Sequence[str]) -> FloatArray:
        """What the deciding stage gives each of `items`, seen or not, float32 [len(items)]; NaN for an item that is not
        known, and for all where the request tells the model nothing."""
        asked = self._read.asked(request)
        rows = np.array([[self._read.items.get(item, -1) for item in items]], np.int64)
        if not items or self._fallback(asked, 1):
            return np.full(len(items), np.nan, np.float32)
        found: FloatArray = self._decides.rescore(self._batch([asked]), np.maximum(rows, 0))[0]
        return np.where(rows[0] >= 0, found, np.float32(np.nan))

    def similar(self, item_id: str, k: int = 10) -> Recommendation:
        """The `k` items most like this one, best first: by the cosine of their vectors, or, where the model has none, as the
        next item of somebody who has seen nothing else. None for an item that is not known."""
        row = self._read.items.get(item_id)
        if row is None:
            return Recommendation((), (), "fallback")
        if self._neighbours is None:
            return self.recommend([Request(history=(item_id,))], k)[0]
        return self._answer(*self._neighbours.nearest(row, k), "model")

    @cached_property
    def _neighbours(self) -> Neighbours | None:
        return neighbours(self.bundle)

    def candidates(self, request: Request, k: int = 10) -> IntArray:
        """The item rows that reach the deciding stage for a list of `k`; none where no model answers."""
        asked = self._read.asked(request)
        if self._fallback(asked, k):
            return _NO_ROWS
        return self._retrieve.top(self._batch([asked]), self._width(k), [asked.gone])[0][0]

    def exhaustive(self, request: Request, k: int = 10) -> IntArray:
        """The item rows of the list that the deciding stage gives if all items reach it; none where no model answers."""
        asked = self._read.asked(request)
        if self._fallback(asked, k):
            return _NO_ROWS
        batch, rows = self._batch([asked]), np.arange(self.bundle.n_items)[None]
        parts = [self._decides.rescore(batch, rows[:, at : at + CHUNK]) for at in range(0, rows.shape[1], CHUNK)]
        return best(np.concatenate(parts, axis=1), k, [asked.gone])[0][0]

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
            for line, one in zip(codes, asked, strict=True):
                if one.context is not None:
                    np.copyto(line, one.context, where=one.context >= 0)
        return Batch(users + 1, [one.history for one in asked], codes)

    def _answer(self, rows: IntArray | Rows, scores: FloatArray, source: str) -> Recommendation:
        ids = self.bundle.item_ids
        return Recommendation(tuple([ids[row] for row in rows.tolist()]), tuple(scores.tolist()), source)


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

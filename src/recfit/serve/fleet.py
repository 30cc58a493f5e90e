"""Bundles by name. A name answers from one bundle, or a ladder of them; others take their place once they are loaded,
verified and warm.

Requests that have begun keep the bundle they began with, so that no answer mixes two.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import logging
import math
import time
import timeit
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

from recfit.engine import open_bundle
from recfit.serve.batcher import BUDGET_S, Batcher, Recommender
from recfit.serve.schema import HttpError
from recfit.types import RecfitError, Request

log = logging.getLogger("recfit.serve")

DEFAULT = "default"
QUALITY = "ndcg@10"
SHED_S = 1.0
TIMED = 5
"""Answers to the canary at first; the fastest says what an answer costs."""
AGAIN_S = 5.0
"""For so long after a model could not be loaded nobody waits for another try."""
Paths = Mapping[str, Sequence[Path]]
"""The bundles behind names, the best first."""


class Served:
    """One open bundle. Raises whatever its first recommendations raise: what can't answer is not served."""

    def __init__(self, engine: Recommender) -> None:
        self.engine = engine
        self.bundle: str = engine.manifest["bundle_id"]
        promise = engine.manifest.get("promise") or {}
        self.quality: float | None = promise.get("metrics", {}).get(QUALITY)
        # A request that needs the model: its history is the answer to an empty one.
        self.canary = Request(history=engine.recommend([Request(history=())], 5)[0].items)
        self.cost_s = min(timeit.repeat(lambda: engine.recommend([self.canary]), number=1, repeat=TIMED))


class Model:
    """What answers under a name: its bundles, the best first, where they lie (nothing for those that were given open), the
    line in front of them, when it was used last, and the megabytes by which the process grew with it. `bundles` are the ids of
    all."""

    def __init__(
        self, rungs: Sequence[Served], paths: Sequence[Path], threads: int, shed_s: float, budget_s: float
    ) -> None:
        self.rungs, self.paths, self.batcher = tuple(rungs), tuple(paths), Batcher(rungs, threads, shed_s, budget_s)
        self.ladder, self.used, self.mb = self.batcher.ladder, time.monotonic(), 0.0
        self.bundles = " ".join(served.bundle for served in rungs)

    def keep_sessions(self, most_mb: float) -> None:
        """Let the engine of each bundle keep so much of sessions."""
        for served in self.rungs:
            served.engine.keep_sessions(most_mb)

    @property
    def best(self) -> Served:
        return self.rungs[0]


def opened(path: Path) -> Recommender:
    """The engine of a bundle, verified and warm."""
    engine = open_bundle(path)
    engine.warm_up()
    return engine


def untold(paths: Paths) -> None:
    """Nobody wants to know what was swapped."""


def settle() -> None:
    """Take what lives now out of the garbage collector's rounds for good: with all modules in them a full one lasts 11 ms, in
    which nobody is answered. A bundle that leaves needs no collector, since nothing in it points back; its memory is given
    back here, for glibc keeps it in pieces that the next one does not fit in."""
    gc.collect()  # only what came since the last time
    gc.freeze()
    with suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL("libc.so.6").malloc_trim(0)


class Fleet:
    """`paths` are the bundles that names stand for, loaded when they are asked for first, those in `preload` at once (a bundle
    that can't be raises `RecfitError`); `most_mb` bounds the resident memory of the process, at which the model that was used
    least recently leaves (never the default one; 0: no bound). Models of several bundles keep `budget_s` by answering from
    cheaper ones; who would wait longer than `shed_s` is sent away. Every bundle that answers keeps up to `session_mb` of
    sessions. After every swap and rollback `swapped` is told what names stand for, the default one too."""

    def __init__(
        self,
        default: Sequence[Recommender],
        *,
        threads: int = 0,
        paths: Paths | None = None,
        preload: Sequence[str] = (),
        most_mb: float = 0.0,
        budget_s: float = BUDGET_S,
        shed_s: float = SHED_S,
        session_mb: float = 0.0,
        open_engine: Callable[[Path], Recommender] = opened,
        swapped: Callable[[Paths], None] = untold,
    ) -> None:
        self._threads, self._open, self._most_mb, self._swapped = threads, open_engine, most_mb, swapped
        self._budget_s, self._shed_s, self._session_mb = budget_s, shed_s, session_mb
        self._process, self._paths = psutil.Process(), dict(paths or {})
        self._loaded = {
            DEFAULT: self._model(default, ()),
            **{name: self._opened(self._paths[name]) for name in preload},
        }
        settle()
        self._previous: dict[str, Model] = {}
        self._locks: dict[str, asyncio.Lock] = {}
        self._failed: dict[str, float] = {}

    def _model(self, engines: Sequence[Recommender], paths: Sequence[Path]) -> Model:
        model = Model([Served(engine) for engine in engines], paths, self._threads, self._shed_s, self._budget_s)
        model.keep_sessions(self._session_mb)
        return model

    @property
    def names(self) -> list[str]:
        """All that can be asked for."""
        return list(dict.fromkeys((*self._loaded, *self._paths)))

    @property
    def loaded(self) -> Mapping[str, Model]:
        return self._loaded

    def oldest_s(self) -> float:
        """For how long the request that waits longest has been waiting."""
        return max(model.batcher.oldest_s() for model in self._loaded.values())

    async def get(self, name: str | None, field: str = "model") -> Model:
        """What answers for `name` (None: the default one). Raises `HttpError` for a name that is not known, which says the
        `field` of the request that it was in."""
        model = self._loaded.get(name or DEFAULT)
        if model is None:
            model = await self._first(name or DEFAULT, field)
        model.used = time.monotonic()
        return model

    async def _first(self, name: str, field: str) -> Model:
        if name not in self._paths:
            known = ", ".join(self.names)
            raise HttpError(404, "unknown_model", f"there is no model {name[:100]!r}; there are: {known}", field)
        async with self._lock(name):  # who else asks waits for the same
            if name not in self._loaded and time.monotonic() >= self._failed.get(name, -math.inf) + AGAIN_S:
                try:
                    await self._put(name, self._paths[name])
                except RecfitError as error:
                    self._failed[name] = time.monotonic()
                    log.error("model %s cannot be loaded: %s", name, error)
            if name not in self._loaded:
                message = f"model {name!r} cannot be loaded; the server's log says why"
                raise HttpError(503, "model_unavailable", message, field)
            return self._loaded[name]

    async def swap(self, name: str, paths: Sequence[Path]) -> Model:
        """Let the bundles at `paths` answer for `name`, which may be new. On an error the old ones go on. Raises
        `RecfitError`."""
        async with self._lock(name):
            await self._put(name, paths)
            self._now_at(name)
            return self._loaded[name]

    async def rollback(self, name: str) -> Model:
        """Let what was there before answer for `name` again, at once. Raises `HttpError` where there is none."""
        async with self._lock(name):
            if name not in self._previous:
                message = f"there was no other bundle behind {name[:100]!r} since the server started; load one"
                raise HttpError(409, "nothing_to_roll_back", message)
            self._loaded[name], self._previous[name] = self._previous[name], self._loaded[name]
            self._loaded[name].keep_sessions(self._session_mb)
            self._previous[name].keep_sessions(0)
            self._now_at(name)
            return self._loaded[name]

    def _now_at(self, name: str) -> None:
        """From now on `name` stands for the bundles that answer for it."""
        self._paths[name] = self._loaded[name].paths
        self._swapped(dict(self._paths))

    def unload(self, name: str) -> None:
        """Forget the open bundle of `name`; the next request for it loads it again. The default one stays. Raises `HttpError`
        for it, and for a name that is not known."""
        if name == DEFAULT:
            raise HttpError(409, "default_stays", "the default model can be swapped, not unloaded")
        if name not in self.names:
            loaded = ", ".join(self._loaded)
            raise HttpError(404, "unknown_model", f"there is no model {name[:100]!r}; loaded are: {loaded}", "model")
        self._loaded.pop(name, None)
        self._previous.pop(name, None)
        settle()

    async def _put(self, name: str, paths: Sequence[Path]) -> None:
        model = await asyncio.to_thread(self._opened, paths)
        if old := self._loaded.get(name):
            self._previous[name] = old
            old.keep_sessions(0)
        self._loaded[name] = model
        self._failed.pop(name, None)
        settle()
        log.warning("model %s answers from %s", name, ", ".join(served.bundle for served in model.rungs))
        self._make_room(name)

    def _opened(self, paths: Sequence[Path]) -> Model:
        before = self._mb()
        try:
            model = self._model([self._open(path) for path in paths], paths)
        except RecfitError:
            raise
        except Exception as error:
            shown = ", ".join(map(str, paths))
            raise RecfitError(f"a bundle of {shown} does not answer: {error}; export it again") from error
        model.mb = max(0.0, self._mb() - before)
        return model

    def _make_room(self, name: str) -> None:
        """Unload what was used least recently while the process holds too much, as far as is known of what each took: a bundle
        that still answers somebody gives its memory back later."""
        over = self._mb() - self._most_mb if self._most_mb else 0.0
        others = sorted((model.used, other) for other, model in self._loaded.items() if other not in (DEFAULT, name))
        for _, other in others:
            if over <= 0:
                return
            log.warning("model %s is unloaded: the process holds more than %g MB", other, self._most_mb)
            over -= self._loaded[other].mb
            self.unload(other)

    def _mb(self) -> float:
        """Resident memory of the process."""
        return float(self._process.memory_info().rss) / 1e6

    def _lock(self, name: str) -> asyncio.Lock:
        return self._locks.setdefault(name, asyncio.Lock())

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
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from contextvars import Context
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import psutil

from recfit.engine import open_bundle
from recfit.serve.batcher import BUDGET_S, Batcher, LateError
from recfit.serve.batches import Recommender, outcomes
from recfit.serve.lately import Asked, Lately, replay
from recfit.serve.ready import Readiness
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
        self.canary = _canary(engine)
        self.cost_s = min(timeit.repeat(lambda: engine.recommend([self.canary]), number=1, repeat=TIMED))


def _canary(engine: Recommender) -> Request:
    """A request that needs the model: its history is the answer to an empty one, and what a list that was made ahead has for
    such a history is excluded."""
    asked = Request(history=engine.recommend([Request(history=())], 5)[0].items)
    while (found := engine.recommend([asked])[0]).source == "cache" and not {*found.items} <= {*asked.exclude}:
        asked = replace(asked, exclude=(*asked.exclude, *found.items))
    return asked


class Model:
    """What answers under a name: its bundles, the best first, where they lie (nothing for those that were given open), the
    line in front of them, when it was used last, and the megabytes by which the process grew with it. `bundles` are the ids of
    all."""

    def __init__(self, rungs: Sequence[Served], paths: Sequence[Path], batcher: Batcher) -> None:
        self.rungs, self.paths, self.batcher = tuple(rungs), tuple(paths), batcher
        self.ready = Readiness(batcher, [served.canary for served in rungs])
        self.ladder, self.used, self.mb = self.batcher.ladder, time.monotonic(), 0.0
        self.bundles = " ".join(served.bundle for served in rungs)

    def keep_sessions(self, most_mb: float) -> None:
        """Let the engine of each bundle keep so much of sessions."""
        for served in self.rungs:
            served.engine.keep_sessions(most_mb)

    def warm_up(self, asked: Sequence[Asked]) -> None:
        """Let each bundle answer what was asked of others; what fails does so for whom it is."""
        for rung, served in enumerate(self.rungs):
            replay(asked, self.ladder.most(rung), partial(outcomes, served.engine))

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


class Loading(NamedTuple):
    """What loads a model, and since when on the monotonic clock."""

    task: asyncio.Task[None]
    began: float


class Fleet:
    """`paths` are the bundles that names stand for, loaded when they are asked for first, those in `preload` at once (a bundle
    that can't be raises `RecfitError`); `most_mb` bounds the resident memory of the process, at which the model that was used
    least recently leaves (never the default one; 0: no bound). Models of several bundles keep `budget_s` by answering from
    cheaper ones; who would wait longer than `shed_s`, for others or for a model to be loaded, is sent away. Every bundle that
    answers keeps up to `session_mb` of sessions. After every swap and rollback `swapped` is told what names stand for, the
    default one too."""

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
        self._lately: defaultdict[str, Lately] = defaultdict(Lately)  # of names, whichever bundles answer
        self._loaded = {
            DEFAULT: self._model(DEFAULT, default, ()),
            **{name: self._opened(name, self._paths[name]) for name in preload},
        }
        settle()
        self._previous: dict[str, Model] = {}
        self._locks: dict[str, asyncio.Lock] = {}
        self._loading: dict[str, Loading] = {}
        self._failed: dict[str, float] = {}

    def _model(self, name: str, engines: Sequence[Recommender], paths: Sequence[Path]) -> Model:
        rungs = [Served(engine) for engine in engines]
        batcher = Batcher(rungs, self._threads, self._shed_s, self._budget_s, self._lately[name])
        model = Model(rungs, paths, batcher)
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

    def running_s(self) -> float:
        """For how long what has been running longest in a pool has been; bundles that were there before may not be through."""
        models = (*self._loaded.values(), *self._previous.values())
        return max(model.batcher.running_s() for model in models)

    async def get(self, name: str | None, field: str = "model", deadline: float = math.inf) -> Model:
        """What answers for `name` (None: the default one). Raises `HttpError` for a name that is not known, or that is still
        being loaded when nobody would wait any longer, which says the `field` of the request that it was in; `LateError` where
        `deadline` on the monotonic clock comes first."""
        name = name or DEFAULT
        if name not in self._loaded:
            await self._first(name, field, deadline)
        model = self._loaded[name]
        model.used = time.monotonic()
        return model

    def at_hand(self, name: str) -> Model | None:
        """What answers for `name`, for those who must not wait for it: None where it is not loaded, which then begins."""
        model = self._loaded.get(name)
        if model is not None:
            model.used = time.monotonic()
        elif name in self._paths:
            self._begun(name)
        return model

    async def _first(self, name: str, field: str, deadline: float) -> None:
        """Until `name` is loaded."""
        if name not in self._paths:
            known = ", ".join(self.names)
            raise HttpError(404, "unknown_model", f"there is no model {name[:100]!r}; there are: {known}", field)
        if (loading := self._begun(name)) is not None:
            ends = min(deadline, loading.began + self._shed_s)
            await asyncio.wait([loading.task], timeout=max(0.0, ends - time.monotonic()))
            if not loading.task.done():
                if ends == deadline:
                    raise LateError
                message = f"model {name!r} is being loaded; come back in a second"
                raise HttpError(503, "model_loading", message, field, [(b"retry-after", b"1")])
        if name not in self._loaded:
            message = f"model {name!r} cannot be loaded; the server's log says why"
            raise HttpError(503, "model_unavailable", message, field)

    def _begun(self, name: str) -> Loading | None:
        """What loads `name`, for all who ask for it; None while nobody is to wait for another try."""
        if name not in self._loading and time.monotonic() >= self._failed.get(name, -math.inf) + AGAIN_S:
            self._loading[name] = Loading(asyncio.create_task(self._load(name), context=Context()), time.monotonic())
        return self._loading.get(name)

    async def _load(self, name: str) -> None:
        try:
            async with self._lock(name):
                if name not in self._loaded:
                    await self._put(name, self._paths[name])
        except RecfitError as error:
            self._failed[name] = time.monotonic()
            log.error("model %s cannot be loaded: %s", name, error)
        finally:
            del self._loading[name]

    async def swap(self, name: str, paths: Sequence[Path]) -> Model:
        """Let the bundles at `paths` answer for `name`, which may be new. On an error the old ones go on. Raises
        `RecfitError`."""
        async with self._lock(name):
            await self._put(name, paths)
            self._now_at(name)
            return self._loaded[name]

    async def rollback(self, name: str) -> Model:
        """Let what was there before answer for `name` again, once it has seen what was asked meanwhile. Raises `HttpError`
        where there is none, or where the model is unloaded until then."""
        async with self._lock(name):
            if (before := self._previous.get(name)) is None:
                message = f"there was no other bundle behind {name[:100]!r} since the server started; load one"
                raise HttpError(409, "nothing_to_roll_back", message)
            await asyncio.to_thread(before.warm_up, self._lately[name].all())
            if self._previous.get(name) is not before:  # nothing that unloads waits for the lock
                message = f"model {name[:100]!r} was unloaded meanwhile, and the bundle before with it; load one"
                raise HttpError(409, "nothing_to_roll_back", message)
            before.keep_sessions(self._session_mb)
            self._switch(name, before)
            self._now_at(name)
            self._make_room(name)
            return before

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
        model = await asyncio.to_thread(self._opened, name, paths, self._lately[name].all())
        self._switch(name, model)
        self._failed.pop(name, None)
        settle()
        log.warning("model %s answers from %s", name, ", ".join(served.bundle for served in model.rungs))
        self._make_room(name)

    def _switch(self, name: str, model: Model) -> None:
        if old := self._loaded.get(name):
            self._previous[name] = old
            old.keep_sessions(0)
        self._loaded[name] = model

    def _opened(self, name: str, paths: Sequence[Path], asked: Sequence[Asked] = ()) -> Model:
        before = self._mb()
        try:
            model = self._model(name, [self._open(path) for path in paths], paths)
            model.warm_up(asked)
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

"""Bundles by name. A name answers from one bundle at a time; another takes its place once it is loaded, verified and warm.

Requests that have begun keep the bundle they began with, so that no answer mixes two.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

import psutil

from recfit.engine import open_bundle
from recfit.serve.batcher import Batcher, Recommender
from recfit.serve.schema import HttpError
from recfit.types import RecfitError, Request

log = logging.getLogger("recfit.serve")

DEFAULT = "default"


class Served:
    """One open bundle with its queue. Raises whatever its first recommendations raise: what can't answer is not served."""

    def __init__(self, engine: Recommender, threads: int) -> None:
        self.engine, self.batcher = engine, Batcher(engine, threads)
        self.bundle: str = engine.manifest["bundle_id"]
        # A request that needs the model: its history is the answer to an empty one.
        self.canary = Request(history=engine.recommend([Request(history=())], 5)[0].items)
        engine.recommend([self.canary])
        self.used = time.monotonic()


def opened(path: Path) -> Recommender:
    """The engine of a bundle, verified and warm."""
    engine = open_bundle(path)
    engine.warm_up()
    return engine


class Fleet:
    """`paths` are the bundles that names stand for, loaded when they are asked for first; `most_mb` bounds the resident
    memory of the process, at which the model that was used least recently leaves (never the default one; 0: no bound)."""

    def __init__(
        self,
        default: Recommender,
        *,
        threads: int = 0,
        paths: Mapping[str, Path] | None = None,
        most_mb: float = 0.0,
        open_engine: Callable[[Path], Recommender] = opened,
    ) -> None:
        self._threads, self._open, self._most_mb = threads, open_engine, most_mb
        self._paths = dict(paths or {})
        self._loaded = {DEFAULT: Served(default, threads)}
        self._previous: dict[str, Served] = {}
        self._locks: dict[str, asyncio.Lock] = {}
        self._process = psutil.Process()

    @property
    def names(self) -> list[str]:
        """All that can be asked for."""
        return list(dict.fromkeys((*self._loaded, *self._paths)))

    @property
    def loaded(self) -> Mapping[str, Served]:
        return self._loaded

    def oldest_s(self) -> float:
        """For how long the request that waits longest has been waiting."""
        return max(served.batcher.oldest_s() for served in self._loaded.values())

    async def get(self, name: str | None) -> Served:
        """The bundle that answers for `name` (None: the default one). Raises `HttpError` for a name that is not known."""
        served = self._loaded.get(name or DEFAULT)
        if served is None:
            served = await self._first(name or DEFAULT)
        served.used = time.monotonic()
        return served

    async def _first(self, name: str) -> Served:
        if name not in self._paths:
            known = ", ".join(self.names)
            raise HttpError(404, "unknown_model", f"there is no model {name[:100]!r}; there are: {known}", "model")
        async with self._lock(name):  # who else asks waits for the same
            if name not in self._loaded:
                try:
                    await self._put(name, self._paths[name])
                except RecfitError as error:
                    log.error("model %s cannot be loaded: %s", name, error)
                    message = f"model {name!r} cannot be loaded; the server's log says why"
                    raise HttpError(503, "model_unavailable", message, "model") from None
        return self._loaded[name]

    async def swap(self, name: str, path: Path) -> Served:
        """Let the bundle at `path` answer for `name`. On an error the old one goes on. Raises `RecfitError`."""
        async with self._lock(name):
            await self._put(name, path)
            self._paths[name] = path
        return self._loaded[name]

    async def rollback(self, name: str) -> Served:
        """Let the bundle before answer for `name` again, at once. Raises `HttpError` where there is none."""
        async with self._lock(name):
            if name not in self._previous:
                message = f"there was no other bundle behind {name[:100]!r} since the server started; load one"
                raise HttpError(409, "nothing_to_roll_back", message)
            self._loaded[name], self._previous[name] = self._previous[name], self._loaded[name]
        return self._loaded[name]

    def unload(self, name: str) -> None:
        """Forget the open bundle of `name`; the next request for it loads it again. The default one stays."""
        if name == DEFAULT:
            raise HttpError(409, "default_stays", "the default model can be swapped, not unloaded")
        self._loaded.pop(name, None)
        self._previous.pop(name, None)

    async def _put(self, name: str, path: Path) -> None:
        served = await asyncio.to_thread(self._served, path)
        if old := self._loaded.get(name):
            self._previous[name] = old
        self._loaded[name] = served
        log.warning("model %s answers from bundle %s", name, served.bundle)
        self._make_room(name)

    def _served(self, path: Path) -> Served:
        try:
            return Served(self._open(path), self._threads)
        except RecfitError:
            raise
        except Exception as error:
            raise RecfitError(f"the bundle at {path} does not answer: {error}; export it again") from error

    def _make_room(self, name: str) -> None:
        """Unload what was used least recently while the process holds too much."""
        others = sorted((served.used, other) for other, served in self._loaded.items() if other not in (DEFAULT, name))
        for _, other in others:
            if not self._most_mb or self._process.memory_info().rss / 1e6 <= self._most_mb:
                return
            log.warning("model %s is unloaded: the process holds more than %g MB", other, self._most_mb)
            with suppress(HttpError):
                self.unload(other)

    def _lock(self, name: str) -> asyncio.Lock:
        return self._locks.setdefault(name, asyncio.Lock())

"""What the server answers, from one engine and what users did since: bodies in, bodies out, no HTTP."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from time import perf_counter
from typing import Any, Protocol

from recfit.serve import schema
from recfit.serve.batcher import Batcher
from recfit.serve.events import Events
from recfit.serve.http import Reply, engine_failed
from recfit.serve.schema import HttpError, encode
from recfit.types import FloatArray, Recommendation, Request

log = logging.getLogger("recfit.serve")


class Recommender(Protocol):
    """What the server needs of an engine (`recfit.engine.Engine` is one)."""

    @property
    def manifest(self) -> Mapping[str, Any]: ...

    def recommend(
        self, requests: Sequence[Request], k: int = 10, *, spent: dict[str, float] | None = None
    ) -> list[Recommendation]: ...

    def score(self, request: Request, items: Sequence[str]) -> FloatArray: ...

    def similar(self, item_id: str, k: int = 10) -> Recommendation: ...

    def known_item(self, item_id: str) -> bool: ...

    def title(self, item_id: str) -> str | None: ...


class Service:
    """Every method that takes a body raises `HttpError` for one that is no request."""

    def __init__(self, engine: Recommender, batcher: Batcher, events: Events) -> None:
        self._engine, self._batcher, self._events = engine, batcher, events
        self._bundle: str = engine.manifest["bundle_id"]

    async def recommend(self, body: bytes | bytearray, number: str) -> Reply:
        response = await self._recommended(schema.parse_recommend(body), number)
        return Reply(encode(response), response.source)

    async def batch(self, body: bytes | bytearray, number: str) -> Reply:
        """A list of requests to a list of answers; one that fails has its error in its place."""
        asked = schema.parse_batch(body).requests
        answers = await asyncio.gather(*(self._one(one, f"{number}.{at}") for at, one in enumerate(asked)))
        return Reply(encode(schema.BatchResponse(list(answers))))

    async def _one(self, asked: schema.RecommendRequest, number: str) -> schema.Outcome:
        try:
            return schema.Outcome(await self._recommended(schema.check(asked), number))
        except HttpError as refused:
            return schema.Outcome(error=refused.problem)
        except Exception:
            log.exception("request %s failed in the engine", number)
            return schema.Outcome(error=engine_failed(number).problem)

    async def _recommended(self, asked: schema.RecommendRequest, number: str) -> schema.RecommendResponse:
        begin = perf_counter()
        request = await self._complete(asked.request())
        timings: dict[str, float] | None = None
        if asked.explain:  # alone, so that what it takes is its own
            timings = {}
            alone = partial(self._engine.recommend, [request], asked.k, spent=timings)
            found = (await self._batcher.run(alone))[0]
            timings["total"] = (perf_counter() - begin) * 1e3
        else:
            found = await self._batcher.ask(request, asked.k)
        return self._response(found, number, timings)

    async def score(self, body: bytes | bytearray, number: str) -> Reply:
        asked = schema.parse_score(body)
        request = await self._complete(asked.request())
        found = await self._batcher.run(self._engine.score, request, asked.items)
        scores = [None if score != score else score for score in found.tolist()]  # JSON has no NaN
        return Reply(encode(schema.ScoreResponse(scores, self._bundle, number)), "model")

    async def similar(self, item_id: str, k: int, number: str) -> Reply:
        if not self._engine.known_item(item_id):
            message = f"the bundle does not know item {item_id[:100]!r}; /v1/bundle says which bundle it is"
            raise HttpError(404, "unknown_item", message, "item_id")
        found = await self._batcher.run(self._engine.similar, item_id, k)
        return Reply(encode(self._response(found, number, None)), found.source)

    async def record(self, body: bytes | bytearray, number: str) -> Reply:
        """Keep what users did. Items that the bundle does not know are kept too: the next bundle may."""
        events = schema.parse_events(body).events
        await self._events.add([(event.user, event.item_id) for event in events])
        unknown = sum(not self._engine.known_item(event.item_id) for event in events)
        return Reply(encode(schema.EventsResponse(len(events), unknown, number)))

    async def _complete(self, request: Request) -> Request:
        """With what the user did since, unless the request brings a history of its own."""
        if request.user_id is None or request.history is not None:
            return request
        recent = await self._events.recent(request.user_id)
        return replace(request, recent=recent) if recent else request

    def _response(
        self, found: Recommendation, number: str, timings: dict[str, float] | None
    ) -> schema.RecommendResponse:
        title = self._engine.title
        items = [
            schema.ScoredItem(item, score, title(item)) for item, score in zip(found.items, found.scores, strict=True)
        ]
        return schema.RecommendResponse(items, self._bundle, found.source, number, timings)  # type: ignore[arg-type]

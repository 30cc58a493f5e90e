"""What the server answers, from its bundles and what users did since: bodies in, bodies out, no HTTP."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from time import perf_counter

import msgspec

from recfit.serve import schema
from recfit.serve.batcher import LateError, OverloadError
from recfit.serve.events import Events, UnavailableError
from recfit.serve.experiments import Experiments
from recfit.serve.exposures import Exposures
from recfit.serve.fleet import DEFAULT, Fleet, Model, Served
from recfit.serve.http import Reply, engine_failed, late, overloaded
from recfit.serve.results import Known, Results, key_of
from recfit.serve.schema import HttpError, encode
from recfit.serve.shadows import Shadows
from recfit.types import Recommendation, Request

log = logging.getLogger("recfit.serve")


class Service:
    """Every method that takes a body raises `HttpError` for one that is no request."""

    def __init__(
        self, fleet: Fleet, events: Events, results: Results, experiments: Experiments, exposures: Exposures | None
    ) -> None:
        self._fleet, self._events, self._results = fleet, events, results
        self._experiments, self._exposures, self._shadows = experiments, exposures, Shadows(fleet)

    @property
    def shadows(self) -> Shadows:
        return self._shadows

    async def recommend(self, body: bytes | bytearray, number: str) -> Reply:
        response = await self._recommended(schema.parse_recommend(body), number)
        return Reply(encode(response), response.source)

    async def batch(self, body: bytes | bytearray, number: str) -> Reply:
        """A list of requests to a list of answers; one that fails has its error in its place."""
        asked = schema.parse_batch(body).requests
        answers = await asyncio.gather(*(self._one(one, f"{number}.{at}") for at, one in enumerate(asked)))
        return Reply(encode({"outcomes": answers}))

    async def _one(self, asked: schema.RecommendRequest, number: str) -> schema.SentOutcome:
        try:
            return schema.SentOutcome(await self._recommended(schema.check(asked), number))
        except HttpError as refused:
            return schema.SentOutcome(error=refused.problem)
        except LateError:
            return schema.SentOutcome(error=late().problem)
        except OverloadError:
            return schema.SentOutcome(error=overloaded().problem)
        except Exception:
            log.exception("request %s failed in the engine", number)
            return schema.SentOutcome(error=engine_failed(number).problem)

    async def _recommended(self, asked: schema.RecommendRequest, number: str) -> schema.Sent:
        """The answer of the model, or of the arm that the user is in, which the log then tells."""
        begin = time.monotonic()
        request = await self._complete(asked.request())
        wanted = asked.model or DEFAULT
        name, experiment = (asked.variant, None) if asked.variant else self._experiments.arm(wanted, request.user_id)
        model = await self._fleet.get(name)
        if (shadow := self._experiments.shadow(wanted)) is not None:
            self._shadows.send(shadow, request, asked.k)
        if asked.explain:
            return await _explained(model.best, request, asked.k, number)
        sent = await self._answered(model, request, asked, begin, number)
        if experiment is None or request.user_id is None:
            return sent
        if self._exposures is not None:
            self._exposures.shown(number, request.user_id, experiment, name, sent.bundle)
        return msgspec.structs.replace(sent, variant=name)

    async def _answered(
        self, model: Model, request: Request, asked: schema.RecommendRequest, begin: float, number: str
    ) -> schema.Sent:
        if asked.deadline_ms is None:
            rung, deadline = model.ladder.choose(), math.inf
        else:
            deadline = begin + asked.deadline_ms / 1e3
            rung = model.ladder.choose(deadline - time.monotonic())
        served = model.rungs[rung]

        async def make() -> Known:
            return _known(served, await served.batcher.ask(request, asked.k, deadline))

        key = key_of(served.bundle, request, asked.k)
        get = (
            self._results.get if asked.deadline_ms is None else self._results.get_alone
        )  # others must not share its haste
        known = await get(key, make)
        return _sent(served, known, number, degraded=rung > 0)

    async def feedback(self, body: bytes | bytearray, number: str) -> Reply:
        """Keep what somebody did with an answer."""
        told = schema.parse_feedback(body)
        if self._exposures is None:
            message = "this server keeps no exposure log; start it with --exposures FILE"
            raise HttpError(409, "no_exposure_log", message)
        self._exposures.made(told.request_id, told.item_id, told.kind)
        return Reply(encode(schema.FeedbackResponse(True)))

    async def found(self, model: str, requests: Sequence[Request], k: int) -> tuple[str, list[Recommendation]]:
        """The id of the bundle of `model`, and its answers."""
        served = (await self._fleet.get(model)).best
        asked = [await self._complete(request) for request in requests]
        return served.bundle, await asyncio.gather(*(served.batcher.ask(request, k) for request in asked))

    async def score(self, body: bytes | bytearray, number: str) -> Reply:
        asked = schema.parse_score(body)
        served = (await self._fleet.get(asked.model)).best
        request = await self._complete(asked.request())
        found = await served.batcher.run(served.engine.score, request, asked.items)
        scores = [None if score != score else score for score in found.tolist()]  # JSON has no NaN
        return Reply(encode(schema.ScoreResponse(scores, served.bundle, number)), "model")

    async def similar(self, item_id: str, k: int, model: str | None, number: str) -> Reply:
        served = (await self._fleet.get(model)).best
        if not served.engine.known_item(item_id):
            message = f"the bundle does not know item {item_id[:100]!r}; /v1/bundle says which bundle it is"
            raise HttpError(404, "unknown_item", message, "item_id")
        known = _known(served, await served.batcher.run(served.engine.similar, item_id, k))
        return Reply(encode(_sent(served, known, number)), known.source)

    async def record(self, body: bytes | bytearray, number: str) -> Reply:
        """Keep what users did. Items that the bundle does not know are kept too: the next bundle may."""
        events = schema.parse_events(body).events
        try:
            await self._events.add([(event.user, event.item_id) for event in events])
        except UnavailableError:
            message = "the store of events does not answer; nothing was kept for certain, send them again"
            raise HttpError(503, "store_unavailable", message, headers=[(b"retry-after", b"1")]) from None
        served = (await self._fleet.get(None)).best
        unknown = sum(not served.engine.known_item(event.item_id) for event in events)
        return Reply(encode(schema.EventsResponse(len(events), unknown, number)))

    async def _complete(self, request: Request) -> Request:
        """With what the user did since, unless the request brings a history of its own."""
        if request.user_id is None or request.history is not None:
            return request
        recent = await self._events.recent(request.user_id)
        return replace(request, recent=recent) if recent else request


async def _explained(served: Served, request: Request, k: int, number: str) -> schema.Sent:
    """Alone, so that what it takes is its own."""
    begin, spent = perf_counter(), dict[str, float]()
    found = (await served.batcher.run(partial(served.engine.recommend, [request], k, spent=spent)))[0]
    spent["total"] = (perf_counter() - begin) * 1e3
    return _sent(served, _known(served, found), number, spent)


def _known(served: Served, found: Recommendation) -> Known:
    title = served.engine.title
    rows = zip(found.items, found.scores, strict=True)
    return Known(encode([schema.ScoredItem(item, score, title(item)) for item, score in rows]), found.source)


def _sent(
    served: Served, known: Known, number: str, timings: dict[str, float] | None = None, degraded: bool = False
) -> schema.Sent:
    return schema.Sent(msgspec.Raw(known.items), served.bundle, known.source, number, timings, degraded)

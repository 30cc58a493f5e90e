"""What the server answers, from its bundles and what users did since: bodies in, bodies out, no HTTP."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from time import perf_counter

import msgspec

from recfit.serve import caller, schema
from recfit.serve.batches import read_by
from recfit.serve.events import Events, UnavailableError
from recfit.serve.experiments import Experiments
from recfit.serve.exposures import Exposures
from recfit.serve.fleet import DEFAULT, Fleet, Model, Served
from recfit.serve.http import Reply, refused
from recfit.serve.metrics import NOBODY, Part, answering
from recfit.serve.results import Known, Results, key_of
from recfit.serve.schema import HttpError, encode
from recfit.serve.shadows import Shadows
from recfit.types import Recommendation, Request


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
        schema.check_total(sum(one.k for one in asked))
        caller.charge.get()(len(asked) - 1)
        answers = await asyncio.gather(*(self._one(one, f"{number}.{at}") for at, one in enumerate(asked)))
        return Reply(encode({"outcomes": [outcome for outcome, _ in answers]}), parts=[part for _, part in answers])

    async def _one(self, asked: schema.RecommendRequest, number: str) -> tuple[schema.SentOutcome, Part]:
        try:
            sent = await self._recommended(schema.check(asked), number)
            return schema.SentOutcome(sent), Part(sent.source, 200, answering.get())
        except Exception as error:
            told = refused(error, number)
            return schema.SentOutcome(error=told.problem), Part(NOBODY, told.status, answering.get())

    async def _recommended(self, asked: schema.RecommendRequest, number: str) -> schema.Sent:
        """The answer of the model, or of the arm that the user is in, which the log then tells."""
        deadline = _deadline(asked, time.monotonic())
        request, blind = await self._complete(asked.request())
        name, experiment, model = await self._arm(asked, request.user_id, deadline)
        answering.set(name)
        if request.context:
            _check(await self._fleet.get(asked.variant or asked.model, deadline=deadline), request)
        if (shadow := self._experiments.shadow(asked.model or DEFAULT)) is not None:
            self._shadows.send(shadow, request, asked.k)
        if asked.explain:
            sent = await _explained(model, request, asked.k, deadline, number)
        else:
            sent = await self._answered(model, request, asked.k, deadline, number)
        if blind:
            sent = msgspec.structs.replace(sent, degraded=True)
        if experiment is None or request.user_id is None:
            return sent
        if self._exposures is not None:
            self._exposures.shown(number, request.user_id, experiment, name, sent.bundle)
        return msgspec.structs.replace(sent, variant=name)

    async def _arm(
        self, asked: schema.RecommendRequest, user_id: str | None, deadline: float
    ) -> tuple[str, str | None, Model]:
        """The model that answers, by its name, and the experiment that the user takes part in: none where the model of their
        arm is not loaded, so that nobody waits for what they did not ask for, and the log has nobody under a model that did not
        answer."""
        if asked.variant:
            return asked.variant, None, await self._fleet.get(asked.variant, "variant", deadline)
        wanted = asked.model or DEFAULT
        name, experiment = self._experiments.arm(wanted, user_id)
        if name != wanted:
            if (model := self._fleet.at_hand(name)) is not None:
                return name, experiment, model
            experiment = None
        return wanted, experiment, await self._fleet.get(wanted, deadline=deadline)

    async def _answered(self, model: Model, request: Request, k: int, deadline: float, number: str) -> schema.Sent:
        async def make() -> Known:
            rung, found = await model.batcher.ask(request, k, deadline)
            return _known(model.rungs[rung], found, rung)

        key = key_of(model.bundles, request, k)
        # With a deadline of its own it is made alone: others must not share its haste.
        known = await (self._results.get if deadline == math.inf else self._results.get_alone)(key, make)
        model.ladder.answered(known.rung)
        return _sent(known, number)

    async def feedback(self, body: bytes | bytearray, number: str) -> Reply:
        """Keep what somebody did with an answer."""
        told = schema.parse_feedback(body)
        if self._exposures is None:
            message = "this server keeps no exposure log; start it with --exposures FILE"
            raise HttpError(409, "no_exposure_log", message)
        if not self._exposures.made(told.request_id, told.item_id, told.kind):
            message = "the exposure log takes nothing at the moment, and too much waits for it; send it again"
            raise HttpError(503, "store_unavailable", message, headers=[(b"retry-after", b"1")])
        return Reply(encode(schema.FeedbackResponse(True)))

    async def found(self, model: str, requests: Sequence[Request], k: int) -> tuple[str, list[Recommendation], bool]:
        """The id of the bundle that answered for `model`, the cheapest one where several did, the answers, and whether one is
        degraded."""
        loaded = await self._fleet.get(model)
        for request in requests:
            _check(loaded, request)
        answering.set(model)
        asked = await asyncio.gather(*map(self._complete, requests))
        answers = await asyncio.gather(*(loaded.batcher.ask(request, k) for request, _ in asked))
        for answer in answers:
            loaded.ladder.answered(answer.rung)
        least = max(answer.rung for answer in answers)
        degraded = least > 0 or any(blind for _, blind in asked)
        return loaded.rungs[least].bundle, [answer.found for answer in answers], degraded

    async def score(self, body: bytes | bytearray, number: str) -> Reply:
        asked = schema.parse_score(body)
        model = await self._fleet.get(asked.model)
        answering.set(asked.model or DEFAULT)
        request, blind = await self._complete(asked.request())
        _check(model, request)
        found = await model.batcher.run(partial(model.best.engine.score, request, asked.items))
        scores = [None if score != score else score for score in found.tolist()]  # JSON has no NaN
        return Reply(encode(schema.ScoreResponse(scores, model.best.bundle, number, blind)), "model")

    async def similar(self, item_id: str, k: int, name: str | None, number: str) -> Reply:
        model = await self._fleet.get(name)
        answering.set(name or DEFAULT)
        engine = model.best.engine
        if not engine.known_item(item_id):
            message = f"the bundle does not know item {item_id[:100]!r}; /v1/bundle says which bundle it is"
            raise HttpError(404, "unknown_item", message, "item_id")

        async def make() -> Known:
            return _known(model.best, await model.batcher.run(partial(engine.similar, item_id, k)))

        key = key_of(f"similar {model.best.bundle}", Request(history=(item_id,)), k)
        known = await self._results.get(key, make)
        return Reply(encode(_sent(known, number)), known.source)

    async def record(self, body: bytes | bytearray, number: str) -> Reply:
        """Keep what users did. Items that the bundle does not know are kept too: the next bundle may."""
        events = schema.parse_events(body).events
        caller.charge.get()(len(events) - 1)
        try:
            await self._events.add([(event.user, event.item_id) for event in events])
        except UnavailableError:
            message = "the store of events does not answer; nothing was kept for certain, send them again"
            raise HttpError(503, "store_unavailable", message, headers=[(b"retry-after", b"1")]) from None
        served = (await self._fleet.get(None)).best
        unknown = sum(not served.engine.known_item(event.item_id) for event in events)
        return Reply(encode(schema.EventsResponse(len(events), unknown, number)))

    async def _complete(self, request: Request) -> tuple[Request, bool]:
        """With what the user did since, unless the request brings a history of its own; and whether that can't be told now."""
        if request.user_id is None or request.history is not None:
            return request, False
        try:
            recent = await self._events.recent(request.user_id)
        except UnavailableError:
            return request, True
        return replace(request, recent=recent) if recent else request, False


def _check(model: Model, request: Request) -> None:
    """Raise `HttpError` for a context that the best bundle of what was asked for can't read."""
    if why := model.best.engine.refusal(request.context):
        raise HttpError(422, "invalid_request", why, "context")


def _deadline(asked: schema.RecommendRequest, begin: float) -> float:
    """On the monotonic clock."""
    return math.inf if asked.deadline_ms is None else begin + asked.deadline_ms / 1e3


async def _explained(model: Model, request: Request, k: int, deadline: float, number: str) -> schema.Sent:
    """Alone and by the best bundle, so that what it takes is its own."""
    spent = dict[str, float]()

    def timed() -> list[Recommendation]:
        begin = perf_counter()
        engine = model.best.engine
        found = engine.recommend([read_by(engine, request)], k, spent=spent)
        spent["total"] = (perf_counter() - begin) * 1e3
        return found

    found = (await model.batcher.run(timed, deadline))[0]
    return _sent(_known(model.best, found), number, spent)


def _known(served: Served, found: Recommendation, rung: int = 0) -> Known:
    title = served.engine.title
    rows = zip(found.items, found.scores, strict=True)
    items = encode([schema.ScoredItem(item, score, title(item)) for item, score in rows])
    return Known(items, found.source, served.bundle, rung)


def _sent(known: Known, number: str, timings: dict[str, float] | None = None) -> schema.Sent:
    return schema.Sent(msgspec.Raw(known.items), known.bundle, known.source, number, timings, degraded=known.rung > 0)

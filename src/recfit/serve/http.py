"""`POST` routes as bare ASGI: read the body, answer, count."""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
from collections.abc import Awaitable, Callable, Sequence
from time import perf_counter
from typing import Any, NamedTuple

from starlette.types import Receive, Scope, Send

from recfit.serve.batcher import LateError, OverloadError
from recfit.serve.metrics import Metrics, Part
from recfit.serve.schema import MAX_BODY, ErrorResponse, HttpError, encode

log = logging.getLogger("recfit.serve")

CLIENT_GONE = 499
"""The status that is counted, never sent, for a client that left before its request was read or run (nginx's number)."""

_prefix = os.urandom(4).hex()
_numbers = itertools.count(1)


class Reply(NamedTuple):
    """What is sent, and which part of the bundle it is from (`none`: no recommendation was made)."""

    body: bytes
    source: str = "none"
    headers: Sequence[tuple[bytes, bytes]] = ()
    parts: Sequence[Part] = ()


Answer = Callable[[bytes | bytearray, str], Awaitable[Reply]]
"""A request's body and id to its reply. Raises `HttpError` for an answer that says no."""


class ClientGoneError(asyncio.CancelledError):
    """The client closed the connection before the body was complete: nothing of this request is of use any more."""


def left(receive: Receive) -> Callable[[], bool]:
    """Whether the client is gone before its answer, as uvicorn knows it: it cancels nothing, and a task that waits for its
    message would cost every request more than this does."""
    cycle = getattr(receive, "__self__", None)
    transport = getattr(cycle, "transport", None)
    if cycle is None or transport is None:  # another server
        return lambda: False
    return lambda: transport.is_closing() and not cycle.response_complete


def request_id() -> str:
    """Unlike every other, of this server and the next."""
    return f"{_prefix}-{next(_numbers):x}"


def number_of(scope: Scope) -> str:
    """The id of this request, the same to what answers it and to what says no where that raises."""
    state: dict[str, Any] = scope.setdefault("state", {})
    if "request_id" not in state:
        state["request_id"] = request_id()
    return str(state["request_id"])


class Post:
    """One route. An error inside is a 500 in the log, and never ends the server."""

    def __init__(self, route: str, answer: Answer, metrics: Metrics) -> None:
        self._route, self._answer, self._metrics = route, answer, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = perf_counter()
        source, status = "none", CLIENT_GONE
        self._metrics.in_flight.inc()
        try:
            status, (body, source, headers, parts) = await self._reply(receive)
            if parts:
                self._metrics.count_parts(self._route, parts)
            await respond(send, status, body, headers)
        finally:
            self._metrics.in_flight.dec()
            self._metrics.count(self._route, source, status, perf_counter() - started)

    async def _reply(self, receive: Receive) -> tuple[int, Reply]:
        number = request_id()
        try:
            return 200, await self._answer(await read_body(receive), number)
        except Exception as error:
            told = refused(error, number)
            return told.status, Reply(refusal(told, number), headers=told.headers)


def refusal(told: HttpError, number: str) -> bytes:
    """The body that says no to the request with this id."""
    return encode(ErrorResponse(told.problem, number))


def refused(error: Exception, number: str) -> HttpError:
    """What is told to the request with this id, whose answer raised `error`; the log has one that nobody meant to raise."""
    if isinstance(error, HttpError):
        return error
    if isinstance(error, LateError):
        message = "the deadline passed before the request could be run"
        return HttpError(504, "deadline_exceeded", message, "deadline_ms")
    if isinstance(error, OverloadError):
        message = "the server has more requests than it can answer; come back in a second"
        return HttpError(503, "overloaded", message, headers=[(b"retry-after", b"1")])
    log.error("request %s failed", number, exc_info=error)
    return failed(number)


def failed(number: str) -> HttpError:
    return HttpError(500, "internal", f"the server failed; its log has the reason under {number}")


async def read_body(receive: Receive) -> bytes | bytearray:
    """The whole body, of at most `MAX_BODY` bytes; what comes after that is left to the server to throw away."""
    body: bytes | bytearray = b""
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGoneError
        body = body + message.get("body", b"") if body else message.get("body", b"")
        if len(body) > MAX_BODY:
            raise HttpError(413, "body_too_large", f"the body is over {MAX_BODY} bytes; send less at a time")
        if not message.get("more_body", False):
            return body


async def respond(send: Send, status: int, body: bytes, headers: Sequence[tuple[bytes, bytes]] = ()) -> None:
    """Write a JSON answer."""
    sent = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body)), *headers]
    await send({"type": "http.response.start", "status": status, "headers": sent})
    await send({"type": "http.response.body", "body": body})

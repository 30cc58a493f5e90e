"""`POST /v1/recommend`, the one hot route, as a bare ASGI app."""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from threading import Event
from time import perf_counter
from typing import Any, Protocol

from starlette.types import Receive, Scope, Send

from recfit.serve.metrics import Metrics
from recfit.serve.schema import MAX_BODY, HttpError, answer, parse
from recfit.types import Recommendation, Request

log = logging.getLogger("recfit.serve")

Ask = Callable[[Request, int], Awaitable[Recommendation]]
"""One request and k to its answer, wherever the engine runs."""

CLIENT_GONE = 499
"""The status that is counted, never sent, for a client that left before its request was read (nginx's number)."""


class Recommender(Protocol):
    """What the server needs of an engine (`recfit.engine.Engine` is one)."""

    @property
    def manifest(self) -> Mapping[str, Any]: ...

    def recommend(self, requests: Sequence[Request], k: int = 10) -> list[Recommendation]: ...

    def title(self, item_id: str) -> str | None: ...


class ClientGoneError(Exception):
    """The client closed the connection before the body was complete."""


class Recommend:
    """Reads, asks, answers, counts. An error of the engine is a 500 in the log, and never ends the server."""

    def __init__(self, engine: Recommender, ask: Ask, metrics: Metrics, draining: Event) -> None:
        self.title, self.ask, self.metrics, self.draining = engine.title, ask, metrics, draining
        self.bundle: str = engine.manifest["bundle_id"]
        prefix = os.urandom(4).hex()
        self.request_ids = (f"{prefix}-{number:x}" for number in itertools.count(1))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = perf_counter()
        source, status = "none", CLIENT_GONE
        self.metrics.in_flight.inc()
        try:
            source, status, body = await self.reply(receive)
            await respond(send, status, body, close=self.draining.is_set())
        except ClientGoneError:
            pass
        finally:
            self.metrics.in_flight.dec()
            self.metrics.count(source, status, perf_counter() - started)

    async def reply(self, receive: Receive) -> tuple[str, int, bytes]:
        """Source, status and body of the answer."""
        request_id = next(self.request_ids)
        try:
            asked = parse(await read_body(receive))
            found = await self.ask(asked.request(), asked.k)
            return found.source, 200, answer(found, [self.title(item) for item in found.items], self.bundle, request_id)
        except HttpError as refused:
            return "none", refused.status, refused.body
        except ClientGoneError:
            raise
        except Exception:
            log.exception("request %s failed in the engine", request_id)
            message = f"the engine failed; the server's log has the reason under {request_id}"
            return "none", 500, HttpError(500, "internal", message).body


async def read_body(receive: Receive) -> bytes | bytearray:
    """The whole body, of at most `MAX_BODY` bytes; what comes after that is left to the server to throw away."""
    body: bytes | bytearray = b""
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGoneError
        body = body + message.get("body", b"") if body else message.get("body", b"")
        if len(body) > MAX_BODY:
            raise HttpError(413, "body_too_large", f"the body is over {MAX_BODY} bytes; send a shorter history")
        if not message.get("more_body", False):
            return body


async def respond(send: Send, status: int, body: bytes, close: bool) -> None:
    """Write a JSON answer; `close` tells a keep-alive client to connect anew, to another server."""
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    if close:
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})

"""Routes that Starlette answers, counted like those of `recfit.serve.http.Post`."""

from __future__ import annotations

from time import perf_counter

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from recfit.serve.http import CLIENT_GONE
from recfit.serve.metrics import INFER, NOBODY, SIMILAR, Metrics, route_of


class Counted:
    """`app`, whose requests for an answer are counted by what is sent. The `Post` routes count for themselves."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        route = route_of(scope.get("path", ""))
        if route not in (SIMILAR, INFER):
            await self._app(scope, receive, send)
            return
        started, status = perf_counter(), CLIENT_GONE

        async def sending(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        self._metrics.in_flight.inc()
        try:
            await self._app(scope, receive, sending)
        finally:
            self._metrics.in_flight.dec()
            source = "model" if status == 200 else NOBODY
            self._metrics.count(route, source, status, perf_counter() - started)

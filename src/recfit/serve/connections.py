"""Connections that hold up nobody: who does not send its request is sent away, and so is who is one too many.

Nothing here runs for a request. A look at every connection once a second finds those that began one and don't go on.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from recfit.serve.schema import HttpError

log = logging.getLogger("recfit.serve")

READ_S = 10.0
"""What a request may take to come in, from the opening of its connection or its first byte on: 64 KiB at most."""
MOST, RESERVE = 10_000, 64
"""Connections at a time, as far as the system lets a process have so many files, and the files that are for everything else."""
SAY_S = 60.0
"""Between two words in the log about too many of them."""


def most_connections() -> int:
    """For a process that may open so many files; it is allowed more where that needs nobody's consent."""
    if sys.platform == "win32":
        return MOST
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = MOST + RESERVE if hard == resource.RLIM_INFINITY else min(hard, MOST + RESERVE)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    return max(most - RESERVE, RESERVE // 4)


class Connection(HttpToolsProtocol):
    """uvicorn's connection, of which there are fewer than `limit_concurrency`."""

    _said = float("-inf")  # when somebody was sent away and the log told it, for all of them

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self._read: tuple[Any, float] | None = (
            None  # the request before the one that comes in, and since when that was seen
        )

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)  # type: ignore[arg-type]
        if self.limit_concurrency is None or len(self.connections) < self.limit_concurrency:
            return
        self.connections.discard(self)
        if (now := self.loop.time()) > Connection._said + SAY_S:
            Connection._said = now
            log.warning("%d connections are open; more are answered with 503", len(self.connections))
        self._end(
            HttpError(503, "too_many_connections", "the server has no room for another connection; come back later")
        )

    def look(self) -> None:
        """Once a second: end the connection if a request takes too long to come in."""
        if not self._reading():
            self._read = None
        elif self._read is None or self._read[0] is not self.cycle:
            self._read = self.cycle, self.loop.time()
        elif self.loop.time() - self._read[1] > READ_S:
            self._end(
                HttpError(408, "request_timeout", f"the request did not come in within {READ_S:g} s; send it again")
            )

    def _reading(self) -> bool:
        """Whether a request has begun to come in, or is the first one."""
        if self.cycle is None or self.cycle.response_complete:
            return self.timeout_keep_alive_task is None
        return self.cycle.more_body and not self.cycle.response_started and not self.pipeline

    def _end(self, refused: HttpError) -> None:
        head = b"content-type: application/json\r\nconnection: close\r\ncontent-length: %d\r\n\r\n" % len(refused.body)
        self.transport.write(STATUS_LINE[refused.status] + head + refused.body)
        self.transport.close()

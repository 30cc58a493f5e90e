"""Connections that hold up nobody: who does not send its request is sent away, and so is who sends too much of it, does not
read its answer, or is one too many.

Almost nothing here runs for a request. A look at every connection once a second finds those that don't go on.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections import Counter
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from recfit.serve.schema import HttpError

log = logging.getLogger("recfit.serve")

ended: Counter[str] = Counter(dict.fromkeys(("full", "slow to send", "too long", "slow to read", "no HTTP"), 0))
"""Connections of this process that were ended, by the reason."""

READ_S, WRITE_S = 10.0, 30.0
"""What a request may take to come in, from the opening of its connection or its first byte on, and its answer to be read."""
MOST_HEAD, MOST_BYTES = 64 * 1024, 16 * 2**20
"""Bytes of a request's head, and of all of it: what is too much for a body is thrown away, up to this."""
PIECE = 8 * 1024
"""What is parsed at a time of a read, which may be longer than a head may be. The pieces in which a head begins and ends don't
count for it: it may be longer than `MOST_HEAD` by these."""
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
        self._bytes, self._bytes_of = 0, self.scope  # that came in since this request has begun
        self._unread: tuple[Any, float] | None = None  # an answer that was not all taken, and since when

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)  # type: ignore[arg-type]
        if self.limit_concurrency is None or len(self.connections) < self.limit_concurrency:
            return
        self.connections.discard(self)
        if (now := self.loop.time()) > Connection._said + SAY_S:
            Connection._said = now
            log.warning("%d connections are open; more are answered with 503", len(self.connections))
        self._end(
            "full",
            HttpError(503, "too_many_connections", "the server has no room for another connection; come back later"),
        )

    def data_received(self, data: bytes) -> None:
        if len(data) > PIECE:
            for at in range(0, len(data), PIECE):
                if not self.transport.is_closing():
                    self.data_received(data[at : at + PIECE])
            return
        super().data_received(data)
        if self.scope is not self._bytes_of:  # another request has begun
            self._bytes, self._bytes_of = 0, self.scope
            return
        self._bytes += len(data)
        if self._bytes > MOST_HEAD and not self.transport.is_closing():
            self._measure()

    def _measure(self) -> None:
        if self.scope is None or "method" not in self.scope:  # its head has not begun, or is not complete
            message = f"the headers are over {MOST_HEAD} bytes; send fewer"
            self._end("too long", HttpError(431, "headers_too_large", message))
        elif self._bytes > MOST_BYTES:
            message = f"the request is over {MOST_BYTES} bytes; send less at a time"
            self._end("too long", HttpError(413, "body_too_large", message))

    def send_400_response(self, msg: str) -> None:
        ended["no HTTP"] += 1
        super().send_400_response(msg)

    def look(self) -> None:
        """Once a second: end the connection if a request takes too long to come in, or its answer to be read."""
        answer = self.cycle, len(self.pipeline)  # each has its own time, those that were asked for together too
        if not self.transport.get_write_buffer_size():
            self._unread = None
        elif self._unread is None or self._unread[0] != answer:
            self._unread = answer, self.loop.time()
        elif self.loop.time() - self._unread[1] > WRITE_S:
            ended["slow to read"] += 1
            self.transport.abort()
            return
        if not self._reading():
            self._read = None
        elif self._read is None or self._read[0] is not self.cycle:
            self._read = self.cycle, self.loop.time()
        elif self.loop.time() - self._read[1] > READ_S:
            message = f"the request did not come in within {READ_S:g} s; send it again"
            self._end("slow to send", HttpError(408, "request_timeout", message))

    def _reading(self) -> bool:
        """Whether a request has begun to come in, or is the first one."""
        if self.cycle is None or self.cycle.response_complete:
            return self.timeout_keep_alive_task is None
        return self.cycle.more_body and not self.cycle.response_started and not self.pipeline

    def _end(self, reason: str, refused: HttpError) -> None:
        ended[reason] += 1
        cycle = self.cycle
        if cycle is not None and cycle.response_started and (cycle.more_body or not cycle.response_complete):
            self.transport.close()  # it has its answer, or a part of it
            return
        head = b"content-type: application/json\r\nconnection: close\r\ncontent-length: %d\r\n\r\n" % len(refused.body)
        self.transport.write(STATUS_LINE[refused.status] + head + refused.body)
        self.transport.close()

"""Load for a server, on a schedule: requests leave when they are due, whether earlier ones were answered or not.

A client that waits for an answer before it sends the next request asks less while the server stalls, and so hides the
stall (coordinated omission). Here every latency counts from the moment the request was due, as its user would have felt.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from urllib.parse import urlsplit

import numpy as np

from recfit.options import check_ranges
from recfit.types import ConfigError, FloatArray, MeasurementError, Request

PERCENTILES = (50.0, 90.0, 99.0, 99.9, 100.0)
GRACE_S = 5.0
"""How long after the last request answers are waited for."""
ON_TIME = 0.97
"""Share of the asked rate that a run must have reached to count as held: below that the client or the server fell behind."""

OF_USE = 0.01
"""Share of the requests that must have got a 200, or the run says nothing of the server."""

CLOSENESS, TRIES = 0.05, 2
"""How close `find_most` comes to the highest rate, as a share of it, and runs of a rate before it counts as too high."""


@dataclass(frozen=True)
class Load:
    """One run: `rate` requests a second for `seconds`, at random moments (Poisson), over at most `connections`."""

    rate: float
    seconds: float = 10.0
    connections: int = 64
    k: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        check_ranges("load", self, rate=(0.1, 1e6), seconds=(0.1, 86_400), connections=(1, 10_000), k=(1, 1000))


@dataclass(frozen=True)
class Access:
    """How the server lets somebody in: with a `key`, and over TLS (https) with a certificate that the system knows, that is in
    the PEM file `ca`, or, `insecure`, any."""

    key: str | None = None
    ca: str | None = None
    insecure: bool = False

    def tls(self) -> ssl.SSLContext:
        """Raises `ConfigError`."""
        try:
            context = ssl.create_default_context(cafile=self.ca)
        except OSError as error:  # SSLError is one
            raise ConfigError(f"{self.ca} holds no certificate: {error}; give --ca a PEM file") from None
        if self.insecure:
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        return context


ANYBODY = Access()


@dataclass(frozen=True)
class Found:
    """What came of a run. `ms` has the percentiles of the requests that got a 200, from when they were due, and of those that
    were never answered, which count as infinitely late. `refused_ms` has those of the requests that got another status; it is
    empty where there are none."""

    rate: float
    sent_a_second: float
    answered: int
    statuses: Mapping[str, int]
    sources: Mapping[str, int]
    ms: Mapping[str, float]
    refused_ms: Mapping[str, float] = field(default_factory=dict)

    @property
    def failed(self) -> int:
        """Requests without a 200."""
        return sum(count for status, count in self.statuses.items() if status != "200")

    def check(self) -> None:
        """Raise `MeasurementError` where next to nothing was answered well."""
        total = sum(self.statuses.values())
        if total - self.failed < OF_USE * total:
            raise MeasurementError(
                f"{total - self.failed} of {total} requests were answered with 200 ({wrong(self)}), so this is no measure of "
                "the server; 401: give --key, connection lost: is it https://?"
            )

    def holds(self, p99_ms: float) -> bool:
        """Whether the server took the whole rate, without a failure, at this p99."""
        return not self.failed and self.ms["99"] <= p99_ms and self.sent_a_second >= ON_TIME * self.rate


def run(url: str, requests: Sequence[Request], load: Load, access: Access = ANYBODY) -> Found:
    """Put one load on the server at `url`. Raises `MeasurementError` where nothing answers there."""
    return asyncio.run(_Run(url, requests, load, access).go())


def find_most(
    url: str, requests: Sequence[Request], load: Load, p99_ms: float, access: Access = ANYBODY
) -> Iterator[Found]:
    """Runs in search of the highest rate that holds `p99_ms`, from `load.rate` on: doubled until one does not, then in the
    middle of what holds and what does not, until these are `CLOSENESS` apart. A rate that does not hold is tried once more,
    since a moment in which the machine did something else is no limit of the server. Of the runs that hold, the one with the
    highest rate is the answer; there may be none."""
    low, high, rate, seed = 0.0, float("inf"), load.rate, load.seed
    while high > low * (1 + CLOSENESS):
        for _ in range(TRIES):
            found = run(url, requests, replace(load, rate=rate, seed=seed), access)
            yield found
            seed += 1
            if found.holds(p99_ms):
                break
        low, high = (rate, high) if found.holds(p99_ms) else (low, rate)
        if high < 1:
            return
        rate = rate * 2 if high == float("inf") else (low + high) / 2


def body(request: Request, k: int) -> bytes:
    """What is sent for a request."""
    told = {"exclude": request.exclude or None, "context": request.context}
    fields = {"user_id": request.user_id, "history": request.history, **told, "k": k}
    return json.dumps({name: value for name, value in fields.items() if value is not None}).encode()


class _Run:
    def __init__(self, url: str, requests: Sequence[Request], load: Load, access: Access) -> None:
        place = urlsplit(url if "://" in url else f"http://{url}")
        self.tls = access.tls() if place.scheme == "https" else None
        self.host, self.port = place.hostname or "127.0.0.1", place.port or (443 if self.tls else 80)
        head = f"POST {place.path.rstrip('/')}/v1/recommend HTTP/1.1\r\nHost: {self.host}\r\n".encode()
        if access.key is not None:
            head += f"Authorization: Bearer {access.key}\r\n".encode()
        self.messages = [
            head + b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(sent) + sent
            for sent in (body(request, load.k) for request in requests)
        ]
        self.load = load
        gaps = np.random.default_rng(load.seed).exponential(1 / load.rate, max(1, round(load.rate * load.seconds)))
        self.due: FloatArray = np.cumsum(gaps)
        self.late = np.full(len(self.due), np.inf)
        self.refused = np.zeros(len(self.due), dtype=bool)
        self.statuses: Counter[str] = Counter()
        self.sources: Counter[str] = Counter()
        self.idle: deque[_Connection] = deque()
        self.waiting: deque[int] = deque()
        self.connections: set[_Connection] = set()
        self.opening: set[asyncio.Future[None]] = set()  # a task that nobody holds may vanish
        self.open = 0
        self.trouble: OSError | None = None  # the last one of a connection that could not be opened
        self.done = asyncio.Event()
        self.left = len(self.due)

    async def go(self) -> Found:
        await self._connect()
        if not self.idle:
            raise self._nobody()
        self.begin = time.perf_counter() + 0.01
        sent = await self._send_all()
        try:
            async with asyncio.timeout(GRACE_S):
                await self.done.wait()
        except TimeoutError:
            self.statuses["no answer"] += self.left
        for connection in [*self.connections]:
            connection.close()
        await asyncio.sleep(0)  # so that they are gone when the loop ends
        kept_up = float(self.due[-1] / max(sent, self.due[-1]))
        refused = self.late[self.refused]
        return Found(
            self.load.rate,
            self.load.rate * kept_up,
            int(np.isfinite(self.late).sum()),
            dict(self.statuses),
            dict(self.sources),
            _percentiles(self.late[~self.refused]),
            _percentiles(refused) if len(refused) else {},
        )

    async def _connect(self) -> None:
        loop = asyncio.get_running_loop()
        self.open += 1
        try:
            _, connection = await loop.create_connection(partial(_Connection, self), self.host, self.port, ssl=self.tls)
            self.connections.add(connection)
            self._ready(connection)
        except OSError as error:
            self.open -= 1
            self.trouble = error

    def _nobody(self) -> MeasurementError:
        place = f"{self.host} port {self.port}"
        if isinstance(self.trouble, ssl.SSLCertVerificationError):
            trouble = self.trouble.verify_message
            return MeasurementError(
                f"the certificate of {place} is not trusted: {trouble}; give --ca FILE, or --insecure"
            )
        if isinstance(self.trouble, ssl.SSLError):
            return MeasurementError(f"{place} does not speak TLS: {self.trouble}; say http://")
        return MeasurementError(f"nothing answers at {place}; start `recfit serve` there")

    def _open_another(self) -> None:
        if self.open < self.load.connections:
            opening = asyncio.ensure_future(self._connect())
            self.opening.add(opening)
            opening.add_done_callback(self.opening.discard)

    async def _send_all(self) -> float:
        """Send what is due until all is sent; returns how long that took."""
        for number, due in enumerate(self.due.tolist()):
            while (wait := self.begin + due - time.perf_counter()) > 0:
                await asyncio.sleep(wait - 1e-3 if wait > 2e-3 else 0)
            self.waiting.append(number)
            if not self.idle:
                self._open_another()
            self._dispatch()
        while self.waiting and self.open:
            await asyncio.sleep(1e-3)
        return time.perf_counter() - self.begin

    def _dispatch(self) -> None:
        while self.waiting and self.idle:
            number = self.waiting.popleft()
            self.idle.pop().send(number, self.messages[number % len(self.messages)])

    def _ready(self, connection: _Connection) -> None:
        self.idle.append(connection)
        self._dispatch()

    def answered(self, connection: _Connection, number: int, status: str, body: bytes) -> None:
        self.late[number] = time.perf_counter() - self.begin - self.due[number]
        self.refused[number] = status != "200"
        self._count(status)
        if status == "200" and (at := body.find(b'"source":"')) >= 0:
            self.sources[body[at + 10 : body.index(b'"', at + 10)].decode()] += 1
        if not connection.closing:
            self._ready(connection)

    def lost(self, connection: _Connection, number: int | None) -> None:
        """A connection ended, perhaps with a request on it."""
        self.open -= 1
        self.connections.discard(connection)
        if connection in self.idle:
            self.idle.remove(connection)
        if number is not None:
            self._count("connection lost")
        if self.waiting:
            self._open_another()

    def _count(self, status: str) -> None:
        self.statuses[status] += 1
        self.left -= 1
        if not self.left:
            self.done.set()


class _Connection(asyncio.Protocol):
    """One request at a time."""

    def __init__(self, run: _Run) -> None:
        self._run, self._buffer, self.closing = run, b"", False
        self._number: int | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def send(self, number: int, message: bytes) -> None:
        self._number = number
        self._transport.write(message)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            return
        head = self._buffer[:end].lower()
        body = _whole(head, self._buffer[end + 4 :])
        if body is None or self._number is None:
            return
        number, self._number, self._buffer = self._number, None, b""
        if b"connection: close" in head:
            self.closing = True
            self._transport.close()
        self._run.answered(self, number, head[9:12].decode(), body)

    def connection_lost(self, error: Exception | None) -> None:
        self.closing = True
        self._run.lost(self, self._number)

    def close(self) -> None:
        self._number = None  # what was on it is counted already
        self._transport.abort()


def _whole(head: bytes, rest: bytes) -> bytes | None:
    """The body, once it is all there: of known length, or in chunks, as what stands before a server may send it."""
    if b"transfer-encoding: chunked" not in head:
        at = head.find(b"content-length:")
        length = int(head[at + 15 :].split(b"\r\n", 1)[0]) if at >= 0 else 0
        return rest if len(rest) >= length else None
    body = b""
    while True:
        size, mark, rest = rest.partition(b"\r\n")
        length = int(size.split(b";")[0], 16) if mark else 0
        if not mark or len(rest) < length + 2:
            return None
        if not length:
            return body
        body, rest = body + rest[:length], rest[length + 2 :]


def _percentiles(late: FloatArray) -> dict[str, float]:
    """In milliseconds, of seconds; infinite where there are none."""
    return {f"{share:g}": _percentile(late, share) * 1e3 for share in PERCENTILES}


def _percentile(late: FloatArray, share: float) -> float:
    """The smallest value that so many percent don't exceed; infinite where these were not all answered."""
    if not len(late):
        return float("inf")
    ordered = np.sort(late)
    return float(ordered[min(len(ordered) - 1, int(np.ceil(round(share / 100 * len(ordered), 6))) - 1)])


HEAD = " ".join(f"{head:>10}" for head in ("rate", "sent/s", *(f"p{share:g} ms" for share in PERCENTILES), "failed"))


def line(found: Found) -> str:
    """A run below `HEAD`: the percentiles of what was answered with 200, then what went wrong, and how late that was told."""
    numbers = (found.rate, found.sent_a_second, *found.ms.values())
    text = " ".join(f"{cell:>10}" for cell in (*(f"{number:.2f}" for number in numbers), found.failed))
    told = (
        f"; refused with p50 {found.refused_ms['50']:.2f}, p99 {found.refused_ms['99']:.2f} ms"
        if found.refused_ms
        else ""
    )
    return f"{text}  {wrong(found)}{told}".rstrip()


def wrong(found: Found) -> str:
    """What came instead of a 200, and how often."""
    return ", ".join(f"{status}: {count}" for status, count in sorted(found.statuses.items()) if status != "200")

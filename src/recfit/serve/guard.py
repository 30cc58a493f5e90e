"""Who may ask, and how often. Keys are kept as their sha256, so that the file gives none away."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from starlette.types import ASGIApp, Receive, Scope, Send

from recfit.options import from_options, read_toml
from recfit.serve import caller
from recfit.serve.errors import body_of
from recfit.serve.http import respond
from recfit.serve.schema import HttpError
from recfit.serve.status import PAGES
from recfit.types import ConfigError

OPEN = ("/healthz", "/readyz", "/v2/health/live", "/v2/health/ready", *PAGES)
"""What load balancers ask, who have no key, and the console, which asks its user for one. With a query (`?model=`, which may
load one) a key is needed."""
BURST_S = 1.0
"""Requests that were not made in this time may be made at once."""


@dataclass(frozen=True)
class Key:
    """A client: a `name` for people, the `sha256` of its key in hex, and the requests a second it may make (0: any). With
    `admin` it may use the routes of operators, where they are."""

    name: str
    sha256: str
    rate: float = 0.0
    admin: bool = False

    def __post_init__(self) -> None:
        if len(self.sha256) != 64 or set(self.sha256) - set("0123456789abcdef"):
            raise ConfigError(
                f"key {self.name!r} has sha256 = {self.sha256[:70]!r}; give 64 hex digits: printf KEY | sha256sum"
            )
        if self.rate < 0:
            raise ConfigError(f"key {self.name!r} has rate = {self.rate:g}; give requests a second, or 0 for no limit")


@dataclass
class Bucket:
    """A token bucket: `rate` tokens a second flow in, up to those of `BURST_S` (one at least). What is taken beyond what is in
    it flows in first."""

    rate: float
    tokens: float = field(init=False)
    at: float = field(init=False)

    def __post_init__(self) -> None:
        self.tokens, self.at = self.most, time.monotonic()

    @property
    def most(self) -> float:
        return max(1.0, self.rate * BURST_S)

    def take(self) -> float:
        """0 and a token is gone; else the seconds until there is one."""
        now = time.monotonic()
        self.tokens, self.at = min(self.most, self.tokens + (now - self.at) * self.rate), now
        if self.tokens >= 1:
            self.tokens -= 1
            return 0.0
        return (1 - self.tokens) / self.rate

    def charge(self, requests: int) -> None:
        self.tokens -= requests


def read_keys(path: Path) -> list[Key]:
    """The `[[key]]` tables of a TOML file. Raises `ConfigError`."""
    content = read_toml(path, " of keys; check serve.keys")
    keys = [from_options(Key, table, f"{path}, key") for table in content.get("key", [])]
    if not keys:
        raise ConfigError(f"{path} holds no [[key]]; without one nobody could ask")
    return keys


class Guard:
    """Lets requests with a known key (`Authorization: Bearer KEY`, `X-API-Key: KEY`) through to `app`, as often as they may.
    `refused` is told the path and the status of the others."""

    def __init__(
        self, app: ASGIApp, keys: Sequence[Key], refused: Callable[[str, int], None] = lambda path, status: None
    ) -> None:
        self._app, self._refused = app, refused
        self._keys = {key.sha256: key for key in keys}
        self._buckets: Mapping[str, Bucket] = {key.sha256: Bucket(key.rate) for key in keys if key.rate}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            if scope["type"] == "http" and (scope["path"] not in OPEN or scope["query_string"]):
                self._check(scope)
        except HttpError as refused:
            self._refused(scope["path"], refused.status)
            await respond(send, refused.status, body_of(refused, scope), refused.headers)
            return
        await self._app(scope, receive, send)

    def _check(self, scope: Scope) -> None:
        key = self._keys.get(hashlib.sha256(_key(scope)).hexdigest())
        if key is None:
            message = "the key is missing or not known; send Authorization: Bearer KEY"
            raise HttpError(401, "unauthorized", message, headers=[(b"www-authenticate", b"Bearer")])
        if scope["path"].startswith("/admin/") and not key.admin:
            message = f"key {key.name!r} is no operator's; give its [[key]] admin = true, or use another"
            raise HttpError(403, "forbidden", message)
        bucket = self._buckets.get(key.sha256)
        if bucket is None:
            return
        if wait := bucket.take():
            message = f"this key may make {bucket.rate:g} requests a second; wait"
            raise HttpError(429, "too_many_requests", message, headers=[(b"retry-after", b"%d" % math.ceil(wait))])
        caller.charge.set(bucket.charge)


def _key(scope: Scope) -> bytes:
    """The key that a request brings, empty where it brings none."""
    for name, value in scope["headers"]:
        if name == b"x-api-key":
            return bytes(value)
        if name == b"authorization" and value[:7].lower() == b"bearer ":
            return bytes(value[7:]).strip()
    return b""

"""An engine whose answers are known: the items not in the history, best first, from a catalogue of 50."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from starlette.types import ASGIApp

from recfit.runtimes import SessionCache
from recfit.serve.app import make_app
from recfit.serve.fleet import Fleet
from recfit.types import ConfigError, FloatArray, Recommendation, Request, RequestContext

ITEMS = tuple(f"i{n}" for n in range(50))


class FakeEngine:
    """Knows the users `u1` and `7`, and reads `context_names`. `during` runs within each call to `recommend`: it may
    wait, or raise."""

    def __init__(
        self, during: Callable[[Request], None] = lambda request: None, context_names: Sequence[str] = ("hour",)
    ) -> None:
        self.during = during
        self.sessions: Sequence[SessionCache] = ()
        self.context_names: Sequence[str] = context_names
        self.manifest: Mapping[str, Any] = {
            "format": 2,
            "name": "toy",
            "bundle_id": "b0c1",
            "created": "2024-05-06T07:08:09+00:00",
            "recipe": {"id": "r9", "steps": [{"name": "int8_rows"}]},
            "catalogue": {"users": 2, "items": 50},
            "promise": {"p99_ms": 1.5},
        }

    def recommend(
        self, requests: Sequence[Request], k: int = 10, *, spent: dict[str, float] | None = None
    ) -> list[Recommendation]:
        if spent is not None:
            spent["retrieve"] = 0.5
        return [self._answer(request, k) for request in requests]

    def keep_sessions(self, most_mb: float) -> None:
        self.session_mb = most_mb

    def score(self, request: Request, items: Sequence[str]) -> FloatArray:
        self.during(request)
        places = {item: 1.0 / (1 + at) for at, item in enumerate(ITEMS)}
        return np.array([places.get(item, np.nan) for item in items], np.float32)

    def similar(self, item_id: str, k: int = 10) -> Recommendation:
        return self.recommend([Request(history=(item_id,))], k)[0]

    def refusal(self, context: RequestContext | None) -> str:
        return "context: no such feature" if set(context or ()) - set(self.context_names) else ""

    def known_item(self, item_id: str) -> bool:
        return item_id in ITEMS

    def _answer(self, request: Request, k: int) -> Recommendation:
        if refusal := self.refusal(request.context):
            raise ConfigError(refusal)
        self.during(request)
        gone = {*(request.history or ()), *request.exclude, *request.recent}
        allowed = ITEMS if request.candidates is None else [item for item in ITEMS if item in request.candidates]
        items = tuple(item for item in allowed if item not in gone)[:k]
        known = request.history or request.recent or request.context or request.user_id in ("u1", "7")
        return Recommendation(items, tuple(1 / (n + 1) for n in range(len(items))), "model" if known else "fallback")

    def title(self, item_id: str) -> str | None:
        return f"Title of {item_id}" if item_id == "i0" else None


def app_of(engine: FakeEngine, *, threads: int = 0, **options: Any) -> ASGIApp:
    """The app that answers from one engine."""
    return make_app(Fleet([engine], threads=threads), **options)

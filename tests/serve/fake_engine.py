"""An engine whose answers are known: the items not in the history, best first, from a catalogue of 50."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from recfit.types import Recommendation, Request

ITEMS = tuple(f"i{n}" for n in range(50))


class FakeEngine:
    """Knows the users `u1` and `7`. `during` runs within each call to `recommend`: it may wait, or raise."""

    def __init__(self, during: Callable[[Request], None] = lambda request: None) -> None:
        self.during = during
        self.manifest: Mapping[str, Any] = {
            "format": 1,
            "name": "toy",
            "bundle_id": "b0c1",
            "created": "2024-05-06T07:08:09+00:00",
            "recipe": {"id": "r9", "steps": [{"name": "int8_rows"}]},
            "catalogue": {"users": 2, "items": 50},
            "promise": {"p99_ms": 1.5},
        }

    def recommend(self, requests: Sequence[Request], k: int = 10) -> list[Recommendation]:
        return [self._answer(request, k) for request in requests]

    def _answer(self, request: Request, k: int) -> Recommendation:
        self.during(request)
        gone = {*(request.history or ()), *request.exclude}
        items = tuple(item for item in ITEMS if item not in gone)[:k]
        known = request.history or request.user_id in ("u1", "7")
        return Recommendation(items, tuple(1 / (n + 1) for n in range(len(items))), "model" if known else "fallback")

    def title(self, item_id: str) -> str | None:
        return f"Title of {item_id}" if item_id == "i0" else None

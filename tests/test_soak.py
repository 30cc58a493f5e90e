"""What a soak ends with: growth is that of the second half, and what is too much of it is told."""

from __future__ import annotations

import socket

import numpy as np
import pytest
from benchmarks import soak
from benchmarks.soak import LIMITS, faults, growth

from recfit.types import Request

FLAT = dict.fromkeys(LIMITS, 0.0)


def test_growth_is_that_of_the_second_half() -> None:
    held = [50.0, 80.0, 100.0, 100.0, 101.0, 102.0, 103.0]
    rows = [{"hours": 0.5 * at, "rss_mb": value} for at, value in enumerate(held)]
    assert round(growth(rows, "rss_mb"), 6) == 3
    assert growth(rows[:1], "rss_mb") == 0


def test_what_fails_or_grows_is_a_fault() -> None:
    well = {("swaps", 200): 1, ("events", 200): 5, ("broken bodies", 400): 1, ("broken bodies", 422): 2}
    assert faults(FLAT, {"200": 9}, well) == []
    assert faults({**FLAT, "rss_mb": LIMITS["rss_mb"], "p99_ms": 99.0}, {"200": 9}, {}) == []
    assert faults({**FLAT, "rss_mb": 10.5}, {"200": 9}, {}) == ["rss_mb grew by 10.5, more than 10"]
    bad = {("swaps", 422): 9, ("events", 413): 3, ("broken bodies", 200): 1, ("broken bodies", 500): 2, ("swaps", 0): 1}
    assert faults(FLAT, {"200": 9, "503": 1}, bad) == [
        "1 requests: 503",
        "9 swaps: 422",
        "3 events: 413",
        "1 broken bodies: 200",
        "2 broken bodies: 500",
        "1 swaps: no answer",
    ]


def test_what_is_sent_beside_the_load_is_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    statuses = {"admin": 422, "events": 200, "recommend": 400}
    monkeypatch.setattr(
        soak, "send", lambda url, body, method="POST": next(status for part, status in statuses.items() if part in url)
    )
    with socket.create_server(("127.0.0.1", 0), backlog=100) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        found = soak.disturb(url, [Request(history=("1",))], np.random.default_rng(0), ("http://admin", "other"))
    assert found == {("swaps", 422): 1, ("events", 200): 20, ("broken bodies", 400): len(soak.BROKEN)}

"""What a soak ends with: growth is that of the second half, and what is too much of it is told."""

from __future__ import annotations

from benchmarks.soak import LIMITS, faults, growth

FLAT = dict.fromkeys(LIMITS, 0.0)


def test_growth_is_that_of_the_second_half() -> None:
    held = [50.0, 80.0, 100.0, 100.0, 101.0, 102.0, 103.0]
    rows = [{"hours": 0.5 * at, "rss_mb": value} for at, value in enumerate(held)]
    assert round(growth(rows, "rss_mb"), 6) == 3
    assert growth(rows[:1], "rss_mb") == 0


def test_what_fails_or_grows_is_a_fault() -> None:
    assert faults(FLAT, {"200": 9}, {200: 5, 413: 1, 422: 2}) == []
    assert faults({**FLAT, "rss_mb": LIMITS["rss_mb"], "p99_ms": 99.0}, {"200": 9}, {}) == []
    assert faults({**FLAT, "rss_mb": 10.5}, {"200": 9}, {}) == ["rss_mb grew by 10.5, more than 10"]
    assert faults(FLAT, {"200": 9, "503": 1}, {500: 2, 0: 1}) == [
        "1 requests: 503",
        "2 others: 500",
        "1 others: no answer",
    ]

"""What the benchmarks of a server do beside measuring does not change what they measure."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest
from benchmarks import faults, most
from benchmarks.started import Started

from recfit.loadtest import Found
from recfit.types import Request


def test_the_median_over_http_is_that_of_a_server_that_has_seen_the_requests_as_the_engine_has(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    done = list[str]()
    found = Found(50.0, 50.0, 1, {"200": 1}, {}, {"50": 1.0, "99": 1.0})
    times = SimpleNamespace(user=0.0, system=0.0)
    server = SimpleNamespace(
        url="http://x", memory=lambda: {"rss_mb": 1, "pss_mb": 1}, process=SimpleNamespace(cpu_times=lambda: times)
    )

    @contextmanager
    def started(*_: Any) -> Iterator[Any]:
        yield server

    def run(*_: Any) -> Found:
        done.append("run")
        return found

    for name, value in {
        "read_requests": lambda _: [Request("a"), Request("b")],
        "read_manifest": lambda _: {"name": "x"},
        "engine_us": lambda *_: (1.0, 1.0),
        "started": started,
        "send": lambda url, body: done.append(f"{url} {json.loads(body)['user_id']}"),
        "run": run,
        "find_most": lambda *_: [found],
        "save": lambda *_: Path("x.json"),
    }.items():
        monkeypatch.setattr(most, name, value)
    monkeypatch.setattr("sys.argv", ["most", "requests", "bundle"])
    most.main()
    assert done == ["http://x/v1/recommend a", "http://x/v1/recommend b", "run", "run"]


def test_memory_is_told_under_load_without_the_pages_being_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    process = MagicMock()
    process.children.return_value = []
    process.memory_info.return_value.rss = 5e6
    monkeypatch.setattr(faults, "BROKEN", 6)
    monkeypatch.setattr(faults, "send", lambda *_: 422)
    assert "6 refused, 0 answered, 0 failed; RSS 5 MB before, 5 after" in faults.broken_bodies(
        Started("http://x", (), process)
    )
    process.memory_full_info.assert_not_called()

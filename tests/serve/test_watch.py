"""An event loop that does not turn is seen from outside it."""

from __future__ import annotations

import threading
import time

import pytest

from recfit.serve import watch


def test_a_loop_that_hangs_is_told_once_with_where_and_given_up(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(watch, "EVERY_S", 0.02)
    given_up = threading.Event()
    watched = watch.Watch(given_up.set)
    for _ in range(watch.HUNG * 2):
        time.sleep(0.005)
        watched.beat()
    assert caplog.text == ""
    hang_here(given_up)
    watched.end()
    assert caplog.text.count("nothing has been answered for 0.1 s; the event loop is in") == 1
    assert "in hang_here" in caplog.text


def hang_here(until: threading.Event) -> None:
    assert until.wait(10)

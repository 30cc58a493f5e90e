"""Requests that wait together are answered together, each with its own answer."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
from fake_engine import ITEMS, FakeEngine
from hypothesis import given, settings
from hypothesis import strategies as st

from recfit.serve import ladder
from recfit.serve.batcher import Answer, Batcher
from recfit.types import Recommendation, Request


class Counting(FakeEngine):
    """Remembers how many requests each call had. A user called `poison` makes the whole call fail."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[int] = []

    def recommend(self, requests: Sequence[Request], k: int = 10, **_: object) -> list[Recommendation]:
        self.calls.append(len(requests))
        if any(request.user_id == "poison" for request in requests):
            raise ZeroDivisionError("poison")
        return super().recommend(requests, k)


@dataclass(frozen=True)
class Rung:
    engine: FakeEngine
    quality: float | None = None
    cost_s: float = 1e-4


def ask(engine: FakeEngine, asked: Sequence[tuple[Request, int]], threads: int = 0) -> list[Recommendation | Exception]:
    async def run() -> list[Recommendation | Exception]:
        batcher = Batcher([Rung(engine)], threads)
        found = await asyncio.gather(*(batcher.ask(*one) for one in asked), return_exceptions=True)
        return [one.found if isinstance(one, Answer) else one for one in found]  # type: ignore[misc]

    return asyncio.run(run())


REQUESTS = st.builds(
    Request,
    st.sampled_from(["u1", "7", "stranger", None]),
    st.none() | st.lists(st.sampled_from(ITEMS), max_size=5).map(tuple),
    st.lists(st.sampled_from(ITEMS), max_size=3).map(tuple),
    st.just(()),
    st.none() | st.lists(st.sampled_from(ITEMS), max_size=8).map(tuple),
)


@settings(max_examples=60, deadline=None)
@given(asked=st.lists(st.tuples(REQUESTS, st.integers(1, 60)), max_size=80), threads=st.sampled_from([0, 1, 2]))
def test_together_is_as_alone(asked: list[tuple[Request, int]], threads: int) -> None:
    engine = FakeEngine()
    assert ask(engine, asked, threads) == [engine.recommend([request], k)[0] for request, k in asked]


def test_what_waits_is_the_next_batch_and_no_more_than_the_most(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ladder, "MOST", 8)
    engine = Counting()
    ask(engine, [(Request("u1"), 5)] * 20)
    assert engine.calls == [8, 8, 4]


def test_one_request_waits_for_nobody() -> None:
    engine = Counting()
    ask(engine, [(Request("u1"), 5)])
    assert engine.calls == [1]


@pytest.mark.parametrize("threads", [0, 1])
def test_a_poisoned_request_fails_alone(threads: int) -> None:
    engine = Counting()
    found = ask(engine, [(Request(user), 3) for user in ("u1", "poison", "7", "u1")], threads)
    assert isinstance(found[1], ZeroDivisionError)
    assert [isinstance(one, Recommendation) for one in found] == [True, False, True, True]


def test_requests_that_were_cancelled_are_not_run() -> None:
    release, started = threading.Event(), threading.Event()

    def during(request: Request) -> None:
        if request.user_id == "slow":
            started.set()
            release.wait(5)

    engine = FakeEngine(during)
    seen: list[str | None] = []

    class Seen(FakeEngine):
        def recommend(self, requests: Sequence[Request], k: int = 10, **_: object) -> list[Recommendation]:
            seen.extend(request.user_id for request in requests)
            return engine.recommend(requests, k)

    async def run() -> None:
        batcher = Batcher([Rung(Seen())], 1)
        slow = asyncio.create_task(batcher.ask(Request("slow"), 3))
        await asyncio.to_thread(started.wait, 5)
        storm = [asyncio.create_task(batcher.ask(Request(f"gone {n}"), 3)) for n in range(50)]
        last = asyncio.create_task(batcher.ask(Request("u1"), 3))
        await asyncio.sleep(0)
        assert batcher.oldest_s() > 0
        for task in storm:
            task.cancel()
        await asyncio.sleep(0)
        release.set()
        assert (await slow).found.items
        assert (await last).found.items
        assert batcher.oldest_s() == 0

    asyncio.run(run())
    assert seen == ["slow", "u1"]


def test_free_threads_share_what_waits() -> None:
    together = threading.Barrier(2, timeout=5)
    engine = FakeEngine(lambda request: together.wait() and None)
    assert all(isinstance(one, Recommendation) for one in ask(engine, [(Request("u1"), 3)] * 2, threads=2))

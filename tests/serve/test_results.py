"""Answers that were given before: exact, bounded, asked for once."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import httpx
import pytest
from fake_engine import ITEMS, FakeEngine, app_of
from hypothesis import given, settings
from hypothesis import strategies as st

from recfit.serve import results as module
from recfit.serve.results import ENTRY_BYTES, Known, Results, key_of
from recfit.types import Request

PATH = "/v1/recommend"


class Maker:
    """Makes answers and counts; waits for nobody unless told to."""

    def __init__(self, items: bytes = b"[]") -> None:
        self.items, self.made, self.go = items, 0, asyncio.Event()
        self.go.set()

    async def __call__(self) -> Known:
        self.made += 1
        await self.go.wait()
        return Known(self.items, "model", "b")


def test_a_known_answer_is_not_made_again() -> None:
    async def run() -> None:
        results, make = Results(10_000, 60.0), Maker(b"[1]")
        for _ in range(3):
            assert await results.get(b"a", make) == Known(b"[1]", "model", "b")
        await results.get(b"b", make)
        assert make.made == 2
        assert (results.hits, results.misses, results.shared) == (2, 2, 0)

    asyncio.run(run())


def test_what_is_being_made_is_waited_for_and_a_leaver_takes_nothing_away() -> None:
    async def run() -> None:
        results, make = Results(10_000, 60.0), Maker()
        make.go.clear()
        first, *others = [asyncio.create_task(results.get(b"a", make)) for _ in range(5)]
        await asyncio.sleep(0)
        first.cancel()
        await asyncio.sleep(0)
        make.go.set()
        assert all(answer == Known(b"[]", "model", "b") for answer in await asyncio.gather(*others))
        assert make.made == 2  # one of the others made it
        assert await results.get(b"a", make) == Known(b"[]", "model", "b")
        assert make.made == 2

    asyncio.run(run())


def test_a_failure_is_everybodys_and_is_not_kept() -> None:
    async def fail() -> Known:
        raise ZeroDivisionError

    async def run() -> None:
        results = Results(10_000, 60.0)
        found = await asyncio.gather(*(results.get(b"a", fail) for _ in range(3)), return_exceptions=True)
        assert [type(one) for one in found] == [ZeroDivisionError] * 3
        assert await results.get(b"a", Maker()) == Known(b"[]", "model", "b")

    asyncio.run(run())


@pytest.mark.parametrize("way", ["get", "get_alone"])
def test_entries_end_with_their_time(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])

    async def run() -> None:
        results, make = Results(10_000, 10.0), Maker()
        ask = getattr(results, way)
        await ask(b"a", make)
        now[0] += 8.9
        await ask(b"a", make)
        assert make.made == 1
        now[0] += 2.2
        await ask(b"a", make)
        assert make.made == 2
        assert (results.hits, results.misses) == (1, 2)
        assert results.bytes == ENTRY_BYTES + 2

    asyncio.run(run())


def test_entries_of_one_moment_do_not_end_in_one() -> None:
    async def run() -> set[float]:
        results = Results(10**6, 10.0)
        for n in range(20):
            await results.get(bytes([n]), Maker())
        return {round(ends, 2) for _, ends in results._entries.values()}

    assert len(asyncio.run(run())) > 10


@settings(max_examples=50, deadline=None)
@given(asked=st.lists(st.tuples(st.integers(0, 9), st.integers(0, 900)), max_size=60))
def test_it_never_holds_more_than_it_may(asked: Sequence[tuple[int, int]]) -> None:
    async def run() -> None:
        results = Results(3000, 60.0)
        for key, size in asked:
            await results.get(bytes([key]), Maker(b"x" * size))
            held = sum(len(known.items) + ENTRY_BYTES for known, _ in results._entries.values())
            assert results.bytes == held <= 3000

    asyncio.run(run())


def test_what_was_asked_for_least_recently_leaves() -> None:
    async def run() -> None:
        results, make = Results(3 * (ENTRY_BYTES + 2), 60.0), Maker()
        for key in (b"a", b"b", b"c", b"a", b"d"):
            await results.get(key, make)
        assert list(results._entries) == [b"c", b"a", b"d"]
        await results.get(b"huge", Maker(b"x" * 5000))
        assert len(results._entries) == 3

    asyncio.run(run())


REQUESTS = st.builds(
    Request,
    st.sampled_from(["u1", "7", None]),
    st.none() | st.lists(st.sampled_from(ITEMS[:3]), max_size=2).map(tuple),
    st.lists(st.sampled_from(ITEMS[:3]), max_size=2).map(tuple),
    st.lists(st.sampled_from(ITEMS[:3]), max_size=2).map(tuple),
    st.none() | st.lists(st.sampled_from(ITEMS[:3]), max_size=2).map(tuple),
)


@given(one=REQUESTS, other=REQUESTS, k=st.integers(1, 3), length=st.integers(1, 3))
def test_keys_are_equal_for_equal_requests_alone(one: Request, other: Request, k: int, length: int) -> None:
    assert (key_of("b", one, k) == key_of("b", other, length)) == ((one, k) == (other, length))
    assert key_of("b", one, k) != key_of("c", one, k)


def test_a_context_is_part_of_the_key_and_its_order_is_not(call) -> None:
    told = [None, {"hour": "1"}, {"hour": "2"}, {"day": "1"}, {"hour": "1", "day": "2"}, {"hour": "2", "day": "1"}]
    assert len({key_of("b", Request("u1", context=context), 3) for context in told}) == len(told)
    one, other = (Request(context=context) for context in ({"hour": "1", "day": "2"}, {"day": "2", "hour": "1"}))
    assert key_of("b", one, 3) == key_of("b", other, 3)


def test_a_repeated_request_does_not_reach_the_engine_and_an_event_makes_it_another(call) -> None:
    asked: list[Request] = []
    app = app_of(FakeEngine(asked.append))
    asked.clear()
    first, again = (call(app, "POST", PATH, json={"user_id": "u1"}).json() for _ in range(2))
    assert asked == [Request("u1")]
    assert first.pop("request_id") != again.pop("request_id")
    assert first == again
    call(app, "POST", "/v1/events", json={"events": [{"user_id": "u1", "item_id": "i0"}]})
    after = call(app, "POST", PATH, json={"user_id": "u1"}).json()
    assert after["items"][0]["item_id"] == "i1"
    assert asked[1:] == [Request("u1", recent=("i0",))]
    metrics = call(app, "GET", "/metrics").text
    assert 'recfit_results_total{outcome="hit"} 1.0' in metrics
    assert 'recfit_results_total{outcome="miss"} 2.0' in metrics


def test_a_crowd_that_asks_for_the_same_is_one_call() -> None:
    asked: list[Request] = []
    app = app_of(FakeEngine(asked.append), threads=2)
    asked.clear()

    async def crowd() -> set[str]:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://recfit") as client:
            answers = await asyncio.gather(*(client.post(PATH, json={"user_id": "u1"}) for _ in range(50)))
        return {str([item["item_id"] for item in answer.json()["items"]]) for answer in answers}

    assert len(asyncio.run(crowd())) == 1
    assert asked == [Request("u1")]


def test_without_room_every_request_reaches_the_engine(call) -> None:
    asked: list[Request] = []
    app = app_of(FakeEngine(asked.append), results=Results(0))
    asked.clear()
    for _ in range(3):
        assert call(app, "POST", PATH, json={"user_id": "u1"}).status_code == 200
    assert len(asked) == 3

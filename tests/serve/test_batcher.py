"""Requests that wait together are answered together, each with its own answer."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from unittest.mock import Mock

import pytest
from fake_engine import ITEMS, FakeEngine
from hypothesis import given, settings
from hypothesis import strategies as st

from recfit.serve import caller, ladder
from recfit.serve.batcher import Answer, Batcher, LateError, OverloadError
from recfit.types import Recommendation, Request, RequestContext


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

    return asyncio.run(asyncio.wait_for(run(), 60))


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


class Miscounting(FakeEngine):
    """Gives one answer too few."""

    def recommend(self, requests: Sequence[Request], k: int = 10, **_: object) -> list[Recommendation]:
        return super().recommend(requests, k)[1:]


class Stopping(FakeEngine):
    def recommend(self, requests: Sequence[Request], k: int = 10, **_: object) -> list[Recommendation]:
        return [next(iter(())) for _ in requests]


class Unreadable(FakeEngine):
    def refusal(self, context: RequestContext | None) -> str:
        raise KeyError(*(context or ()))


@pytest.mark.parametrize("threads", [0, 1])
@pytest.mark.parametrize(
    ("engine", "words"),
    [
        (Miscounting(), "RuntimeError('the engine gave 0 answers to 1 requests')"),
        (Stopping(), "RuntimeError('the engine raised StopIteration()')"),
        (Unreadable(), "KeyError('hour')"),
    ],
)
def test_nobody_waits_for_ever_for_an_engine_that_breaks_its_word(engine: FakeEngine, words: str, threads: int) -> None:
    asked = [(Request("u1", context={"hour": "1"}), 3)] * 3
    assert [repr(one) for one in ask(engine, asked, threads)] == [words] * 3


class Panicking(FakeEngine):
    """Raises what is no `Exception`, as Rust does."""

    def recommend(self, requests: Sequence[Request], k: int = 10, **_: object) -> list[Recommendation]:
        raise PanicError("rust")


class PanicError(BaseException): ...


@pytest.mark.parametrize("threads", [0, 1])
def test_what_is_no_exception_ends_nobody_but_who_asked(threads: int) -> None:
    found = ask(Panicking(), [(Request("u1"), 3)] * 3, threads)
    assert [repr(one) for one in found] == ["""RuntimeError("the engine raised PanicError('rust')")"""] * 3


def test_an_engine_that_ends_the_process_does() -> None:
    engine = FakeEngine()
    engine.recommend = Mock(side_effect=SystemExit(3))  # type: ignore[method-assign]
    with pytest.raises(SystemExit):
        ask(engine, [(Request("u1"), 3)])


BEFORE, AFTER = ("choose", "most", "left"), ("took", "add")


@pytest.mark.parametrize(
    ("fault", "threads"),
    [*((fault, threads) for fault in (*BEFORE, *AFTER) for threads in (0, 1)), ("run_in_executor", 1)],
)
def test_a_batch_that_fails_outside_the_engine_is_told_so_and_the_next_is_answered(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, fault: str, threads: int
) -> None:
    """Such as a thread that the system does not give. What fails once the engine has answered is nobody's fault."""
    broken = Mock(side_effect=RuntimeError("can't start new thread"))

    async def ask(batcher: Batcher) -> object:
        if fault == "left":
            caller.left.set(broken)
        return await batcher.ask(Request("u1"), 3)

    async def run() -> tuple[list[object], Answer]:
        batcher = Batcher([Rung(FakeEngine())], threads)
        owners = {"run_in_executor": asyncio.get_running_loop(), "add": batcher._lately}
        with monkeypatch.context() as patch:
            if fault != "left":
                patch.setattr(owners.get(fault, batcher.ladder), fault, broken)
            asked = [asyncio.create_task(ask(batcher)) for _ in range(2)]
            first = await asyncio.gather(*asked, return_exceptions=True)
        return first, await batcher.ask(Request("u1"), 3)

    first, answered = asyncio.run(asyncio.wait_for(run(), 5))
    if fault in AFTER:
        assert all(isinstance(one, Answer) for one in first)
    else:
        assert [repr(one) for one in first] == ["""RuntimeError("can't start new thread")"""] * 2
    assert answered.found.items
    assert "a batch failed" in caplog.text


def test_a_turn_that_fails_before_anybody_leaves_is_followed_by_another() -> None:
    async def run() -> Answer:
        batcher = Batcher([Rung(FakeEngine())])
        batcher.ladder.around = Mock(side_effect=[ZeroDivisionError])  # type: ignore[method-assign]
        await batcher.ask(Request("u1"), 3)
        return await batcher.ask(Request("u1"), 3)

    assert asyncio.run(asyncio.wait_for(run(), 5)).found.items


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
        assert batcher.running_s() > batcher.oldest_s()  # that of what nobody waits in line behind is told too
        for task in storm:
            task.cancel()
        await asyncio.sleep(0)
        release.set()
        assert (await slow).found.items
        assert (await last).found.items
        assert (batcher.oldest_s(), batcher.running_s()) == (0, 0)

    asyncio.run(run())
    assert seen == ["slow", "u1"]


def test_free_threads_share_what_waits() -> None:
    together = threading.Barrier(2, timeout=5)
    engine = FakeEngine(lambda request: together.wait() and None)
    assert all(isinstance(one, Recommendation) for one in ask(engine, [(Request("u1"), 3)] * 2, threads=2))


def crowd(rungs: Sequence[Rung], shed_s: float, *, asked: int = 0, called: int = 0, threads: int = 0) -> Counter[str]:
    """What becomes of so many who come at once: requests, then calls."""

    async def run() -> Counter[str]:
        batcher = Batcher(rungs, threads, shed_s)
        joining = [batcher.ask(Request("u1"), 3) for _ in range(asked)] + [batcher.run(int) for _ in range(called)]
        return Counter(type(one).__name__ for one in await asyncio.gather(*joining, return_exceptions=True))

    return asyncio.run(run())


@pytest.mark.parametrize(
    ("costs", "threads", "most"),
    [
        ([0.125], 0, 9),  # the ninth waits for eight
        ([0.25], 0, 5),
        ([5.0], 0, 1),  # who finds nobody there is let in
        ([0.125], 2, 17),
        ([0.25, 0.0625], 0, 17),  # the cheapest bundle can do it
    ],
)
def test_who_would_wait_too_long_is_refused_before_anybody_has_waited(
    costs: list[float], threads: int, most: int
) -> None:
    rungs = [Rung(FakeEngine(), cost_s=cost) for cost in costs]
    found = crowd(rungs, 1.0, asked=50, threads=threads)
    assert found == {"Answer": most, "OverloadError": 50 - most}


def test_what_requests_took_lately_says_how_long_others_will_wait() -> None:
    async def run() -> int:
        batcher = Batcher([Rung(FakeEngine(), cost_s=1e-3)], shed_s=1.0)
        for _ in range(200):
            batcher.ladder.took(0, 1, 0.125)
        found = await asyncio.gather(*(batcher.ask(Request("u1"), 3) for _ in range(50)), return_exceptions=True)
        return sum(isinstance(one, Answer) for one in found)

    assert asyncio.run(run()) == 9


def test_other_work_waits_in_the_same_line() -> None:
    rung = Rung(FakeEngine(), cost_s=0.125)
    assert crowd([rung], 1.0, called=50) == {"int": 9, "OverloadError": 41}
    assert crowd([rung], 1.0, asked=5, called=50) == {"Answer": 5, "int": 4, "OverloadError": 46}
    # A cheaper bundle answers requests, not these.
    cheap = Rung(FakeEngine(), cost_s=0.0625)
    assert crowd([rung, cheap], 1.0, called=50) == {"int": 9, "OverloadError": 41}


@pytest.mark.parametrize("threads", [0, 1])
def test_what_came_first_runs_first_and_fails_alone(threads: int) -> None:
    order: list[str] = []

    def call(name: str) -> str:
        order.append(name)
        if name == "poison":
            raise ZeroDivisionError
        return name

    async def run() -> list[object]:
        batcher = Batcher([Rung(FakeEngine(lambda request: order.append(f"{request.user_id}")))], threads)
        asked = [
            batcher.run(lambda: call("first")),
            batcher.ask(Request("second"), 3),
            batcher.run(lambda: call("late"), 1.0),  # that was soon after the machine started
            batcher.run(lambda: call("poison")),
            batcher.ask(Request("last"), 3),
        ]
        return await asyncio.gather(*asked, return_exceptions=True)

    found = asyncio.run(run())
    assert [type(one) for one in found] == [str, Answer, LateError, ZeroDivisionError, Answer]
    assert order == ["first", "second", "last", "poison"] or order == ["first", "second", "poison", "last"]


def test_a_check_is_let_in_and_comes_first() -> None:
    order: list[str | None] = []

    async def run() -> int:
        engine = FakeEngine(lambda request: order.append(request.user_id))
        batcher = Batcher([Rung(engine, cost_s=0.5)], shed_s=1.0)
        asked = [batcher.ask(Request(f"{n}"), 3) for n in range(4)]
        found = await asyncio.gather(*asked, batcher.check(Request("canary"), 3, 0), return_exceptions=True)
        return sum(isinstance(one, OverloadError) for one in found)

    assert asyncio.run(run()) == 1
    assert order == ["canary", "0", "1", "2"]


def test_a_check_is_of_its_own_rung_while_the_cheapest_answers() -> None:
    order: list[tuple[int, str | None]] = []

    def during(rung: int) -> FakeEngine:
        return FakeEngine(lambda request: order.append((rung, request.user_id)))

    async def run() -> list[Answer]:
        batcher = Batcher([Rung(during(0), cost_s=1e-2), Rung(during(1), cost_s=1e-5)])
        asked = [batcher.ask(Request("u1"), 3) for _ in range(20)]
        return await asyncio.gather(*asked, *(batcher.check(Request("canary"), 3, rung) for rung in (0, 1)))

    found = asyncio.run(run())
    assert {answer.rung for answer in found[:20]} == {1}
    assert [answer.rung for answer in found[20:]] == [0, 1]
    assert sorted(one for one in order if one[1] == "canary") == [(0, "canary"), (1, "canary")]


@pytest.mark.parametrize("threads", [0, 1])
def test_what_clients_left_is_not_run(threads: int) -> None:
    engine = Counting()
    gone: set[str] = set()

    async def ask(batcher: Batcher, name: str) -> object:
        caller.left.set(lambda: name in gone)
        try:
            return await (
                batcher.run(lambda: engine.calls.append(-1)) if "call" in name else batcher.ask(Request(name), 3)
            )
        except asyncio.CancelledError:
            return "cancelled"

    async def run() -> list[object]:
        batcher = Batcher([Rung(engine)], threads)
        tasks = [asyncio.create_task(ask(batcher, name)) for name in ("u1", "left", "call", "left call", "7")]
        await asyncio.sleep(0)
        gone.update(("left", "left call"))
        return await asyncio.gather(*tasks)

    found = asyncio.run(run())
    assert [one == "cancelled" for one in found] == [False, True, False, True, False]
    assert sorted(engine.calls) == [-1, 2]

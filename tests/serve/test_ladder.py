"""Quality for latency, while it is needed, and no longer."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
from fake_engine import FakeEngine
from hypothesis import given
from hypothesis import strategies as st

from recfit.serve import ladder as module
from recfit.serve import results
from recfit.serve.app import make_app
from recfit.serve.batcher import Batcher
from recfit.serve.fleet import Fleet, Served
from recfit.serve.ladder import HOLD_S, MOST, Ladder
from recfit.types import Recommendation, Request

PATH, BUDGET_S = "/v1/recommend", 0.02


COSTS = (1e-3, 2e-4, 1e-5)  # of the budget of 20 ms, 12 requests of the best rung are what may wait


def ladder_of(costs: Sequence[float] = COSTS, qualities: Sequence[float | None] = (0.2, 0.18, 0.0)) -> Ladder:
    return Ladder(costs, qualities, BUDGET_S)


def rushed(rate: float, seconds: float = 20.0) -> tuple[Ladder, float, float]:
    """A ladder before which `rate` requests a second arrive, one after the other; the longest that one of them waited and the
    share of the time in which the server worked."""
    ladder, now, busy, longest, arrived = ladder_of(), 0.0, 0.0, 0.0, 0
    line: list[float] = []
    while now < seconds:
        while arrived / rate <= now:
            line.append(arrived / rate)
            arrived += 1
        if not line:
            now = arrived / rate
            continue
        rung = ladder.choose(len(line), now)
        count = min(len(line), ladder.most(rung))
        took = count * COSTS[rung]
        ladder.took(rung, count, took)
        ladder.served[rung] += count
        now, busy = now + took, busy + took
        longest = max(longest, now - line[0])
        del line[:count]
    return ladder, longest, busy / now


@pytest.mark.parametrize("rate", [100, 500, 950])
def test_a_server_that_keeps_up_stays_at_the_top(rate: float) -> None:
    assert rushed(rate)[0].served[1:] == [0, 0]


@pytest.mark.parametrize("rate", [1100, 2000, 4000, 6000, 20_000, 80_000])
def test_a_rush_is_answered_in_time_with_no_more_than_it_takes(rate: float) -> None:
    ladder, longest, busy = rushed(rate)
    assert longest < BUDGET_S
    assert busy > 0.97  # what was bought with quality was needed
    assert ladder.served[2 if rate < 5000 else 0] < 0.01 * sum(ladder.served)  # two neighbours share the load


def test_it_goes_down_at_once_and_up_when_half_of_that_waits() -> None:
    ladder = ladder_of()
    waits = (12, 13, 12, 7, 6, 12, 13, 6)
    assert [ladder.choose(waiting, 0.0) for waiting in waits] == [0, 1, 1, 1, 0, 0, 1, 0]
    assert ladder.choose(10**6, 0.0) == 2


def test_next_to_the_cheapest_rung_that_was_needed_only_its_neighbour_answers() -> None:
    ladder = ladder_of()
    assert ladder.choose(1000, 0.0) == 2
    assert [ladder.choose(1, now) for now in (0.01, 0.1, HOLD_S)] == [1, 1, 1]
    ladder.choose(1, HOLD_S + 0.02)
    assert ladder.choose(1, HOLD_S + 0.03) == 0


def test_what_goes_in_and_out_is_part_of_the_cost() -> None:
    ladder = ladder_of()
    for _ in range(200):
        ladder.around(10, 10 * 1e-3)
    assert ladder.choose(7, 0.0) == 1
    assert ladder.cost(0) == pytest.approx(2e-3, rel=0.01)


def test_a_pause_does_not_count_and_a_slow_rung_is_tried_again() -> None:
    ladder = ladder_of()
    ladder.took(0, 1, 5.0)  # the process was stopped
    assert ladder.costs[0] < 1.2e-3
    for _ in range(500):
        ladder.took(0, 1, 0.05)
    assert ladder.choose(1, 0.0) == 1
    batches = 0
    while ladder.choose(1, 0.0) == 1:
        ladder.took(1, 1, COSTS[1])
        batches += 1
    assert 100 < batches < 10_000


def test_a_batch_is_over_before_long() -> None:
    ladder = ladder_of((1.0, 2e-4, 1e-5, 0.0), (None,) * 4)
    assert [ladder.most(rung) for rung in range(4)] == [1, 5, MOST, MOST]


@given(
    seen=st.lists(st.tuples(st.integers(0, 999), st.floats(0, 1)), max_size=50),
    costs=st.lists(st.floats(0, 1), min_size=1, max_size=5),
)
def test_the_rung_is_always_one_that_there_is(seen: Sequence[tuple[int, float]], costs: Sequence[float]) -> None:
    ladder = Ladder(costs, [None] * len(costs), BUDGET_S)
    for waiting, seconds in seen:
        rung = ladder.choose(waiting, 0.0)
        assert 0 <= rung < len(costs)
        assert 1 <= ladder.most(rung) <= MOST
        ladder.took(rung, 1, seconds)


def test_a_deadline_gets_the_best_rung_that_makes_it() -> None:
    ladder = ladder_of((0.05, 0.01, 0.001))
    assert [ladder.fitting(0, 1, left) for left in (1.0, 0.02, 0.005, 0.0001)] == [0, 1, 2, 2]
    assert ladder.fitting(0, 10, 0.2) == 1
    assert ladder.fitting(1, 1, 1.0) == 1


def test_quality_is_that_of_what_answered_lately(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    ladder = ladder_of()
    assert (ladder.quality(), ladder.level()) == (0.2, 0.0)
    for rung in (0, 1, 1, 2):
        ladder.answered(rung)
    assert ladder.quality() == pytest.approx((0.2 + 2 * 0.18) / 4)
    assert ladder.level() == 1.0
    now[0] += 10 * module.SECONDS
    assert (ladder.quality(), ladder.level()) == (0.2, 0.0)
    ladder.answered(1)
    assert ladder.quality() == pytest.approx(0.18)
    assert ladder.served == [1, 3, 1]


def test_quality_is_unknown_where_one_that_answers_promises_none() -> None:
    ladder = ladder_of((1e-3, 1e-4), (0.2, None))
    ladder.answered(0)
    assert ladder.quality() == pytest.approx(0.2)
    ladder.answered(1)
    assert ladder.quality() is None


class Slow(FakeEngine):
    """Takes `ms` for each request, working."""

    def __init__(self, name: str, ms: float, ndcg: float) -> None:
        super().__init__()
        self.ms = 0.0
        self.manifest = {**self.manifest, "bundle_id": name, "promise": {"metrics": {"ndcg@10": ndcg}}}
        self.pace = ms

    def recommend(self, requests: Sequence[Request], k: int = 10, **_: object) -> list[Recommendation]:
        until = time.perf_counter() + self.ms * len(requests) / 1e3
        while time.perf_counter() < until:
            pass
        return super().recommend(requests, k)


def test_a_crowd_moves_an_app_down_its_ladder_and_it_comes_back(call) -> None:
    engines = [Slow("full", 2.0, 0.2), Slow("cheap", 0.0, 0.1)]
    for engine in engines:
        engine.ms = engine.pace
    fleet = Fleet(engines, budget_s=BUDGET_S)
    app, ladder = make_app(fleet), fleet.loaded["default"].ladder

    async def run() -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://recfit") as client:

            async def ask(number: int) -> dict[str, Any]:
                found: dict[str, Any] = (await client.post(PATH, json={"user_id": f"{number}"})).json()
                return found

            first, crowd = await ask(9_999), list[dict[str, Any]]()
            for wave in range(12):
                crowd += await asyncio.gather(*(ask(wave * 30 + n) for n in range(30)))
                await asyncio.sleep(0)
            return crowd, [first, await ask(10_000)]

    crowd, calm = asyncio.run(run())
    cheap = [answer for answer in crowd if answer["bundle"] == "cheap"]
    assert len(cheap) > 100
    assert all(answer["degraded"] for answer in cheap)
    assert [answer["bundle"] for answer in calm] == ["full", "full"]
    assert not any("degraded" in answer for answer in calm)
    metrics = call(app, "GET", "/metrics").text
    assert f'recfit_rung_requests_total{{model="default",rung="1"}} {ladder.served[1]:.1f}' in metrics
    assert 'recfit_expected_quality{model="default"} 0.1' in metrics


def test_a_cheap_answer_is_known_for_seconds_only(call, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(results.time, "monotonic", lambda: now[0])
    engines = [Slow("full", 0.0, 0.2), Slow("cheap", 0.0, 0.1)]
    fleet = Fleet(engines)
    app, ladder = make_app(fleet), fleet.loaded["default"].ladder
    ladder.costs[0], ladder._at_first = 1.0, (1.0, 0.0)  # nobody has the time

    def ask() -> str:
        bundle: str = call(app, "POST", PATH, json={"user_id": "u1"}).json()["bundle"]
        return bundle

    assert ask() == "cheap"
    ladder.costs[0], ladder._at_first = 0.0, (0.0, 0.0)
    assert ask() == "cheap"
    assert ladder.served == [0, 2]
    now[0] += 2 * results.DEGRADED_S
    assert ask() == "full"


@pytest.mark.parametrize("names", [("full",), ("full", "popular"), ("full", "popular", "cheap")])
def test_a_cheap_answer_is_not_that_of_another_ladder_with_the_same_best_bundle(call, names: Sequence[str]) -> None:
    fleet = Fleet([Slow("full", 0.0, 0.2), Slow("cheap", 0.0, 0.1)], open_engine=lambda path: Slow(path.name, 0.0, 0.2))
    app, ladder = make_app(fleet), fleet.loaded["default"].ladder
    ladder.costs[0], ladder._at_first = 1.0, (1.0, 0.0)  # nobody has the time

    def ask(**more: str) -> str:
        answer = call(app, "POST", PATH, json={"user_id": "u1", **more})
        bundle: str = answer.json()["bundle"]
        assert (answer.status_code, answer.json().get("degraded", False)) == (200, bundle != "full")
        return bundle

    assert ask() == "cheap"
    asyncio.run(fleet.swap("other", [*map(Path, names)]))
    asyncio.run(fleet.swap("default", [*map(Path, names)]))
    assert [ask(model="other"), ask()] == ["full", "full"]
    assert fleet.loaded["default"].ladder.served == [1] + [0] * (len(names) - 1)


def test_the_other_protocol_is_told_of_a_cheap_answer_too(call) -> None:
    fleet = Fleet([Slow("full", 0.0, 0.2), Slow("cheap", 0.0, 0.1)])
    app, ladder = make_app(fleet), fleet.loaded["default"].ladder
    asked = {"inputs": [{"name": "user_id", "shape": [1], "datatype": "BYTES", "data": ["u1"]}]}

    def infer() -> tuple[str, dict[str, bool] | None]:
        found = call(app, "POST", "/v2/models/default/infer", json=asked).json()
        return found["model_version"], found.get("parameters")

    assert infer() == ("full", None)
    ladder.costs[0], ladder._at_first = 1.0, (1.0, 0.0)  # nobody has the time
    assert infer() == ("cheap", {"degraded": True})


def test_a_cheap_bundle_answers_without_a_context_that_it_cannot_read(call) -> None:
    cheap = Slow("cheap", 0.0, 0.1)
    cheap.context_names = ()
    fleet = Fleet([Slow("full", 0.0, 0.2), cheap])
    app, ladder = make_app(fleet), fleet.loaded["default"].ladder
    ladder.costs[0], ladder._at_first = 1.0, (1.0, 0.0)  # nobody has the time
    answer = call(app, "POST", PATH, json={"user_id": "u1", "context": {"hour": "13"}})
    assert (answer.status_code, answer.json()["bundle"]) == (200, "cheap")
    answer = call(app, "POST", PATH, json={"user_id": "u1", "context": {"weather": "dry"}})
    assert (answer.status_code, answer.json()["error"]["field"]) == (422, "context")


def test_who_would_be_late_in_line_goes_ahead_to_a_rung_that_has_the_time() -> None:
    engines = [Slow("full", 20.0, 0.2), Slow("cheap", 0.0, 0.1)]
    for engine in engines:
        engine.ms = engine.pace
    batcher = Batcher([Served(engine) for engine in engines], budget_s=10.0)

    async def run() -> list[tuple[int, float]]:
        begin = time.monotonic()

        async def ask(number: int, deadline: float) -> tuple[int, float]:
            return (await batcher.ask(Request(f"{number}"), 3, deadline)).rung, time.monotonic() - begin

        crowd = [ask(number, math.inf) for number in range(20)]
        return await asyncio.gather(*crowd, ask(20, begin + 0.015), ask(21, begin + 60.0))

    *crowd, urgent, patient = asyncio.run(run())
    assert {rung for rung, _ in crowd} == {0}
    assert urgent[0] == 1
    assert urgent[1] < min(took for _, took in crowd)
    assert patient[0] == 0


def test_deadlines_over_http(call) -> None:
    app = make_app(Fleet([FakeEngine()]))
    assert call(app, "POST", PATH, json={"user_id": "u1", "deadline_ms": 1000}).status_code == 200
    late = call(app, "POST", PATH, json={"user_id": "u1", "k": 3, "deadline_ms": 1e-9})
    assert (late.status_code, late.json()["error"]["code"]) == (504, "deadline_exceeded")
    assert call(app, "POST", PATH, json={"user_id": "u1", "deadline_ms": 1e-9}).status_code == 200  # known already
    for wrong in (0, -1, "1", True):
        answer = call(app, "POST", PATH, json={"user_id": "u1", "deadline_ms": wrong})
        assert (answer.status_code, answer.json()["error"]["field"]) == (422, "deadline_ms")
    requests = [{"user_id": "u2", "deadline_ms": 1e-9}, {"user_id": "u2"}]
    outcomes = call(app, "POST", "/v1/recommend/batch", json={"requests": requests}).json()["outcomes"]
    assert [outcome.keys() for outcome in outcomes] == [{"error"}, {"answer"}]

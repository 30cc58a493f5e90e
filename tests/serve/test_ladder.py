"""Quality for latency, while it is needed, and no longer."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from typing import Any

import httpx
import pytest
from fake_engine import FakeEngine
from hypothesis import given
from hypothesis import strategies as st

from recfit.serve.app import make_app
from recfit.serve.fleet import Fleet
from recfit.serve.ladder import HIGH, LOW, TICK_S, Controller, Ladder
from recfit.types import Recommendation, Request

PATH, BUDGET_S = "/v1/recommend", 0.02


class Rung:
    def __init__(self, quality: float | None, takes_s: float = 0.0) -> None:
        self.quality, self.takes_s, self.bundle = quality, takes_s, f"{quality}"

    def expected_s(self) -> float:
        return self.takes_s

    def oldest_s(self) -> float:
        return 0.0


def settled(capacities: Sequence[float], rate: float, ticks: int = 3000) -> tuple[Controller, float]:
    """Where a controller ends up where rung i takes 1 / capacities[i] of the time for a request, and the mean load then."""
    control, loads = Controller(len(capacities), BUDGET_S), []
    for _ in range(ticks):
        low = int(control.level)
        share = control.level - low
        cost = (1 - share) / capacities[low] + (share / capacities[low + 1] if share else 0.0)
        load = rate * cost
        control.update(min(1.0, load), max(0.0, load - 1) * TICK_S, 0.0)
        loads.append(load)
    return control, sum(loads[-500:]) / 500


def test_a_server_that_keeps_up_stays_at_the_top() -> None:
    assert settled([1000, 5000, 20_000], 500)[0].level == 0.0


@pytest.mark.parametrize("rate", [900, 1500, 3000, 9000])
def test_it_goes_down_as_far_as_it_must_and_no_further(rate: float) -> None:
    control, load = settled([1000, 5000, 20_000], rate)
    assert LOW * 0.9 <= load <= HIGH * 1.1
    assert 0 < control.level < 2


def test_beyond_all_rungs_it_stays_at_the_cheapest() -> None:
    assert settled([1000, 5000, 20_000], 100_000)[0].level == 2.0


def test_danger_moves_a_whole_rung_and_waits_for_what_it_does() -> None:
    control = Controller(3, BUDGET_S)
    levels = []
    for _ in range(8):
        control.update(0.1, 0.0, BUDGET_S)
        levels.append(control.level)
    assert levels == [1, 1, 1, 2, 2, 2, 2, 2]
    flooded = Controller(3, BUDGET_S)
    flooded.update(0.1, 3 * BUDGET_S, 0.0)
    assert flooded.level == 2


def test_a_burst_that_passes_moves_nothing() -> None:
    control = Controller(3, BUDGET_S)
    for tick in range(500):
        control.update(0.9 if tick % 10 == 0 else 0.3, BUDGET_S / 2 if tick % 10 == 0 else 0.0, 0.0)
    assert control.level == 0.0


def test_it_comes_back_when_the_load_goes() -> None:
    control = Controller(3, BUDGET_S)
    control.level = 2.0
    seconds = 0.0
    while control.level > 0:
        control.update(0.1, 0.0, 0.0)
        seconds += TICK_S
    assert 0.5 < seconds < 5  # not at once: the next wave may come


@given(
    seen=st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1)), max_size=50), rungs=st.integers(1, 5)
)
def test_the_level_is_always_one_that_there_is(seen: Sequence[tuple[float, float, float]], rungs: int) -> None:
    control = Controller(rungs, BUDGET_S)
    for busy, late, oldest in seen:
        control.update(busy, late, oldest)
        assert 0 <= control.level <= rungs - 1


def test_requests_are_spread_between_two_rungs() -> None:
    random.seed(0)
    ladder = Ladder([Rung(0.2), Rung(0.1), Rung(0.0)], BUDGET_S)
    ladder._watching = True
    ladder.control.level = 1.25
    for _ in range(4000):
        ladder.choose()
    assert ladder.served[0] == 0
    assert 0.22 < ladder.served[2] / 4000 < 0.28
    assert ladder.quality() == pytest.approx(0.1 * ladder.served[1] / 4000)


def test_a_deadline_gets_the_best_rung_that_is_expected_to_make_it() -> None:
    ladder = Ladder([Rung(0.2, 0.05), Rung(0.1, 0.01), Rung(0.0, 0.001)], BUDGET_S)
    ladder._watching = True
    assert [ladder.choose(left) for left in (1.0, 0.02, 0.005, 0.0001, None)] == [0, 1, 2, 2, 0]


def test_quality_is_unknown_where_one_that_answers_promises_none() -> None:
    ladder = Ladder([Rung(0.2), Rung(None)], BUDGET_S)
    ladder._watching = True
    assert ladder.quality() == 0.2
    ladder.choose()
    assert ladder.quality() == 0.2
    ladder.control.level = 1.0
    ladder.choose()
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
    engines = [Slow("full", 4.0, 0.2), Slow("cheap", 0.0, 0.1)]
    fleet = Fleet(engines, budget_s=BUDGET_S)
    for engine in engines:
        engine.ms = engine.pace
    app, ladder = make_app(fleet), fleet.loaded["default"].ladder

    async def run() -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://recfit") as client:

            async def ask(number: int) -> dict[str, Any]:
                found: dict[str, Any] = (await client.post(PATH, json={"user_id": f"{number}"})).json()
                return found

            crowd: list[dict[str, Any]] = []
            for wave in range(12):
                crowd += await asyncio.gather(*(ask(wave * 30 + n) for n in range(30)))
                await asyncio.sleep(0)
            assert ladder.control.level > 0
            ladder.control.level = ladder.control.load = 0.0
            await asyncio.sleep(3 * TICK_S)
            return crowd, [await ask(10_000)]

    crowd, calm = asyncio.run(run())
    assert crowd[0]["bundle"] == "full"
    assert "degraded" not in crowd[0]
    cheap = [answer for answer in crowd if answer["bundle"] == "cheap"]
    assert len(cheap) > 100
    assert all(answer["degraded"] for answer in cheap)
    assert calm[0]["bundle"] == "full"
    metrics = call(app, "GET", "/metrics").text
    assert f'recfit_rung_requests_total{{model="default",rung="1"}} {ladder.served[1]:.1f}' in metrics
    assert 'recfit_expected_quality{model="default"} 0.1' in metrics


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

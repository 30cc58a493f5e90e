"""Arms by a stable hash, shadows that nobody waits for, and the log that tells what was shown."""

from __future__ import annotations

import asyncio
import gc
import sqlite3
import threading
import time
import weakref
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
from fake_engine import FakeEngine

from recfit.serve import experiments as module
from recfit.serve import shadows
from recfit.serve.app import make_app
from recfit.serve.experiments import Experiment, Experiments, read_plan
from recfit.serve.exposures import Exposures
from recfit.serve.fleet import Fleet
from recfit.types import BundleError, ConfigError, Recommendation, Request

PATH = "/v1/recommend"
PLAN = '[[experiment]]\nname = "e"\narms = { default = 1, red = 3 }\n'
SHADOW = '[[shadow]]\nmodel = "default"\nto = "red"\n'


class Named(FakeEngine):
    def __init__(self, name: str, during: Any = lambda request: None) -> None:
        super().__init__(during)
        self.manifest: Mapping[str, Any] = {**self.manifest, "bundle_id": f"id of {name}"}


def fleet_of(red: FakeEngine, preload: Sequence[str] = ("red",)) -> Fleet:
    return Fleet([Named("first")], paths={"red": [Path("red")]}, preload=preload, open_engine=lambda path: red)


def experiments_of(path: Path) -> Experiments:
    return Experiments(path, lambda: ["default", "red"])


def test_arms_are_sticky_and_as_large_as_their_weights() -> None:
    experiment = Experiment("e", {"a": 0.2, "b": 0.3, "c": 0.5})
    counts = Counter(experiment.arm(f"user {n}") for n in range(20_000))
    assert [round(counts[arm] / 20_000, 2) for arm in "abc"] == pytest.approx([0.2, 0.3, 0.5], abs=0.011)
    assert all(experiment.arm(f"{n}") == experiment.arm(f"{n}") for n in range(100))
    other = Experiment("f", {"a": 0.5, "b": 0.5})
    same = sum(other.arm(f"{n}") == Experiment("g", {"a": 0.5, "b": 0.5}).arm(f"{n}") for n in range(4000))
    assert 1850 < same < 2150  # another experiment spreads the users anew


def test_a_heavier_arm_keeps_its_users() -> None:
    """A ramp moves users of the other arm over, and none back."""
    before, after = Experiment("e", {"a": 0.1, "b": 0.9}), Experiment("e", {"a": 0.5, "b": 0.5})
    users = [f"{n}" for n in range(2000)]
    assert all(after.arm(user) == "a" for user in users if before.arm(user) == "a")


def test_users_get_their_arm_and_the_log_tells(call, tmp_path: Path) -> None:
    (tmp_path / "plan.toml").write_text(PLAN)
    exposures = Exposures(tmp_path / "log.db")
    experiments = experiments_of(tmp_path / "plan.toml")
    app = make_app(fleet_of(Named("red")), experiments=experiments, exposures=exposures)
    answers = {f"u{n}": call(app, "POST", PATH, json={"user_id": f"u{n}"}).json() for n in range(38)}
    answers |= {f"u{n}": call(app, "POST", PATH, json={"user_id": f"u{n}", "explain": True}).json() for n in (38, 39)}
    for user, answer in answers.items():
        arm = experiments.arm("default", user)[0]
        assert (answer["variant"], answer["bundle"]) == (arm, "id of red" if arm == "red" else "id of first")
    assert {answer["variant"] for answer in answers.values()} == {"default", "red"}
    nobody = call(app, "POST", PATH, json={"history": ["i1"]}).json()
    assert "variant" not in nobody
    forced = call(app, "POST", PATH, json={"user_id": "u1", "variant": "red"}).json()
    assert forced["bundle"] == "id of red"
    assert "variant" not in forced
    shown = answers["u3"]["request_id"]
    told = {"request_id": shown, "item_id": "i4", "kind": "like"}
    assert call(app, "POST", "/v1/feedback", json=told).json() == {"kept": True}
    exposures.close()
    with sqlite3.connect(tmp_path / "log.db") as file:
        rows = file.execute("SELECT request, user, experiment, arm, bundle FROM exposures").fetchall()
        assert file.execute("SELECT request, item, kind FROM feedback").fetchall() == [(shown, "i4", "like")]
    file.close()
    assert {row[0] for row in rows} == {answer["request_id"] for answer in answers.values()}
    assert len({row[1] for row in rows}) == 40
    assert not {row[1] for row in rows} & set(answers)  # hashed
    assert all(row[4] == ("id of red" if row[3] == "red" else "id of first") for row in rows)


def test_without_a_log_feedback_is_refused_with_what_to_do(call) -> None:
    answer = call(make_app(fleet_of(Named("red"))), "POST", "/v1/feedback", json={"request_id": "r"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "no_exposure_log")
    assert "--exposures FILE" in answer.json()["error"]["message"]


def test_users_are_the_same_in_a_log_that_goes_on(tmp_path: Path) -> None:
    for number in range(2):
        log = Exposures(tmp_path / "log.db")
        log.shown(f"r{number}", "u1", "e", "a", "b")
        log.close()
    with sqlite3.connect(tmp_path / "log.db") as file:
        users = [user for (user,) in file.execute("SELECT user FROM exposures")]
    file.close()
    assert len(users) == 2
    assert len(set(users)) == 1


def test_a_log_that_cannot_be_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"the exposure log .* cannot be opened: .*; name another"):
        Exposures(tmp_path / "no" / "log.db")


def test_the_plan_is_read_again_when_it_changes_and_a_mistake_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "LOOK_S", 0.0)
    file = tmp_path / "plan.toml"
    file.write_text(PLAN)
    experiments = experiments_of(file)
    assert experiments.arm("default", "u1")[1] == "e"
    file.write_text("")
    assert experiments.arm("default", "u1") == ("default", None)
    file.write_text(PLAN.replace('"e"', '"another"'))
    assert experiments.arm("default", "u1")[1] == "another"
    for mistake in (
        "[[experiment]]\nname = 3",
        "experiment = 3",
        PLAN.replace("red", "rde"),
        SHADOW.replace("red", "rde"),
    ):
        caplog.clear()
        file.write_text(mistake)
        assert experiments.arm("default", "u1")[1] == "another"
        assert "the experiments before go on" in caplog.text
    file.unlink()
    assert experiments.arm("default", "u1")[1] == "another"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "[[experiment]]\nname = 'e'\narms = { a = 1 }",
            r"experiment 'e' has arms = {'a': 1}; give two models or more",
        ),
        ("[[experiment]]\nname = 'e'\narms = { a = 1, b = 0 }", r"each a weight above 0"),
        ("[[experiment]]\nname = 'e'\narms = { a = 1, b = 'x' }", r"each a weight above 0"),
        (PLAN + PLAN, r"has two experiments of model 'default'; one at a time"),
        (SHADOW + SHADOW, r"has two shadows of model 'default'"),
        ("[[shadow]]\nmodel = 'a'\nto = 'a'", r"shadow of 'a' has to = 'a', share = 1; name another model"),
        ("[[shadow]]\nmodel = 'a'\nto = 'b'\nshare = 1.5", r"a share up to 1"),
        ("[[test]]", r"has a table 'test'; allowed: experiment, shadow"),
        ("[[experiment]]\nnam = 'e'", r"experiment has no setting 'nam' \(did you mean 'name'"),
        ("[[", "is not valid TOML"),
        ("[[experiment]]\nname = 'e'\narms = { a = 1, b = inf }", r"each a weight above 0"),
        ("experiment = 3", r"has experiment = 3; begin each one with a line \[\[experiment\]\]"),
        ("[shadow]\nmodel = 'a'", r"has shadow = {'model': 'a'}; begin each one with a line \[\[shadow\]\]"),
    ],
)
def test_a_plan_that_cannot_be_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "plan.toml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_plan(tmp_path / "plan.toml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            PLAN.replace("red", "rde"),
            r"a model of experiment 'e' = 'rde' \(did you mean 'red'\?\); allowed: default, red",
        ),
        (PLAN + "model = 'x'", r"a model of experiment 'e' = 'x'; allowed: default, red"),
        (SHADOW.replace("red", "rde"), r"a model of a shadow = 'rde' \(did you mean 'red'"),
        (SHADOW.replace("default", "x"), r"a model of a shadow = 'x'"),
    ],
)
def test_a_plan_of_models_that_there_are_not_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "plan.toml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        experiments_of(tmp_path / "plan.toml")


def test_users_whose_arm_cannot_be_loaded_are_answered_and_not_part_of_it(
    call, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(path: Path) -> FakeEngine:
        raise BundleError("rows.bin was changed; export it again")

    (tmp_path / "plan.toml").write_text(PLAN)
    experiments, exposures = experiments_of(tmp_path / "plan.toml"), Exposures(tmp_path / "log.db")
    fleet = Fleet([Named("first")], paths={"red": [Path("red")]}, open_engine=refuse)
    app = make_app(fleet, experiments=experiments, exposures=exposures)

    async def run() -> None:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://recfit") as client:
            for user in (f"u{n}" for n in range(20)):
                answer = await client.post(PATH, json={"user_id": user})
                assert (answer.status_code, answer.json()["bundle"]) == (200, "id of first")
                arm = experiments.arm("default", user)[0]
                assert answer.json().get("variant") == ("default" if arm == "default" else None)
            while "cannot be loaded" not in caplog.text:
                await asyncio.sleep(0.01)

    asyncio.run(run())
    exposures.close()
    with sqlite3.connect(tmp_path / "log.db") as file:
        assert file.execute("SELECT DISTINCT arm, bundle FROM exposures").fetchall() == [("default", "id of first")]
    file.close()
    assert caplog.text.count("model red cannot be loaded: rows.bin was changed") == 1
    asked = call(app, "POST", PATH, json={"user_id": "u1", "variant": "red"})
    assert (asked.status_code, asked.json()["error"]["field"]) == (503, "variant")


def test_nobody_waits_for_an_arm_to_be_loaded(tmp_path: Path) -> None:
    """An arm that memory_mb unloaded, or that is new: its users asked for another model."""
    loaded = threading.Event()

    def load(path: Path) -> FakeEngine:
        loaded.wait(10)
        return Named("red")

    (tmp_path / "plan.toml").write_text(PLAN.replace("default = 1", "default = 0.001"))
    fleet = Fleet([Named("first")], paths={"red": [Path("red")]}, open_engine=load, shed_s=30)
    app = make_app(fleet, experiments=experiments_of(tmp_path / "plan.toml"))

    async def run() -> None:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://recfit") as client:
            for _ in range(3):
                answer = (await client.post(PATH, json={"user_id": "u1"})).json()
                assert (answer["bundle"], answer.get("variant")) == ("id of first", None)
            loaded.set()
            while "red" not in fleet.loaded:
                await asyncio.sleep(0.01)
            answer = (await client.post(PATH, json={"user_id": "u1"})).json()
            assert (answer["bundle"], answer["variant"]) == ("id of red", "red")

    try:
        asyncio.run(asyncio.wait_for(run(), 9))
    finally:
        loaded.set()


def test_an_unknown_variant_is_named_by_its_field(call) -> None:
    answer = call(make_app(fleet_of(Named("red"))), "POST", PATH, json={"user_id": "u1", "variant": "rde"})
    assert (answer.status_code, answer.json()["error"]["field"]) == (404, "variant")


def test_a_missing_plan_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"there is no file .*plan.toml of experiments"):
        experiments_of(tmp_path / "plan.toml")


class Watched(Named):
    """Sees requests, slowly, and fails for a user called `poison`."""

    def __init__(self, seconds: float) -> None:
        super().__init__("red")
        self.seconds, self.seen, self.threads = 0.0, [], set()
        self.seen: list[str | None]
        self.threads: set[str]
        self.pace = seconds

    def recommend(self, requests: Sequence[Request], k: int = 10, **_: object) -> list[Recommendation]:
        time.sleep(self.seconds)
        self.seen += [request.user_id for request in requests]
        self.threads.add(threading.current_thread().name)
        if any(request.user_id == "poison" for request in requests):
            raise ZeroDivisionError
        return super().recommend(requests, k)


def test_shadows_see_requests_and_nobody_waits_for_them(call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shadows, "MOST", 8)
    (tmp_path / "plan.toml").write_text(SHADOW)
    red = Watched(0.3)
    app = make_app(fleet := fleet_of(red, preload=()), experiments=experiments_of(tmp_path / "plan.toml"))

    async def run() -> list[float]:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://recfit") as client:
            await client.post(PATH, json={"user_id": "loads it"})
            while "red" not in fleet.loaded:
                await asyncio.sleep(0.01)
            await client.post(PATH, json={"user_id": "is seen"})
            while "is seen" not in red.seen:
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.1)
            red.seconds = red.pace
            spans = []
            for user in ("poison", *(f"u{n}" for n in range(20))):
                begin = time.perf_counter()
                answer = await client.post(PATH, json={"user_id": user})
                spans.append(time.perf_counter() - begin)
                assert answer.json()["bundle"] == "id of first"
                assert "variant" not in answer.json()
            red.seconds = 0.0
            await asyncio.sleep(1.0)
            return spans

    spans = asyncio.run(run())
    assert sorted(spans)[len(spans) // 2] < 0.1
    assert {"is seen", "poison"} <= set(red.seen)
    assert "loads it" not in red.seen
    assert "MainThread" not in red.threads
    metrics = call(app, "GET", "/metrics").text
    assert 'recfit_shadow_requests_total{model="red",outcome="failed"} 1.0' in metrics
    assert 'recfit_shadow_requests_total{model="red",outcome="left out"} 14.0' in metrics
    assert 'recfit_shadow_requests_total{model="red",outcome="ok"} 8.0' in metrics


@pytest.mark.parametrize("explain", [False, True])
def test_an_arm_that_reads_no_context_answers_without_it(call, tmp_path: Path, explain: bool) -> None:
    (tmp_path / "plan.toml").write_text(PLAN)
    red = Named("red")
    red.context_names = ()
    app = make_app(fleet_of(red), experiments=experiments_of(tmp_path / "plan.toml"))
    body = {"context": {"hour": "13"}, "explain": explain}
    answers = [call(app, "POST", PATH, json={"user_id": f"u{n}", **body}) for n in range(20)]
    assert {answer.status_code for answer in answers} == {200}
    assert {answer.json()["variant"] for answer in answers} == {"default", "red"}
    refused = [call(app, "POST", PATH, json={"user_id": f"u{n}", "context": {"weather": "dry"}}) for n in range(20)]
    refused.append(call(app, "POST", PATH, json={"user_id": "u1", "variant": "red", **body}))
    assert {(answer.status_code, answer.json()["error"]["field"]) for answer in refused} == {(422, "context")}


def test_a_shadow_that_reads_no_context_answers_without_it() -> None:
    async def run() -> None:
        red = Named("red")
        red.context_names = ()
        shadowed = shadows.Shadows(fleet_of(red))
        shadowed.send("red", Request("u1", context={"hour": "13"}), 3)
        await over(shadowed)
        assert shadowed.outcomes == {("red", "ok"): 1}

    asyncio.run(run())


async def over(shadowed: shadows.Shadows) -> None:
    """Until all that was sent is done."""
    while shadowed._running:
        await asyncio.sleep(0)
    await asyncio.sleep(0.01)  # what has just ended is let go in the loop's next turns


def test_a_shadow_does_not_keep_a_bundle_that_left() -> None:
    async def run() -> None:
        fleet = Fleet([Named("first")], paths={"red": [Path("red")]}, open_engine=lambda path: Named(path.name))
        shadowed = shadows.Shadows(fleet)
        await fleet.get("red")
        shadowed.send("red", Request("u1"), 3)
        await over(shadowed)
        assert shadowed.outcomes == {("red", "ok"): 1}
        red = weakref.ref((await fleet.get("red")).best.engine)
        fleet.unload("red")
        gc.collect()
        assert red() is None

    asyncio.run(run())


def test_a_shadow_that_is_being_loaded_is_left_out_and_has_not_failed() -> None:
    loaded = threading.Event()

    def load(path: Path) -> FakeEngine:
        loaded.wait(10)
        return Named("red")

    async def run() -> None:
        fleet = Fleet([Named("first")], paths={"red": [Path("red")]}, open_engine=load)
        shadowed = shadows.Shadows(fleet)
        shadowed.send("red", Request("u1"), 3)
        assert not shadowed._running  # none of those who may be under way is one that waits for it
        assert shadowed.outcomes == {("red", "left out"): 1}
        loaded.set()
        await fleet.get("red")  # that has begun
        shadowed.send("red", Request("u1"), 3)
        await over(shadowed)
        assert shadowed.outcomes == {("red", "left out"): 1, ("red", "ok"): 1}

    asyncio.run(run())


def test_a_shadow_is_left_out_while_somebody_waits() -> None:
    go, red = threading.Event(), Watched(0.0)
    go.set()

    def during(request: Request) -> None:
        go.wait(60)

    async def run() -> None:
        fleet = Fleet(
            [Named("first", during)],
            threads=1,
            paths={"red": [Path("red")]},
            open_engine=lambda path: red,
        )
        shadowed, model = shadows.Shadows(fleet), await fleet.get(None)
        await fleet.get("red")
        go.clear()
        asked = [asyncio.create_task(model.batcher.ask(Request("is answered"), 3))]
        await asyncio.sleep(0.01)
        asked.append(asyncio.create_task(model.batcher.ask(Request("waits"), 3)))
        await asyncio.sleep(2 * shadows.LINE_S)
        shadowed.send("red", Request("while they wait"), 3)
        assert shadowed.outcomes == {("red", "left out"): 1}
        go.set()
        await asyncio.gather(*asked)
        shadowed.send("red", Request("later"), 3)
        await over(shadowed)
        assert shadowed.outcomes == {("red", "left out"): 1, ("red", "ok"): 1}

    asyncio.run(run())
    assert "while they wait" not in red.seen

"""Several bundles in one server: by name, loaded late, swapped under load, rolled back, evicted."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import httpx
import pytest
from fake_engine import ITEMS, FakeEngine
from hypothesis import given, settings
from hypothesis import strategies as st

import toys
from recfit.pipeline import CachePlan
from recfit.serve import fleet as module
from recfit.serve import lately
from recfit.serve.app import make_app
from recfit.serve.fleet import DEFAULT, Fleet, Paths, Served, opened
from recfit.serve.schema import HttpError
from recfit.types import BundleError, RecfitError, Recommendation, Request

PATH, ADMIN = "/v1/recommend", 9


class Named(FakeEngine):
    """Recommends one item, named after itself."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self.manifest: Mapping[str, Any] = {**self.manifest, "name": name, "bundle_id": f"id of {name}"}

    def recommend(self, requests: Sequence[Request], k: int = 10, **_: object) -> list[Recommendation]:
        return [Recommendation((self.name,), (1.0,), "model") for _ in requests]


class Opening:
    """Opens `Named` engines after their paths; remembers which. `bad` ones are refused, `dead` ones never answer."""

    def __init__(self) -> None:
        self.paths: list[str] = []
        self.wait = threading.Event()
        self.wait.set()

    def __call__(self, path: Path) -> FakeEngine:
        self.wait.wait(5)
        self.paths.append(path.name)
        if path.name == "bad":
            raise BundleError("rows.bin was changed; export it again")
        if path.name == "dead":
            return FakeEngine(lambda request: 1 / 0)  # type: ignore[arg-type, return-value]
        return Named(path.name)


@pytest.fixture
def opening() -> Opening:
    return Opening()


def fleet_of(opening: Opening, **options: Any) -> Fleet:
    paths = {name: [Path(name)] for name in ("red", "blue", "bad")}
    return Fleet([Named("first")], paths=paths, open_engine=opening, **options)


def test_what_is_preloaded_is_there_before_anybody_asks(opening: Opening) -> None:
    fleet = fleet_of(opening, preload=("blue",))
    assert opening.paths == ["blue"]
    assert [*fleet.loaded] == [DEFAULT, "blue"]
    assert (asyncio.run(fleet.get("blue"))).best.bundle == "id of blue"
    assert opening.paths == ["blue"]


def test_a_bundle_that_cannot_be_preloaded_ends_the_start(opening: Opening) -> None:
    with pytest.raises(BundleError, match="was changed; export it again"):
        fleet_of(opening, preload=("red", "bad"))


def test_a_model_is_loaded_when_it_is_asked_for_first_and_once(call, opening: Opening) -> None:
    fleet = fleet_of(opening)
    app = make_app(fleet)
    told = call(app, "GET", "/v1/models").json()["models"]
    assert [model["bundles"] for model in told] == [["id of first"], [], [], []]
    opening.wait.clear()

    async def crowd() -> list[str]:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://recfit") as client:
            bodies = [{"user_id": f"{n}", "model": "red"} for n in range(20)]
            asked = [asyncio.create_task(client.post(PATH, json=body)) for body in bodies]
            await asyncio.sleep(0.05)
            # Others are answered while it loads.
            assert (await client.post(PATH, json={"user_id": "u1"})).json()["bundle"] == "id of first"
            opening.wait.set()
            return [(await one).json()["bundle"] for one in asked]

    assert asyncio.run(crowd()) == ["id of red"] * 20
    assert opening.paths == ["red"]
    assert call(app, "GET", "/v1/bundle?model=red").json()["name"] == "red"
    assert call(app, "GET", "/readyz?model=blue").status_code == 200
    assert call(app, "GET", "/v1/similar/i1?model=blue").json()["bundle"] == "id of blue"
    assert call(app, "POST", "/v1/score", json={"user_id": "1", "items": [], "model": "blue"}).json()["scores"] == []
    assert opening.paths == ["red", "blue"]


def test_an_unknown_model_is_404_with_those_there_are(call, opening: Opening) -> None:
    answer = call(make_app(fleet_of(opening)), "POST", PATH, json={"user_id": "u1", "model": "green"})
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["field"]) == (404, "unknown_model", "model")
    assert error["message"] == "there is no model 'green'; there are: default, red, blue, bad"


def test_a_model_that_cannot_be_loaded_fails_alone(call, opening: Opening, caplog) -> None:
    app = make_app(fleet_of(opening))
    answer = call(app, "POST", PATH, json={"user_id": "u1", "model": "bad"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "model_unavailable")
    assert "rows.bin" not in answer.text
    assert "rows.bin was changed" in caplog.text
    assert call(app, "POST", PATH, json={"user_id": "u1"}).status_code == 200


def test_a_model_that_cannot_be_loaded_is_not_tried_for_everybody(
    opening: Opening, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run() -> None:
        fleet = fleet_of(opening)
        for tries in (1, 1, 2):
            if tries == 2:
                monkeypatch.setattr(module, "AGAIN_S", 0.0)
            with pytest.raises(HttpError, match="cannot be loaded"):
                await fleet.get("bad")
            assert opening.paths == ["bad"] * tries

    asyncio.run(run())


def test_a_swap_is_answered_by_the_new_bundle_and_a_rollback_by_the_old(opening: Opening) -> None:
    async def run() -> None:
        fleet = fleet_of(opening)
        await fleet.swap(DEFAULT, [Path("second")])
        assert (await fleet.get(None)).best.bundle == "id of second"
        await fleet.rollback(DEFAULT)
        assert (await fleet.get(None)).best.bundle == "id of first"
        await fleet.rollback(DEFAULT)
        assert (await fleet.get(None)).best.bundle == "id of second"
        with pytest.raises(HttpError, match="there was no other bundle behind 'red' since the server started"):
            await fleet.rollback("red")

    asyncio.run(run())


def test_a_rolled_back_model_that_left_comes_back_as_it_was(opening: Opening) -> None:
    async def run() -> None:
        fleet = fleet_of(opening)
        await fleet.get("red")
        await fleet.swap("red", [Path("wide")])
        await fleet.rollback("red")
        fleet.unload("red")
        assert (await fleet.get("red")).best.bundle == "id of red"

    asyncio.run(run())


def test_a_model_that_leaves_during_its_rollback_has_left(opening: Opening) -> None:
    """What it is asked again takes up to a second, in which others go on."""
    warm, go = threading.Event(), threading.Event()

    class Slow(Named):
        def recommend(self, requests: Sequence[Request], k: int = 10, **_: object) -> list[Recommendation]:
            if (
                any(request.user_id for request in requests)
                and threading.current_thread() is not threading.main_thread()
            ):
                warm.set()
                go.wait(5)
            return super().recommend(requests, k)

    red = Slow("red")

    def open_engine(path: Path) -> FakeEngine:
        return red if path.name == "red" else opening(path)

    async def run() -> None:
        fleet = Fleet([Named("first")], paths={"red": [Path("red")]}, open_engine=open_engine, session_mb=7.0)
        await (await fleet.get("red")).batcher.ask(Request("a"), 3)
        await fleet.swap("red", [Path("wide")])
        rolling = asyncio.create_task(fleet.rollback("red"))
        await asyncio.to_thread(warm.wait, 5)
        fleet.unload("red")
        go.set()
        with pytest.raises(HttpError, match="model 'red' was unloaded meanwhile") as refused:
            await rolling
        assert (refused.value.status, refused.value.problem.code) == (409, "nothing_to_roll_back")
        assert [*fleet.loaded] == [DEFAULT]
        assert red.session_mb == 0  # what nobody rolls back to keeps no sessions
        assert (await fleet.get("red")).best.bundle == "id of wide"

    asyncio.run(run())


def test_a_rollback_makes_room_as_a_swap_does(opening: Opening) -> None:
    async def run() -> None:
        fleet = fleet_of(opening, most_mb=95.0)
        fleet._process = Mock(memory_info=lambda: SimpleNamespace(rss=90e6))
        await fleet.get("blue")
        await fleet.swap("red", [Path("wide")])
        await fleet.swap("red", [Path("wider")])
        fleet._process = Mock(memory_info=lambda: SimpleNamespace(rss=96e6))
        await fleet.rollback("red")
        assert [*fleet.loaded] == [DEFAULT, "red"]

    asyncio.run(run())


def test_what_names_stand_for_is_told_after_every_swap(opening: Opening) -> None:
    told: list[Paths] = []

    async def run() -> None:
        fleet = Fleet([Named("first")], paths={"red": [Path("red")]}, open_engine=opening, swapped=told.append)
        await fleet.get("red")
        await fleet.swap(DEFAULT, [Path("second"), Path("third")])
        await fleet.swap("red", [Path("wide")])
        with pytest.raises(BundleError):
            await fleet.swap("red", [Path("bad")])
        await fleet.rollback("red")
        await fleet.rollback(DEFAULT)

    asyncio.run(run())
    both = (Path("second"), Path("third"))
    assert [{name: tuple(paths) for name, paths in one.items()} for one in told] == [
        {"red": (Path("red"),), DEFAULT: both},
        {"red": (Path("wide"),), DEFAULT: both},
        {"red": (Path("red"),), DEFAULT: both},
        {"red": (Path("red"),), DEFAULT: ()},  # as it was given
    ]


@pytest.mark.parametrize(("bundle", "words"), [("bad", "rows.bin was changed"), ("dead", "does not answer")])
def test_a_bundle_that_cannot_answer_leaves_the_old_one(opening: Opening, bundle: str, words: str) -> None:
    async def run() -> None:
        fleet = fleet_of(opening)
        with pytest.raises(Exception, match=words):
            await fleet.swap(DEFAULT, [Path(bundle)])
        assert (await fleet.get(None)).best.bundle == "id of first"

    asyncio.run(run())


def test_a_hundred_swaps_under_load_fail_no_request_and_mix_no_answer(opening: Opening) -> None:
    fleet = fleet_of(opening, threads=1)
    app = make_app(fleet)

    async def run() -> list[dict[str, Any]]:
        answers: list[dict[str, Any]] = []
        over = asyncio.Event()

        async def load(client: httpx.AsyncClient) -> None:
            while not over.is_set():
                answer = await client.post(
                    PATH, json={"history": [ITEMS[len(answers) % 50]], "k": 1 + len(answers) % 9}
                )
                assert answer.status_code == 200
                answers.append(answer.json())

        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://recfit") as client:
            clients = [asyncio.create_task(load(client)) for _ in range(4)]
            for number in range(100):
                path = Path("bad" if number % 10 == 9 else f"bundle {number % 7}")
                try:
                    await fleet.swap(DEFAULT, [path])
                except BundleError:
                    assert path.name == "bad"
            over.set()
            await asyncio.gather(*clients)
        return answers

    answers = asyncio.run(run())
    assert len(answers) > 50
    assert all(answer["bundle"] == f"id of {answer['items'][0]['item_id']}" for answer in answers)
    assert len({answer["bundle"] for answer in answers}) > 3


class Recording(Named):
    """Remembers what it was asked, beside its first canaries; fails for the user `poison` where it `fails`."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.seen: list[list[str | None]] = []
        self.fails = False

    def recommend(self, requests: Sequence[Request], k: int = 10, **_: object) -> list[Recommendation]:
        users = [request.user_id for request in requests]
        self.seen += [users] if any(users) else []
        if self.fails and "poison" in users:
            raise ZeroDivisionError
        return super().recommend(requests, k)


def test_a_new_bundle_has_seen_what_was_asked_before_it_answers() -> None:
    """So has one that comes back: by a rollback, or after it was unloaded."""
    engines: list[Recording] = []

    def open_engine(path: Path) -> FakeEngine:
        engines.append(Recording(path.name))
        engines[-1].fails = True
        return engines[-1]

    async def ask(fleet: Fleet, users: Sequence[str]) -> None:
        model = await fleet.get("red")
        for user in users:
            await model.batcher.ask(Request(user), 3)
        await model.ready.refusal()  # a canary is nobody's request

    async def run() -> None:
        fleet = Fleet([Named("first")], paths={"red": [Path("red")]}, open_engine=open_engine)
        await fleet.get("red")
        engines[0].fails = False
        await ask(fleet, ["poison", "a", "b", "a"])
        await fleet.swap("red", [Path("second")])
        alone, together = [["a"], ["b"], ["poison"]], [["a", "b", "poison"], ["a"], ["b"], ["poison"]]
        assert engines[1].seen == alone + together  # who fails together is asked alone, as always
        await ask(fleet, ["c"])
        engines[0].seen.clear()
        await fleet.rollback("red")
        assert engines[0].seen == [["c"], *alone, ["c", "a", "b", "poison"]]
        fleet.unload("red")
        await fleet.get("red")
        assert engines[2].seen[:4] == [["c"], *alone]

    asyncio.run(run())


def test_a_swap_waits_no_longer_than_it_should_for_what_was_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lately, "MOST_S", -1.0)
    second = Recording("second")

    async def run() -> None:
        fleet = Fleet([Named("first")], open_engine=lambda path: second)
        await fleet.loaded[DEFAULT].batcher.ask(Request("a"), 3)
        assert (await fleet.swap(DEFAULT, [Path("second")])).best.engine is second

    asyncio.run(run())
    assert second.seen == []


def test_of_what_was_asked_lately_no_two_are_of_a_shape() -> None:
    seen = lately.Lately()
    for user in ("a", "b", "a"):
        seen.add(Request(user), 10)
    for history in (ITEMS[:3], ITEMS[3:6], ITEMS[:4]):
        seen.add(Request(history=history), 10)
    seen.add(Request("b", recent=ITEMS[:1]), 10)
    seen.add(Request("b"), 5)
    assert seen.all() == [
        (Request("b"), 10),
        (Request("a"), 10),
        (Request(history=ITEMS[3:6]), 10),
        (Request(history=ITEMS[:4]), 10),
        (Request("b", recent=ITEMS[:1]), 10),
        (Request("b"), 5),
    ]
    for number in range(200):
        seen.add(Request(f"{number}"), 10)
    assert [request.user_id for request, _ in seen.all()] == [f"{n}" for n in range(200 - lately.MOST, 200)]


def test_the_canary_asks_the_model_where_a_list_would_answer(exported) -> None:
    cache = CachePlan(share=1.0, length=12, key="state")
    served = Served(opened(exported(replace(toys.original("sasrec"), cache=cache))))
    sources = [
        served.engine.recommend([asked])[0].source for asked in (Request(history=served.canary.history), served.canary)
    ]
    assert sources == ["cache", "model"]


def test_who_asks_for_what_is_being_loaded_waits_no_longer_than_they_would_in_line(opening: Opening) -> None:
    """Nor than their deadline; and the loading goes on without them."""
    app = make_app(fleet_of(opening, shed_s=0.3))
    opening.wait.clear()

    async def run() -> None:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://recfit") as client:
            late = await client.post(PATH, json={"user_id": "u1", "model": "red", "deadline_ms": 20})
            assert (late.status_code, late.json()["error"]["code"]) == (504, "deadline_exceeded")
            crowd = await asyncio.gather(*(client.post(PATH, json={"user_id": "u1", "model": "red"}) for _ in range(9)))
            crowd += [await client.get("/readyz?model=red")]  # at once: nobody waits for 0.3 s more
            for answer in crowd:
                assert (answer.status_code, answer.json()["error"]["code"]) == (503, "model_loading")
                assert answer.json()["error"]["message"] == "model 'red' is being loaded; come back in a second"
                assert answer.headers["retry-after"] == "1"
            opening.wait.set()
            while not opening.paths:
                await asyncio.sleep(0.01)
            answer = await client.post(PATH, json={"user_id": "u1", "model": "red", "deadline_ms": 9000})
            assert answer.json()["bundle"] == "id of red"

    asyncio.run(run())
    assert opening.paths == ["red"]


@pytest.mark.parametrize("threads", [0, 1])
@pytest.mark.parametrize("bundle", ["bad", "dead"])
def test_a_server_stays_ready_while_a_bundle_comes_that_is_refused(
    opening: Opening, threads: int, bundle: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("recfit.serve.ready.KEPT_S", 0.0)  # each probe is answered for itself
    app = make_app(fleet := fleet_of(opening, threads=threads))
    opening.wait.clear()

    async def run() -> list[int]:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://recfit") as client:
            swapping = asyncio.create_task(fleet.swap(DEFAULT, [Path(bundle)]))
            found = [(await client.get("/readyz")).status_code for _ in range(5)]
            assert not swapping.done()
            opening.wait.set()
            while not swapping.done():
                found.append((await client.get("/readyz")).status_code)
                await asyncio.sleep(0)
            with pytest.raises(RecfitError):
                await swapping
            found.append((await client.get("/readyz")).status_code)
            assert (await client.get("/v1/bundle")).json()["bundle"] == "id of first"
            return found

    assert set(asyncio.run(run())) == {200}


class Offset(FakeEngine):
    """Leaves out the first `least` items of the catalogue."""

    def __init__(self, least: int) -> None:
        super().__init__()
        self.least = least
        self.manifest: Mapping[str, Any] = {**self.manifest, "bundle_id": f"without {least}"}

    def recommend(self, requests: Sequence[Request], k: int = 10, **_: object) -> list[Recommendation]:
        shorter = [replace(request, exclude=(*request.exclude, *ITEMS[: self.least])) for request in requests]
        return super().recommend(shorter, k)


ASKED = st.tuples(
    st.sampled_from(["default", "red", "blue"]),
    st.lists(st.sampled_from(ITEMS), min_size=1, max_size=5).map(tuple),
    st.integers(1, 60),
)


@settings(max_examples=30, deadline=None)
@given(asked=st.lists(ASKED, min_size=1, max_size=40), threads=st.sampled_from([0, 1, 2]))
def test_models_together_answer_as_each_alone(asked: list[tuple[str, tuple[str, ...], int]], threads: int) -> None:
    engines = {"default": Offset(0), "red": Offset(3), "blue": Offset(7)}
    paths = {name: [Path(name)] for name in ("red", "blue")}
    fleet = Fleet([engines["default"]], threads=threads, paths=paths, open_engine=lambda path: engines[path.name])
    app = make_app(fleet)
    bodies = [{"model": model, "history": history, "k": k} for model, history, k in asked]

    async def run() -> list[Any]:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://recfit") as client:
            single = [client.post(PATH, json=body) for body in bodies]
            batch = client.post(f"{PATH}/batch", json={"requests": bodies})
            *answers, together = await asyncio.gather(*single, batch)
            assert [outcome["answer"]["items"] for outcome in together.json()["outcomes"]] == [
                answer.json()["items"] for answer in answers
            ]
            return [answer.json()["items"] for answer in answers]

    alone = [engines[model].recommend([Request(history=history)], k)[0].items for model, history, k in asked]
    assert [tuple(item["item_id"] for item in items) for items in asyncio.run(run())] == alone


def test_what_was_used_least_recently_leaves_when_memory_is_short(opening: Opening) -> None:
    async def run() -> list[list[str]]:
        fleet, seen = fleet_of(opening, most_mb=1.0), []
        for name in ("red", "blue", "red"):
            await fleet.get(name)
            seen.append([*fleet.loaded])
        return seen

    assert asyncio.run(run()) == [["default", "red"], ["default", "blue"], ["default", "red"]]
    assert opening.paths == ["red", "blue", "red"]


def test_no_more_leave_than_is_needed_where_memory_comes_back_late(opening: Opening) -> None:
    """Every model takes 10 MB and gives nothing back while it is looked."""

    async def run() -> list[str]:
        fleet = Fleet(
            [Named("first")], paths={f"m{n}": [Path(f"m{n}")] for n in range(6)}, open_engine=opening, most_mb=95.0
        )
        memory = SimpleNamespace(memory_info=lambda: SimpleNamespace(rss=(50 + 10 * len(opening.paths)) * 1e6))
        fleet._process = memory  # type: ignore[assignment]
        for n in range(5):
            await fleet.get(f"m{n}")
        return [*fleet.loaded]

    assert asyncio.run(run()) == [DEFAULT, "m1", "m2", "m3", "m4"]


def test_what_leaves_gives_its_memory_back_at_once(opening: Opening, monkeypatch: pytest.MonkeyPatch) -> None:
    settled: list[list[str]] = []

    async def run() -> None:
        fleet = fleet_of(opening)
        await fleet.get("red")
        monkeypatch.setattr(module, "settle", lambda: settled.append([*fleet.loaded]))
        fleet.unload("red")

    asyncio.run(run())
    assert settled == [[DEFAULT]]


def admin(app: Any, method: str, path: str, port: int = ADMIN, **options: Any) -> httpx.Response:
    async def request() -> httpx.Response:
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url=f"http://recfit:{port}") as client:
            return await client.request(method, path, **options)

    return asyncio.run(request())


def test_operators_swap_roll_back_and_unload(opening: Opening) -> None:
    app = make_app(fleet_of(opening), admin_port=ADMIN)
    swapped = admin(app, "PUT", "/admin/models/default", json={"bundles": ["second"]})
    assert (swapped.status_code, swapped.json()) == (200, {"name": "default", "bundles": ["id of second"]})
    assert admin(app, "POST", PATH, json={"user_id": "u1"}).json()["bundle"] == "id of second"
    assert admin(app, "POST", "/admin/models/default/rollback").json()["bundles"] == ["id of first"]
    assert admin(app, "PUT", "/admin/models/green", json={"bundles": ["blue"]}).status_code == 200
    assert admin(app, "POST", PATH, json={"user_id": "u1", "model": "green"}).json()["bundle"] == "id of blue"
    assert admin(app, "DELETE", "/admin/models/green").json() == {"name": "green", "bundles": []}
    assert admin(app, "DELETE", "/admin/models/default").json()["error"]["code"] == "default_stays"
    assert admin(app, "DELETE", "/admin/models/red").json() == {"name": "red", "bundles": []}  # it was not loaded
    unknown = admin(app, "DELETE", "/admin/models/rde")
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "unknown_model")
    assert unknown.json()["error"]["message"] == "there is no model 'rde'; loaded are: default"
    refused = admin(app, "PUT", "/admin/models/default", json={"bundles": ["bad"]})
    assert (refused.status_code, refused.json()["error"]["code"]) == (422, "bundle_refused")
    assert "the old one goes on" in refused.json()["error"]["message"]
    for body in (b"", b"[]", b'{"bundles": 3}', b'{"path": "x"}', b'{"bundles": []}', b'{"bundles": ["\xff"]}'):
        assert admin(app, "PUT", "/admin/models/default", content=body).status_code == 422


@pytest.mark.parametrize("admin_port", [None, ADMIN])
def test_the_public_port_has_no_routes_of_operators(opening: Opening, admin_port: int | None) -> None:
    app = make_app(fleet_of(opening), admin_port=admin_port)
    for method, path in (("PUT", "/admin/models/default"), ("POST", "/admin/models/default/rollback")):
        assert admin(app, method, path, 80, json={"bundles": ["second"]}).status_code == 404
    assert not opening.paths

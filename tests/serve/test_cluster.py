"""The app on Ray Serve: the same answers, behind HAProxy, replicas that share what users do."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import httpx
import pytest
from test_shared import Redis

from recfit.config import Serve
from recfit.engine import open_bundle
from recfit.serve.cluster import FLAGS, TARGET, Replica, run, scale
from recfit.serve.exposures import Exposures
from recfit.types import ConfigError, Request

START_S, STOP_S = 180.0, 90.0


@pytest.fixture(scope="module")
def served(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of two replicas on a Ray of their own."""
    redis = Redis(tmp_path_factory.mktemp("redis"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "recfit.cli", "serve", str(bundle), "--engine", "ray", "--workers", "2", "--json"]
    environment = {name: value for name, value in os.environ.items() if name not in FLAGS} | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [*command, "--port", str(port), "--redis", redis.url],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    assert process.stdout is not None
    told = next((line for line in process.stdout if line.startswith("{")), None)
    assert told is not None, process.communicate()[1]
    assert json.loads(told) == {"serving": "tiny", "url": f"http://127.0.0.1:{port}"}
    yield f"http://127.0.0.1:{port}"
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=STOP_S)
    redis.stop()
    assert process.returncode == 0


def test_it_answers_what_the_engine_answers_and_replicas_share_events(bundle: Path, served: str) -> None:
    engine = open_bundle(bundle)
    bodies: list[dict[str, Any]] = [
        {"user_id": "1"},
        {"history": ["i7", "i8"], "exclude": ["i0"]},
        {"user_id": "stranger"},
    ]
    with httpx.Client(base_url=served, timeout=30) as client:
        assert client.get("/readyz").status_code == 200
        for _ in range(5):
            for body in bodies:
                given = {name: tuple(value) if isinstance(value, list) else value for name, value in body.items()}
                [expected] = engine.recommend([Request(**given)], 10)
                found = client.post("/v1/recommend", json=body).json()
                assert [item["item_id"] for item in found["items"]] == [*expected.items]
                assert found["bundle"] == engine.manifest["bundle_id"]
        refused = client.post("/v1/recommend", json={"user_id": "1", "k": 0})
        assert (refused.status_code, refused.json()["error"]["field"]) == (422, "k")
        first = client.post("/v1/recommend", json={"user_id": "1", "k": 1}).json()["items"][0]["item_id"]
        told, end = {"events": [{"user_id": "1", "item_id": first}]}, time.monotonic() + 30
        while (
            client.post("/v1/events", json=told).status_code == 503
        ):  # Redis has 20 ms, the machine may have other work
            assert time.monotonic() < end
            time.sleep(0.5)
    read = 0
    while read < 10:  # a new connection each, so that both replicas are asked
        assert time.monotonic() < end + 30
        found = httpx.post(f"{served}/v1/recommend", json={"user_id": "1"}, timeout=30).json()
        if not found.get("degraded"):  # Redis answered in its 20 ms
            assert first not in {item["item_id"] for item in found["items"]}
            read += 1


def test_a_replica_holds_the_models_that_it_is_asked_for(bundle: Path, call) -> None:
    replica = Replica(str(bundle), Serve(models={"other": [str(bundle)], "never": [str(bundle / "nowhere")]}))
    app = replica.__serve_build_asgi_app__()
    assert call(app, "POST", "/v1/recommend", json={"user_id": "1", "model": "other"}).status_code == 200
    told = {model["name"]: bool(model["bundles"]) for model in call(app, "GET", "/v1/models").json()["models"]}
    assert told == {"default": True, "other": True, "never": False}


def test_a_replica_is_well_while_its_bundle_answers(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("recfit.serve.ready.KEPT_S", 0.0)
    replica = Replica(str(bundle), Serve())
    asyncio.run(replica.check_health())

    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("recfit.engine.Engine.recommend", broken)
    with pytest.raises(RuntimeError, match="/readyz is 503"):
        asyncio.run(replica.check_health())


def test_a_replica_that_is_taken_away_has_written_its_exposures(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[str] = []
    monkeypatch.setattr(Exposures, "close", lambda _: closed.append("log"))
    replica = Replica(str(bundle), Serve(exposures=str(tmp_path / "log.db")))
    assert not closed
    replica.__del__()
    assert closed == ["log"]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_replicas_come_and_go_with_the_load_between_two_numbers() -> None:
    assert scale(Serve(engine="ray")) == {"num_replicas": 1}
    shared = {"engine": "ray", "redis": "redis://127.0.0.1:6379/0"}
    assert scale(Serve(workers=3, **shared)) == {"num_replicas": 3}
    told = scale(Serve(workers=2, most_workers=8, **shared))
    limits = {"min_replicas": 2, "max_replicas": 8, "target_ongoing_requests": TARGET}
    assert told == {"autoscaling_config": limits}
    if importlib.util.find_spec("ray"):  # in a process of its own: beside what other tests have loaded it may not start
        ask = f"from ray.serve.config import AutoscalingConfig; print(AutoscalingConfig(**{limits}).max_replicas)"
        ran = subprocess.run([sys.executable, "-c", ask], check=True, capture_output=True, text=True)
        assert ran.stdout.strip() == "8"


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> Iterator[MagicMock]:
    """In the place of the package; a Serve was there before."""
    ray = MagicMock()
    ray.serve.status().applications = {"of others": MagicMock()}
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    for name, value in FLAGS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("recfit.serve.cluster.Event", MagicMock)  # nobody has to send a signal
    handlers = {sig: signal.getsignal(sig) for sig in (signal.SIGTERM, signal.SIGINT)}
    yield ray
    for sig, handler in handlers.items():
        signal.signal(sig, handler)


def stop(_: dict[str, str]) -> None:
    """There is nothing to wait for."""


@pytest.mark.parametrize(("before", "address"), [(True, "10.0.0.1:6379"), (False, "10.0.0.1:6379"), (False, None)])
def test_a_serve_that_was_there_before_stays(
    bundle: Path,
    ray: MagicMock,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    before: bool,
    address: str | None,
) -> None:
    """Other apps run on it; and where it listens, its own settings say."""
    if not before:
        ray.get_actor.side_effect = ValueError("no such actor")
    if address:
        monkeypatch.setenv("RAY_ADDRESS", address)
    told: list[dict[str, str]] = []

    def tell(greeting: dict[str, str]) -> None:
        told.append(greeting)
        stop(greeting)

    run(bundle, Serve(engine="ray", port=8123), tell)
    ray.serve.delete.assert_called_once_with("recfit")
    assert ray.serve.shutdown.called == (not before)
    ray.shutdown.assert_called_once_with()
    assert told == [{"serving": "tiny", **({} if before else {"url": "http://127.0.0.1:8123"})}]
    assert ("not at 127.0.0.1 port 8123" in caplog.text) == before
    assert ("the machines of 10.0.0.1:6379 need RAY_SERVE_ENABLE_HA_PROXY=1" in caplog.text) == (
        not before and address is not None
    )


def test_a_second_server_leaves_the_app_of_the_first(bundle: Path, ray: MagicMock) -> None:
    ray.serve.status().applications = {"recfit": SimpleNamespace(status=SimpleNamespace(value="RUNNING"))}
    with pytest.raises(ConfigError, match=r"'recfit' is on this cluster already \(RUNNING\); stop its server"):
        run(bundle, Serve(engine="ray"), stop)
    for changing in (ray.serve.start, ray.serve.run, ray.serve.delete, ray.serve.shutdown):
        changing.assert_not_called()
    ray.shutdown.assert_called_once_with()


def test_an_app_that_does_not_start_is_taken_away(bundle: Path, ray: MagicMock) -> None:
    ray.serve.run.side_effect = RuntimeError("Deploying application recfit failed")
    with pytest.raises(RuntimeError, match="Deploying"):
        run(bundle, Serve(engine="ray"), stop)
    ray.serve.delete.assert_called_once_with("recfit")
    ray.serve.shutdown.assert_not_called()


def test_a_serve_that_was_started_ends_although_its_app_takes_too_long_to(bundle: Path, ray: MagicMock) -> None:
    ray.get_actor.side_effect = ValueError("no such actor")
    ray.serve.delete.side_effect = TimeoutError("Some of these applications weren't deleted after 60s")
    with pytest.raises(TimeoutError):
        run(bundle, Serve(engine="ray"), stop)
    ray.serve.shutdown.assert_called_once_with()
    ray.shutdown.assert_called_once_with()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"engine": "rey"}, r"serve\.engine = 'rey'"),
        ({"engine": "ray", "workers": 2}, r"2 replicas on ray must share what users do; name a serve\.redis"),
        ({"engine": "ray", "most_workers": 4, "events": "e.db"}, r"4 replicas on ray must share"),
        ({"engine": "ray", "port": 0}, r'serve\.port = 0 is for the engine "local"'),
        ({"engine": "ray", "admin_port": 9000}, r'serve\.admin_port is for the engine "local"'),
        ({"engine": "ray", "certificate": "a", "private_key": "b"}, r'serve\.certificate is for the engine "local"'),
        ({"most_workers": 4}, r'serve\.most_workers = 4 is for the engine "ray"'),
    ],
)
def test_settings_that_do_not_go_together(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Serve(**settings)

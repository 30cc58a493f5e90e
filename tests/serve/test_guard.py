"""Who may ask, and how often."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path

import httpx
import pytest
from fake_engine import FakeEngine, app_of

from recfit.serve import guard as module
from recfit.serve.guard import Bucket, Guard, Key, read_keys
from recfit.types import ConfigError

PATH, BODY = "/v1/recommend", {"user_id": "u1"}


def digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


@pytest.fixture
def app() -> Guard:
    return Guard(app_of(FakeEngine()), [Key("shop", digest("s3cret")), Key("batch", digest("slow"), rate=2.0)])


@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": "Bearer s3cret"},
        {"authorization": "bearer s3cret "},
        {"x-api-key": "s3cret"},
        {"X-API-Key": "s3cret"},
    ],
)
def test_a_known_key_may_ask(call, app: Guard, headers: dict[str, str]) -> None:
    assert call(app, "POST", PATH, json=BODY, headers=headers).status_code == 200
    assert call(app, "GET", "/metrics", headers=headers).status_code == 200


@pytest.mark.parametrize("headers", [{}, {"x-api-key": "S3cret"}, {"authorization": "Basic s3cret"}, {"x-api-key": ""}])
def test_without_one_nobody_may_ask(call, app: Guard, headers: dict[str, str]) -> None:
    answer = call(app, "POST", PATH, json=BODY, headers=headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (401, "unauthorized")
    assert answer.headers["www-authenticate"] == "Bearer"
    assert answer.json()["request_id"] != call(app, "POST", PATH, json=BODY, headers=headers).json()["request_id"]
    for path in ("/v1/bundle", "/metrics", "/openapi.json", "/nowhere", "/admin/models/default"):
        assert call(app, "GET", path, headers=headers).status_code == 401


def test_load_balancers_need_no_key(call, app: Guard) -> None:
    assert call(app, "GET", "/healthz").status_code == 200
    assert call(app, "GET", "/readyz").status_code == 200
    assert call(app, "GET", "/v2/health/live").status_code == 200
    assert call(app, "GET", "/v2/health/ready").status_code == 200


def test_to_have_a_model_loaded_needs_a_key(call, app: Guard) -> None:
    for path in ("/readyz?model=default", "/v2/models/default/ready"):
        assert call(app, "GET", path).status_code == 401
        assert call(app, "GET", path, headers={"x-api-key": "s3cret"}).status_code == 200


def test_the_key_of_a_client_is_not_enough_for_an_operator(call) -> None:
    keys = [Key("shop", digest("s3cret")), Key("ops", digest("boss"), admin=True)]
    app = Guard(app_of(FakeEngine(), admin_port=9), keys)

    def rollback(key: str, port: int) -> httpx.Response:
        path = f"http://recfit:{port}/admin/models/default/rollback"
        return call(app, "POST", path, headers={"x-api-key": key})

    assert rollback("nobody", 9).status_code == 401
    refused = rollback("s3cret", 9)
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "forbidden")
    assert "key 'shop'" in refused.json()["error"]["message"]
    assert rollback("boss", 9).status_code == 409
    assert rollback("boss", 80).status_code == 404  # not at the port of clients


V2 = {"inputs": [{"name": "user_id", "shape": [5], "datatype": "BYTES", "data": ["u1"] * 5}]}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/recommend/batch", {"requests": [BODY] * 5}),
        ("/v2/models/default/infer", V2),
        ("/v1/events", {"events": [{"user_id": "u1", "item_id": "i1"}] * 5}),
    ],
)
def test_many_requests_in_one_are_counted_each(monkeypatch: pytest.MonkeyPatch, path: str, body: object) -> None:
    now = [50.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    limited = Guard(app_of(FakeEngine()), [Key("batch", digest("slow"), rate=2.0)])

    async def run() -> None:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(limited), base_url="http://recfit") as client:

            async def ask(path: str, body: object) -> httpx.Response:
                return await client.post(path, json=body, headers={"x-api-key": "slow"})

            assert (await ask(path, body)).status_code == 200  # 2 were there, 3 are owed
            refused = await ask(PATH, BODY)
            assert (refused.status_code, refused.headers["retry-after"]) == (429, "2")
            now[0] += 1.9
            assert (await ask(PATH, BODY)).status_code == 429
            now[0] += 0.2
            assert (await ask(PATH, BODY)).status_code == 200

    asyncio.run(run())


def test_a_key_that_asks_too_often_is_told_when_to_come_back(app: Guard, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [50.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    limited = Guard(app_of(FakeEngine()), [Key("batch", digest("slow"), rate=2.0), Key("shop", digest("s3cret"))])

    async def run() -> None:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(limited), base_url="http://recfit") as client:

            async def ask(key: str) -> httpx.Response:
                return await client.post(PATH, json=BODY, headers={"x-api-key": key})

            assert [(await ask("slow")).status_code for _ in range(3)] == [200, 200, 429]
            refused = await ask("slow")
            assert (refused.json()["error"]["code"], refused.headers["retry-after"]) == ("too_many_requests", "1")
            assert (await ask("s3cret")).status_code == 200  # others are not held up
            now[0] += 0.5
            assert [(await ask("slow")).status_code for _ in range(2)] == [200, 429]

    asyncio.run(run())


def test_a_bucket_holds_a_second_of_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    bucket = Bucket(100.0)
    now[0] += 60
    assert sum(bucket.take() == 0 for _ in range(300)) == 100
    assert bucket.take() == pytest.approx(0.01)
    rare = Bucket(0.1)
    assert rare.take() == 0
    assert rare.take() == pytest.approx(10)


def test_keys_come_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "keys.toml"
    file.write_text(f'[[key]]\nname = "shop"\nsha256 = "{digest("s3cret")}"\nrate = 5\n')
    assert read_keys(file) == [Key("shop", digest("s3cret"), 5.0)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"holds no \[\[key\]\]; without one nobody could ask"),
        ("[[key]]\nname = 3", r"key needs the setting 'sha256'; add it"),
        ('[[key]]\nname = "a"\nsha256 = "s3cret"', r"key 'a' has sha256 = 's3cret'; give 64 hex digits"),
        (f'[[key]]\nname = "a"\nsha256 = "{"0" * 64}"\nrate = -1', r"key 'a' has rate = -1; give requests a second"),
        ('[[key]]\nkey = "a"', r"key has no setting 'key'"),
        ("[[key", r"is not valid TOML"),
    ],
)
def test_a_file_that_cannot_be_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "keys.toml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_keys(tmp_path / "keys.toml")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"there is no file .*keys.toml of keys; check serve.keys"):
        read_keys(tmp_path / "keys.toml")

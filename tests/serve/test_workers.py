"""Several processes behind one port."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from multiprocessing import Pipe
from pathlib import Path

import httpx
import psutil
import pytest

from recfit.config import Serve
from recfit.serve import workers
from recfit.serve.run import as_before
from recfit.serve.workers import PAUSE_S, Swapped
from recfit.types import BundleError, ConfigError

HERE = Path(__file__).parent
PATH = "/v1/recommend"


class Started:
    """A running supervisor of two workers."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.url, *self.admins = said(process).split()

    def workers(self) -> list[psutil.Process]:
        children = psutil.Process(self.process.pid).children()
        return [child for child in children if "spawn_main" in " ".join(child.cmdline())]

    def ended(self) -> tuple[int, str, str]:
        out, err = self.process.communicate(timeout=30)
        return self.process.returncode, out, err


def begin(events: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "fake_work", events]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=HERE)


def said(process: subprocess.Popen[str]) -> str:
    """The line with the addresses; a process that ended instead fails with what it complained of."""
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, process.communicate(timeout=30)[1]
    return line


@pytest.fixture
def started(tmp_path: Path) -> Iterator[Started]:
    process = begin(str(tmp_path / "events.db"))
    left: list[psutil.Process] = []
    try:
        running = Started(process)
        left = running.workers()
        yield running
    finally:
        process.kill()
        process.communicate()
    for worker in left:
        until(lambda worker=worker: not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE)


def until(true: Callable[[], bool], seconds: float = 15.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


def all_ready(started: Started) -> bool:
    try:
        return all(httpx.get(f"{admin}/readyz", timeout=0.5).status_code == 200 for admin in started.admins)
    except httpx.HTTPError:
        return False


def test_workers_answer_at_one_port_and_share_what_users_do(started: Started) -> None:
    assert len(started.workers()) == 2
    told = {"events": [{"user_id": "u1", "item_id": "i0"}]}
    assert httpx.post(f"{started.admins[0]}/v1/events", json=told).json()["kept"] == 1
    for base in (*started.admins, started.url):
        found = httpx.post(base + PATH, json={"user_id": "u1", "k": 1}).json()
        assert found["items"][0]["item_id"] == "i1"
    # Each has the routes of operators at its own port, and nobody has them at the common one.
    for admin in started.admins:
        assert httpx.post(f"{admin}/admin/models/default/rollback").status_code == 409
    assert httpx.post(f"{started.url}/admin/models/default/rollback").status_code == 404


def test_a_worker_that_is_killed_is_replaced_and_the_other_answers_meanwhile(started: Started) -> None:
    first = started.workers()
    first[0].kill()
    first[0].wait(5)
    for _ in range(30):
        assert httpx.post(started.url + PATH, json={"user_id": "u1"}).status_code == 200
    until(lambda: len(started.workers()) == 2)
    assert {worker.pid for worker in started.workers()} != {worker.pid for worker in first}
    until(lambda: all_ready(started), PAUSE_S + 15)
    started.process.send_signal(signal.SIGTERM)
    code, out, err = started.ended()
    assert (code, out) == (0, "returned\n")
    assert "ended with -9; another one starts" in err


def test_a_worker_that_hangs_ends_and_is_replaced(started: Started) -> None:
    first = started.workers()
    with pytest.raises(httpx.RemoteProtocolError):  # its connection ends with it
        httpx.post(started.admins[0] + PATH, json={"user_id": "hang"}, timeout=15)
    until(lambda: len(started.workers()) == 2 and all_ready(started), PAUSE_S + 15)
    assert len({worker.pid for worker in started.workers()} & {worker.pid for worker in first}) == 1
    started.process.send_signal(signal.SIGTERM)
    code, _, err = started.ended()
    assert code == 0
    assert "in during" in err  # where it was
    assert f"worker {first[0].pid} hangs" in err or f"worker {first[1].pid} hangs" in err
    assert "ended with 1; another one starts" in err


def test_what_was_swapped_outlives_the_worker(started: Started, bundle: Path) -> None:
    swapped = started.admins[0] + "/admin/models/green"
    assert httpx.put(swapped, json={"bundles": [str(bundle)]}, timeout=30).status_code == 200
    for deaths in (1, 2):
        old = started.workers()
        for worker in old:
            worker.kill()
            worker.wait(5)
        until(lambda: len(started.workers()) == 2, PAUSE_S + 15)
        until(lambda: all_ready(started), PAUSE_S + 30)
        known = [httpx.get(f"{admin}/readyz?model=green", timeout=30).status_code for admin in started.admins]
        assert known == [200, 404], f"after {deaths}"  # each has what its own place was told


def test_the_last_words_of_a_worker_are_heard(caplog: pytest.LogCaptureFixture) -> None:
    worker = workers._Worker(lambda *given: None, [])
    worker._pipe, tell = Pipe(duplex=False)
    for said in ({"url": "http://"}, Swapped({"red": (Path("w"),)}), BundleError("rows.bin is gone")):
        tell.send(said)
    tell.close()
    worker.hear()
    assert worker._paths == {"red": (Path("w"),)}
    assert "a worker cannot start: rows.bin is gone" in caplog.text


def test_a_successor_starts_from_what_was_swapped() -> None:
    settings = Serve(cheaper=("b",), models={"red": "r", "blue": ["s", "t"]})
    assert as_before(Path("a"), settings, {}) == (Path("a"), replace(settings, models={"red": "r", "blue": ["s", "t"]}))
    bundle, after = as_before(
        Path("a"), settings, {"default": (Path("c"),), "red": (Path("w"),), "green": (Path("g"),)}
    )
    assert (bundle, after.cheaper) == (Path("c"), ())
    assert after.models == {"red": ["w"], "blue": ["s", "t"], "green": ["g"]}


@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_all_of_them(started: Started, sig: signal.Signals) -> None:
    workers = started.workers()
    started.process.send_signal(sig)
    assert started.ended() == (0, "returned\n", "")
    assert not any(worker.is_running() for worker in workers)


def test_nobody_stays_behind_when_the_parent_is_killed(started: Started) -> None:
    workers = started.workers()
    os.kill(started.process.pid, signal.SIGKILL)
    until(lambda: not any(worker.is_running() and worker.status() != psutil.STATUS_ZOMBIE for worker in workers))


def test_one_that_cannot_start_ends_it_with_the_reason() -> None:
    process = begin("damaged")
    out, err = process.communicate(timeout=30)
    assert process.returncode == 1
    assert out == ""
    assert "the bundle is damaged" in err


def test_what_users_do_must_be_shared() -> None:
    with pytest.raises(ConfigError, match=r"serve\.workers = 2 must share what users do; name a file in serve\.events"):
        Serve(workers=2)
    with pytest.raises(ConfigError, match=r"serve\.workers"):
        Serve(workers=0)
    assert Serve(workers=2, events="events.db").workers == 2

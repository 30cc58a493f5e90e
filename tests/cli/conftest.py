"""One real study, made by the command line: killed in the middle, started again, finished."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from recfit.cli import main

USERS, ITEMS, EVENTS = 200, 120, 14
CANDIDATES = 9
CONFIG = f"""
[data]
source = "events.csv"
split = "leave_last(n=2)"
[model]
kind = "sasrec"
[model.options]
layers = 1
embedding_dim = 16
heads = 2
ffn = 32
max_history = 10
[model.fit]
epochs = 12
batch_size = 16
learning_rate = 0.01
[budget]
objective = "latency"
"ndcg@10" = "50%"
accept_undecided = true
[search]
directory = "study"
techniques = ["quantize", "cache"]
max_candidates = {CANDIDATES}
threads = 1
requests = 1000
[serve]
port = 8123
"""


@dataclass(frozen=True)
class Made:
    """The folder of the config and the study, and what the runs left."""

    folder: Path
    before: bytes  # the ledger when the first run was killed
    second: subprocess.CompletedProcess[str]

    @property
    def config(self) -> Path:
        return self.folder / "recfit.toml"

    @property
    def study(self) -> Path:
        return self.folder / "study"

    @property
    def ledger(self) -> bytes:
        return (self.study / "study.jsonl").read_bytes()

    @property
    def facts(self) -> dict:
        return {key: value for row in rows(self.ledger) if row["row"] == "study" for key, value in row.items()}


def rows(ledger: bytes) -> list[dict]:
    return [json.loads(line) for line in ledger[: ledger.rfind(b"\n") + 1].splitlines()]


def candidates(ledger: bytes) -> list[dict]:
    return [row for row in rows(ledger) if row["row"] == "candidate"]


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "recfit.cli", *map(str, arguments)]


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*arguments), capture_output=True, text=True, check=False)


def write_events(path: Path) -> None:
    """Everybody walks around a ring of items, one to three steps at a time, and sometimes jumps."""
    rng = np.random.default_rng(0)
    steps = rng.integers(1, 4, (USERS, EVENTS))
    jumps = rng.random((USERS, EVENTS)) < 0.15
    steps[jumps] = rng.integers(0, ITEMS, int(jumps.sum()))
    items = (rng.integers(0, ITEMS, (USERS, 1)) + steps.cumsum(axis=1)) % ITEMS
    lines = [f"u{user},i{items[user, turn]},{turn * USERS + user}" for turn in range(EVENTS) for user in range(USERS)]
    path.write_text("user_id,item_id,timestamp\n" + "\n".join(lines) + "\n")


@pytest.fixture(scope="session")
def made(tmp_path_factory) -> Made:
    folder = tmp_path_factory.mktemp("made")
    write_events(folder / "events.csv")
    (folder / "recfit.toml").write_text(CONFIG)
    ledger = folder / "study" / "study.jsonl"
    first = subprocess.Popen(
        command("optimize", folder / "recfit.toml"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 120
    while not ledger.is_file() or len(candidates(ledger.read_bytes())) < 3:
        assert first.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    first.send_signal(signal.SIGKILL)
    first.wait()
    before = ledger.read_bytes()
    return Made(folder, before, run("optimize", folder / "recfit.toml"))


@pytest.fixture
def own(made, tmp_path) -> Made:
    """A copy that may be changed."""
    shutil.copytree(made.folder, tmp_path / "own")
    return Made(tmp_path / "own", made.before, made.second)


@pytest.fixture
def recfit(capsys) -> Callable[..., tuple[int, str, str]]:
    """`recfit(*arguments)`: exit code, stdout, stderr of the command, run in this process."""

    def called(*arguments: str | Path) -> tuple[int, str, str]:
        try:
            code = main([os.fspath(argument) for argument in arguments])
        except SystemExit as end:
            code = int(end.code or 0)
        out, err = capsys.readouterr()
        return code, out, err

    return called

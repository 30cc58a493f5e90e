"""A small data set, a config for it, and what a study leaves."""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

USERS, ITEMS, EVENTS = 200, 120, 14
CANDIDATES = 10
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
    """What was measured; not that the choice was measured again at the end."""
    found = [row for row in rows(ledger) if row["row"] == "candidate"]
    return [row for row in found if "confirmed" not in row["protocol"]]


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

"""One real study, made by the command line: killed in the middle, started again, finished."""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from made_by_command import CONFIG, Made, candidates, command, run, write_events

from recfit.cli import main


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
    return Made(folder, before, run("optimize", folder / "recfit.toml", "--json"))


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

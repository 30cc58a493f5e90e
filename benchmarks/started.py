"""`recfit serve` as a process of its own, for benchmarks of the server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import psutil

SERVER, CLIENT = {0}, {1}
"""The core of each where they have one of their own."""


@dataclass(frozen=True)
class Started:
    """Where a server answers, the ports of its workers' operators, and its process."""

    url: str
    admins: tuple[str, ...]
    process: psutil.Process

    @property
    def admin(self) -> str:
        return self.admins[0]

    def memory(self) -> dict[str, float]:
        """Of it and its workers."""
        return memory([self.process, *self.process.children(recursive=True)])


def memory(processes: Iterable[psutil.Process]) -> dict[str, float]:
    """What they hold, in MB: resident (RSS), in which a page counts as often as processes have it, and by their share (PSS)."""
    held = [process.memory_full_info() for process in processes]
    return {"rss_mb": sum(one.rss for one in held) / 1e6, "pss_mb": sum(one.pss for one in held) / 1e6}


@contextmanager
def started(bundle: str, flags: Sequence[str], cores: set[int] | None = SERVER) -> Iterator[Started]:
    """`recfit serve bundle` with `flags` on free ports and on `cores` (None: all), stopped at the end; it knows nothing of
    events of other runs."""
    ports = ["--port", "0", "--admin-port", "0", "--json"]
    if not {"--events", "--redis"} & {*flags}:
        ports += ["--events", ":memory:"]
    command = [sys.executable, "-m", "recfit.cli", "serve", bundle, *ports, *flags]
    pin = None if cores is None else (lambda: os.sched_setaffinity(0, cores))
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, preexec_fn=pin)
    try:
        assert process.stdout is not None
        told = json.loads(process.stdout.readline())
        admins = [told["admin"]] if isinstance(told["admin"], str) else told["admin"]
        yield Started(told["url"], tuple(admins), psutil.Process(process.pid))
    finally:
        process.terminate()
        process.wait()


def send(url: str, body: bytes, method: str = "POST") -> int:
    """The status of one request; 0 where nobody answers."""
    asked = urllib.request.Request(url, body or None, {"content-type": "application/json"}, method=method)
    try:
        with urllib.request.urlopen(asked, timeout=30) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0

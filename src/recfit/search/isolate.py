"""Run a function in a process of its own: a crash, a hang or a hunger for memory becomes a sentence, not the end of a study."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any

import psutil
from tqdm import tqdm

from recfit.types import RecfitError

# The fork server imports the heavy modules once; every candidate starts from it in milliseconds.
PRELOAD = ["recfit.search.build"]
# Seconds that a child has to end by itself after its answer.
GOODBYE = 5.0
# For what may take as long as it takes; this only ends what hangs.
PATIENCE = 7 * 24 * 3600.0


class Failed(RecfitError):
    """The function did not come back with an answer. `limit` names the setting of [search] that ended it, if one did."""

    def __init__(self, reason: str, limit: str = "") -> None:
        super().__init__(f"{reason} [search] {limit}; raise it" if limit else reason)
        self.limit = limit


def isolated(function: Callable[..., Any], *arguments: Any, memory_gb: float, seconds: float) -> Any:
    """`function(*arguments)` from a child process. Raises `Failed` with the reason: its exception, a crash, or a limit."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_run, args=(there, function, arguments), daemon=True)
    with patient_threads():
        process.start()
    there.close()
    try:
        return _answer(process, here, memory_gb, seconds)
    finally:
        process.kill()
        process.join()
        process.close()
        here.close()


@contextmanager
def patient_threads() -> Iterator[None]:
    """Let the threads of processes started in here sleep while they wait for each other, unless the user chose otherwise.

    OpenMP's spin by default. On cores that anything else uses, a spinning thread keeps the one it waits for from
    running: a training on two threads took 16 times longer next to one other busy process, and no longer alone.
    """
    if "OMP_WAIT_POLICY" in os.environ:
        yield
        return
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    try:
        yield
    finally:
        del os.environ["OMP_WAIT_POLICY"]


def _answer(process: Any, pipe: Connection, memory_gb: float, seconds: float) -> Any:
    deadline = time.monotonic() + seconds
    while not pipe.poll(0.1):
        if not process.is_alive() and not pipe.poll(0):
            raise Failed(f"the process ended with exit code {process.exitcode} and no answer")
        if time.monotonic() > deadline:
            raise Failed(f"it took over {seconds:.0f} s, what was left of", "max_minutes")
        if _rss_gb(process.pid) > memory_gb:
            raise Failed(f"it used more than {memory_gb:g} GB of memory, the limit of", "memory_gb")
    try:
        kind, answer = pipe.recv()
    except EOFError:
        process.join()
        raise Failed(f"the process died with exit code {process.exitcode}") from None
    process.join(GOODBYE)  # a process that is killed while it cleans up leaks what it holds
    if kind == "failed":
        raise Failed(answer)
    return answer


def _run(pipe: Connection, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    threading.Thread(target=_follow_parent, daemon=True).start()
    tqdm.set_lock(threading.RLock())  # its own is a semaphore between processes, which a killed child leaks
    try:
        pipe.send(("ok", function(*arguments)))
    except RecfitError as error:
        pipe.send(("failed", str(error)))
    except BaseException as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        pipe.send(("failed", f"{type(error).__name__}: {error} ({last.filename.rsplit('/', 1)[-1]}:{last.lineno})"))


def _follow_parent() -> None:
    """End with the parent, even a killed one: a rerun must not meet a child that still writes."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _rss_gb(pid: int) -> float:
    try:
        return float(psutil.Process(pid).memory_info().rss) / 2**30
    except psutil.NoSuchProcess:
        return 0.0

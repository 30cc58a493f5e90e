"""Several processes behind one port, each with the whole server; one that dies is replaced by one with the same bundles.

They accept from one socket, so that what waits in its backlog is lost with none of them. What they share lies elsewhere: events
in a file or in Redis, item tables in pages of the files that all of them map. Each has a port of its own for operators, since
swaps and metrics are those of a process.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from threading import Event, Thread
from types import FrameType
from typing import NamedTuple

from recfit.serve.fleet import Paths
from recfit.types import RecfitError

log = logging.getLogger("recfit.serve")

PAUSE_S = 1.0
"""Between the death of a worker and the start of the next one in its place."""
Told = Mapping[str, str]
"""What a server says of itself once it answers."""
Work = Callable[[Sequence[socket.socket], Callable[[Told], None], Callable[[Paths], None], Paths], None]
"""Answers at bound sockets until SIGTERM, tells of itself once it does, and what names stand for after every swap. The last is
what they stood for in the process before it, where that was told. Pickled."""


class Swapped(NamedTuple):
    """What a worker's names stand for now, where that is not what it would start with."""

    paths: Paths


def run(work: Work, places: Sequence[Sequence[socket.socket]], tell: Callable[[list[Told]], None]) -> None:
    """`work` in a process for each of `places`, which are the sockets it gets; `tell` is given what all say once all answer.
    Returns after SIGTERM or SIGINT, which they all get. Raises `RecfitError` where one can't start."""
    workers = [_Worker(work, listeners) for listeners in places]
    stopping = Event()

    def stop(sig: int, frame: FrameType | None) -> None:
        stopping.set()
        for worker in workers:
            worker.send(sig)

    old = {sig: signal.signal(sig, stop) for sig in (signal.SIGTERM, signal.SIGINT)}
    try:
        for worker in workers:
            worker.start()
        tell([worker.told() for worker in workers])
        while not stopping.is_set():
            wait([worker.sentinel for worker in workers if worker.alive], timeout=PAUSE_S / 4)
            for worker in workers:
                alive = worker.alive
                worker.hear()  # the last words too of one that is dead
                if not alive and not stopping.is_set():
                    worker.replace()
    finally:
        if not stopping.is_set():
            stop(signal.SIGTERM, None)
        for worker in workers:
            worker.join()
        for sig, handler in old.items():
            signal.signal(sig, handler)


class _Worker:
    """A place, and the process that holds it. What was swapped stays with the place."""

    def __init__(self, work: Work, listeners: Sequence[socket.socket]) -> None:
        self._work, self._listeners = work, listeners
        self._process: BaseProcess | None = None
        self._died: float | None = None
        self._paths: Paths = {}

    def start(self) -> None:
        context = multiprocessing.get_context("spawn")  # a fork would copy the locks of other threads
        self._pipe, tell = context.Pipe(duplex=False)
        given = (self._work, self._listeners, tell, self._paths)
        self._process, self._died = context.Process(target=_work, args=given), None
        self._process.start()
        tell.close()  # so that the pipe ends when the worker does

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.is_alive()

    @property
    def sentinel(self) -> int:
        assert self._process is not None
        return self._process.sentinel

    def told(self) -> Told:
        """Waits until it answers."""
        try:
            told: Told | RecfitError = self._pipe.recv()
        except EOFError:
            told = RecfitError("a worker ended before it answered; what it said is above")
        if isinstance(told, RecfitError):
            raise told
        return told

    def hear(self) -> None:
        """Take in what it told since the last time."""
        try:
            while self._pipe.poll():
                said: Told | Swapped | RecfitError = self._pipe.recv()
                if isinstance(said, Swapped):
                    self._paths = said.paths
                elif isinstance(said, RecfitError):
                    log.error("a worker cannot start: %s", said)
        except (EOFError, OSError):  # it ended, perhaps within a word
            return

    def replace(self) -> None:
        """Say that it died, and start another one a moment later."""
        assert self._process is not None
        if self._died is None:
            self._died = time.monotonic()
            log.error("worker %s ended with %s; another one starts", self._process.pid, self._process.exitcode)
        if time.monotonic() >= self._died + PAUSE_S:
            self.start()

    def send(self, sig: int) -> None:
        if self._process is not None and self._process.pid is not None and self._process.is_alive():
            os.kill(self._process.pid, sig)

    def join(self) -> None:
        if self._process is not None:
            self._process.join()


def _work(work: Work, listeners: Sequence[socket.socket], pipe: Connection, before: Paths) -> None:
    def swapped(paths: Paths) -> None:
        pipe.send(Swapped({**before, **{name: found for name, found in paths.items() if found}}))

    os.setpgrp()  # Ctrl-C is for the parent, which passes it on once
    Thread(target=_follow, daemon=True).start()
    try:
        work(listeners, pipe.send, swapped, before)
    except RecfitError as error:
        pipe.send(RecfitError(str(error)))
        raise SystemExit(1) from None


def _follow() -> None:
    """Nobody stays behind when the parent is killed."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)

"""The handle on a measured process."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from recfit.bundle import read_manifest
from recfit.types import MeasurementError

THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


class Worker:
    """A fresh process that serves one bundle. Use as a context manager; a call that takes too long kills it."""

    def __init__(self, bundle: Path, timeout: float = 300.0) -> None:
        threads = read_manifest(bundle)["pipeline"]["threads"]
        self.bundle, self._timeout = bundle, timeout
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 (closed by `stop`)
        self._started = time.monotonic()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "recfit.measure.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env={**os.environ, **dict.fromkeys(THREAD_VARIABLES, str(threads))},
        )
        self._replies: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def open(self) -> float:
        """Open the bundle and answer one request; the seconds from the start of the process until then."""
        self.call("open", bundle=str(self.bundle))
        return time.monotonic() - self._started

    def call(self, name: str, *, takes: float = 0.0, **arguments: Any) -> Any:
        """The answer of the worker's command `name`, which by itself takes so many seconds. Raises `MeasurementError` where
        it fails, dies or hangs."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"call": name, "with": arguments}) + "\n")
            self._process.stdin.flush()
            reply = self._replies.get(timeout=self._timeout + takes)
        except queue.Empty:
            self.stop()
            raise MeasurementError(
                f"{name} on {self.bundle} took over {self._timeout + takes:g} s; the process was stopped"
            ) from None
        except (BrokenPipeError, ValueError):  # it is dead, or was stopped
            reply = ""
        if not reply:
            raise MeasurementError(f"the process measuring {self.bundle} died in {name}: {self._last_words()}")
        answer = json.loads(reply)
        if "error" in answer:
            raise MeasurementError(f"{name} on {self.bundle} failed: {answer['error']}")
        return answer["ok"]

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._errors):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):  # what a dead process did not read
                    stream.close()

    def _read(self) -> None:
        assert self._process.stdout is not None
        try:
            for line in self._process.stdout:
                self._replies.put(line)
        except ValueError:  # closed by stop()
            pass
        self._replies.put("")

    def _last_words(self) -> str:
        if self._errors.closed:
            return "it was stopped before"
        code = self._process.wait()
        self._errors.seek(0)
        return self._errors.read().strip()[-500:] or f"exit code {code}, no output"

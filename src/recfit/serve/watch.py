"""Sees from a thread of its own that the event loop does not turn: what runs there can't tell that it hangs."""

from __future__ import annotations

import logging
import sys
import threading
import traceback
from collections.abc import Callable

log = logging.getLogger("recfit.serve")

EVERY_S = 1.0
SAID, HUNG = 5, 30
"""Looks in a row that find it where it was: then the log says so, then it is given up. A process that was stopped and goes on
has not been looked at meanwhile."""


class Watch:
    """Of the loop of the thread that makes it, which calls `beat` several times a second; `hung` is called when it is given up.
    What holds the interpreter lock holds this up too."""

    def __init__(self, hung: Callable[[], None] = lambda: None) -> None:
        self._hung, self._beats, self._thread = hung, 0, threading.get_ident()
        self._over = threading.Event()
        threading.Thread(target=self._look, name="recfit-watch", daemon=True).start()

    def beat(self) -> None:
        self._beats += 1

    def end(self) -> None:
        self._over.set()

    def _look(self) -> None:
        seen = looks = 0
        while not self._over.wait(EVERY_S):
            looks = looks + 1 if seen == self._beats else 0
            seen = self._beats
            if looks == SAID:
                log.error("nothing has been answered for %g s; the event loop is in\n%s", SAID * EVERY_S, self._where())
            if looks == HUNG:
                self._hung()

    def _where(self) -> str:
        return "".join(traceback.format_stack(sys._current_frames()[self._thread]))

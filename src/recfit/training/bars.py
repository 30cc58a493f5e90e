"""Progress bars of what takes long."""

from __future__ import annotations

import sys
from typing import Any

from tqdm import tqdm

LOG_S = 60.0
"""Between two states of a bar where nobody watches: a log file must not grow by ten lines a second."""


def bar(shown: bool, what: str, unit: str) -> tqdm[Any]:
    """A bar on the standard error output, moving where that is a terminal."""
    pace_s = 0.1 if sys.stderr.isatty() else LOG_S
    pace = {"mininterval": pace_s, "maxinterval": max(10.0, pace_s)}
    return tqdm(disable=not shown, desc=what, unit=unit, dynamic_ncols=True, **pace)

"""What was asked lately, for a bundle that is to answer next: its first requests should not be the first of their kind.

A runtime plans its memory by the shapes that it sees, and a memory map reads pages when they are touched. Requests that were
made up know neither how long histories are here nor which items and users are asked for.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence

from recfit.types import Request

MOST = 64
MOST_S = 1.0
"""A bundle is kept waiting for no longer by what it is asked again."""
Asked = tuple[Request, int]
"""A request, and for how many items."""


class Lately:
    """The last requests that were answered, the newest last, no two of the same shape."""

    def __init__(self) -> None:
        self._asked: OrderedDict[Hashable, Asked] = OrderedDict()

    def add(self, request: Request, k: int) -> None:
        """For one request of a batch; it costs half a microsecond, whatever is in the request."""
        history = request.history  # without one the user names that of the bundle
        shape = k, request.user_id if history is None else len(history), len(request.recent)
        self._asked[shape] = request, k
        self._asked.move_to_end(shape)
        if len(self._asked) > MOST:
            self._asked.popitem(last=False)

    def all(self) -> list[Asked]:
        return [*self._asked.values()]


def replay(asked: Sequence[Asked], most: int, recommend: Callable[[Sequence[Request], int], object]) -> None:
    """Let `recommend` answer them again, the newest first: each alone, then up to `most` together, as they come in a batch.
    `recommend` raises nothing."""
    end, newest = time.monotonic() + MOST_S, asked[::-1]
    for size in sorted({1, most}):
        for at in range(0, len(newest), size):
            if time.monotonic() > end:
                return
            batch = newest[at : at + size]
            recommend([request for request, _ in batch], batch[0][1])

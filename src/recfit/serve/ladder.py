"""Quality for latency, while it is needed: several bundles for one model, from the best to the cheapest.

Requests wait in one line, and the bundle is chosen when they leave it: the best one that would be through with all that waits
before the last of them is late. So a rush is met by its first batch. Two neighbours take turns then, by the batch, and any
rate in between finds its mixture by itself. No third one joins them: what a better one costs, most would pay with the cheapest.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

GOAL = 0.6
"""Share of the budget in which what waits in line is to be answered. The rest is for what waits in the sockets, unseen."""
BACK = 0.5
"""Share of that in which a better rung must be able to do it to be taken again: traffic goes down at once and up later."""
HOLD_S = 0.25
"""For so long after a rung was needed only the next better one takes turns with it."""
SLICE_S, MOST = 0.001, 32
"""A batch takes about a millisecond at most, or is one request: while it runs nobody sees what arrives, and its first wait
for its last. Cheap models gain by company (1.7 times for 32 requests to popularity), a Transformer on one core does not: its
histories are padded to the longest."""
WEIGHT = 0.05
"""Of the last batch in what a request costs."""
DRIFT = 0.0005
"""Share by which the cost of a rung that was not taken goes back to what it was at first, so that it is tried again."""
SECONDS = 5.0
"""The quality and the level are those of about the last five seconds."""


class Ladder:
    """The rungs of one model, the best first, by what a request `costs` (seconds) and what they promise (None: nothing). What
    waits is answered within `budget_s` as long as a rung can do that."""

    def __init__(self, costs: Sequence[float], qualities: Sequence[float | None], budget_s: float) -> None:
        self.costs, self.qualities, self.budget_s = [*costs], tuple(qualities), budget_s
        self.served = [0] * len(costs)
        self.rung = 0
        self._lowest, self._needed = 0, 0.0  # the cheapest rung that was needed lately, and when
        self._at_first, self._around_s = tuple(costs), 0.0
        self._lately, self._since = [0.0] * len(costs), time.monotonic()

    def choose(self, waiting: float, now: float) -> int:
        """The rung for the next of `waiting` requests; `now` is the monotonic clock's."""
        goal, last, rung = GOAL * self.budget_s, len(self.costs) - 1, self.rung
        while rung < last and waiting * self.cost(rung) > goal:
            rung += 1
        while rung > max(0, self._lowest - 1) and waiting * self.cost(rung - 1) <= BACK * goal:
            rung -= 1
        if rung >= self._lowest or now > self._needed + HOLD_S:
            self._lowest, self._needed = rung, now
        self.rung = rung
        return rung

    def fitting(self, rung: int, count: int, left_s: float) -> int:
        """`rung`, or the best one below that answers `count` requests in `left_s` seconds; the cheapest where none does."""
        while rung + 1 < len(self.costs) and count * self.costs[rung] > left_s:
            rung += 1
        return rung

    def cost(self, rung: int) -> float:
        """Seconds that a request takes, with its way in and out."""
        return self.costs[rung] + self._around_s

    def most(self, rung: int) -> int:
        """Requests of a batch."""
        return max(1, min(MOST, int(SLICE_S / max(self.costs[rung], 1e-9))))

    def took(self, rung: int, count: int, seconds: float) -> None:
        """A batch of `count` requests ran for `seconds` on `rung`."""
        for other, first in enumerate(self._at_first):
            self.costs[other] += DRIFT * (first - self.costs[other])
        self.costs[rung] = _moved(self.costs[rung], seconds / count)

    def around(self, count: int, seconds: float) -> None:
        """The way in and out took `seconds` for `count` requests."""
        self._around_s = _moved(self._around_s, seconds / count)

    def answered(self, rung: int) -> None:
        """An answer of `rung` left, made now or known before."""
        self.served[rung] += 1
        if len(self.costs) > 1:
            self._forget()
            self._lately[rung] += 1.0

    def level(self) -> float:
        """The mean rung of the answers of the last seconds; 0 without any."""
        self._forget()
        total = sum(self._lately)
        return sum(rung * count for rung, count in enumerate(self._lately)) / total if total > 0.01 else 0.0

    def quality(self) -> float | None:
        """What is expected of the answers of the last seconds: the promises of the rungs, by their share; None where one of
        those that answered promises nothing."""
        self._forget()
        lately = [(count, promise) for count, promise in zip(self._lately, self.qualities, strict=True) if count > 0.01]
        if not lately:
            return self.qualities[0]
        known = [count * promise for count, promise in lately if promise is not None]
        return sum(known) / sum(count for count, _ in lately) if len(known) == len(lately) else None

    def _forget(self) -> None:
        now = time.monotonic()
        share = math.exp((self._since - now) / SECONDS)
        self._lately, self._since = [count * share for count in self._lately], now


def _moved(average: float, seen: float) -> float:
    """A pause of the process that fell into one batch must not count for all of it."""
    return average + WEIGHT * (min(seen, 4 * average + 1e-4) - average)

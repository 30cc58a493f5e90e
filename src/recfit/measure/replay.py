"""Requests replayed in time order against lists that are precomputed at regular times: which would have been answered
from them, and how old these were. What such lists cost in quality is not said here: `benchmarks/cache.py` measures it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from recfit.states import most_frequent, states
from recfit.types import IntArray, Interactions

Times = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Log:
    """What happened when: `time` float64 [n] seconds, ascending, and the `key` int64 [n] it has; -1 is none."""

    time: Times
    key: IntArray


@dataclass(frozen=True)
class Replayed:
    """One value a request: whether a list answers it, and the list's `age`, in seconds and in events of its key."""

    hit: npt.NDArray[np.bool_]
    age: Times
    behind: IntArray

    @property
    def rate(self) -> float:
        """The share of the requests that lists answer."""
        return float(np.mean(self.hit))


def own_log(interactions: Interactions, depth: int = 0) -> tuple[Log, Log]:
    """Requests and events of the interactions' own times: every event is a request just before it.

    Keys are users, or, with a `depth`, last-seen states: the one before the event, and the one after it.
    """
    time = interactions.timestamp
    if not depth:
        log = Log(time, interactions.user.astype(np.int64))
        return log, log
    histories = interactions.histories()
    grouped = states(histories, depth, interactions.n_items)
    before = np.concatenate(([-1], grouped[:-1]))
    before[histories.indptr[:-1][histories.sizes > 0]] = -1
    order = np.argsort(interactions.user, kind="stable")
    asked, left = np.empty_like(grouped), np.empty_like(grouped)
    asked[order], left[order] = before, grouped
    return Log(time, asked), Log(time, left)


def replay(requests: Log, events: Log, *, share: float, refresh: float, ttl: float = np.inf) -> Replayed:
    """`requests` against lists for the most frequent `share` of the keys of `events`.

    Every `refresh` seconds from the first event or request on, all lists are computed anew, of the events until then. A
    list older than `ttl` seconds answers nothing.
    """
    start = min(log.time[0] for log in (requests, events) if len(log.time))
    period = np.floor((requests.time - start) / refresh).astype(np.int64)
    made = start + period * refresh
    keys, index = np.unique(events.key, return_inverse=True)
    counts, known = np.zeros(len(keys), np.int64), 0
    hit = np.zeros(len(requests.time), dtype=bool)
    for turn in np.unique(period):
        until = int(np.searchsorted(events.time, start + turn * refresh))
        counts += np.bincount(index[known:until], minlength=len(keys))
        known = until
        some = np.flatnonzero(counts)
        asked = slice(*np.searchsorted(period, [turn, turn + 1]))
        hit[asked] = np.isin(requests.key[asked], keys[some[most_frequent(counts[some], share)]])
    hit &= (requests.key >= 0) & (requests.time - made <= ttl)
    behind = _before(requests.key, requests.time, events) - _before(requests.key, made, events)
    return Replayed(hit, requests.time - made, behind)


def _before(keys: IntArray, times: Times, events: Log) -> IntArray:
    """How many events each of `keys` had before its time."""
    order = np.lexsort((np.arange(len(events.key)), events.key))
    names, index = np.unique(events.key, return_inverse=True)
    width = len(events.key) + 1
    places = index[order] * width + order  # by key, then by time
    line = np.searchsorted(names, keys)
    first, last = (
        np.searchsorted(places, line * width + at) for at in (0, np.searchsorted(events.time, times, side="left"))
    )
    there = names[np.minimum(line, len(names) - 1)] == keys
    return np.where(there, last - first, 0)

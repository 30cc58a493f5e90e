"""Train, validation and test views of interactions.

* `leave_last(n=1)`: each user's last n events are test targets, one query each with the true history before it; the n
  before those are validation targets, by the same rule. A user needs 2n + 1 events; with fewer all of them train.
* `global_time(test=0.2, validation=0.1)`: one point in time cuts off the last share of all events for test, an earlier
  one the share before it for validation. One query a user: what came before the cut, and which items are new after it.

Ties are broken by the order of the file. Shares are of all events; events of one time never part.
What `leave_last` can't see: "A Critical Study on Data Leakage in Recommender System Offline Evaluation", TOIS 2023
(arXiv 2010.11060).
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from recfit.types import ConfigError, DataError, IntArray, Interactions, Queries, Ragged, Rows, Split

Mask = npt.NDArray[np.bool_]
Number = int | float


def split(interactions: Interactions, protocol: str) -> Split:
    """The views of `interactions` by `protocol`, such as `leave_last`, `leave_last(n=5)`, `global_time(test=0.1)`.

    `Split.cold` counts test targets without a training event (`items`), users with a test query but no training event
    (`users`), users with too few events for a query (`short`), and users without a history, dropped (`no_history`).
    """
    name, settings = _parsed(protocol)
    return PROTOCOLS[name][0](interactions, **settings)


def parted(queries: Queries, share: float, limit: int) -> tuple[Queries, Queries]:
    """The queries of a random `share` of the users, about `limit` queries at most, and those of all others.

    Both have a user at least; a single user is in both.
    """
    users = np.unique(queries.user)
    if len(users) == 1:
        return queries, queries
    most = limit * len(users) // len(queries)
    count = min(max(1, min(round(share * len(users)), most)), len(users) - 1)
    taken = np.isin(queries.user, np.random.default_rng(0).permutation(users)[:count])
    return queries.take(np.flatnonzero(taken)), queries.take(np.flatnonzero(~taken))


def leave_last(interactions: Interactions, n: int) -> Split:
    """Each user's last `n` events are test targets, the `n` before them validation targets."""
    if n != int(n) or n < 1:
        raise ConfigError(f"leave_last(n={n}): n is the number of targets a user, a whole number from 1")
    n = int(n)
    events = interactions.histories()
    enough = np.flatnonzero(events.sizes >= 2 * n + 1)
    if not len(enough):
        longest = int(events.sizes.max())
        raise DataError(
            f"leave_last(n={n}) needs users of {2 * n + 1} events and the longest history has {longest}; lower n"
        )
    stops = events.indptr[enough + 1]
    test, validation = _successive(events, enough, stops, n), _successive(events, enough, stops - n, n)
    held = np.zeros(len(interactions), dtype=bool)
    held[(stops[:, None] - np.arange(1, 2 * n + 1)).ravel()] = True
    train = np.empty_like(held)
    train[np.argsort(interactions.user, kind="stable")] = ~held
    short = interactions.n_users - len(enough)
    return _split(f"leave_last(n={n})", interactions, train, validation, test, {"short": short, "no_history": 0})


def global_time(interactions: Interactions, test: float, validation: float) -> Split:
    """The last share of all events by time is `test`, the share before it `validation`."""
    if not (test > 0 and validation > 0 and test + validation < 1):
        raise ConfigError(
            f"global_time(test={test}, validation={validation}): both must be above 0 and their sum below 1"
        )
    if np.count_nonzero(np.diff(interactions.user)) + 1 == interactions.n_users:
        raise DataError(
            f"{interactions.name} has no common clock: user follows user, with no time; split it with leave_last"
        )
    first, second = _cut(interactions, test + validation), _cut(interactions, test)
    if not 0 < first < second:
        times = len(np.unique(interactions.timestamp))
        raise DataError(
            f"{interactions.name} has {times} distinct times; test={test}, validation={validation} leave a part empty"
        )
    asked, _ = _new_items(interactions, first, second)
    answered, no_history = _new_items(interactions, second, len(interactions))
    train = np.arange(len(interactions)) < first
    name = f"global_time(test={test}, validation={validation})"
    return _split(name, interactions, train, asked, answered, {"short": 0, "no_history": no_history})


PROTOCOLS: dict[str, tuple[Callable[..., Split], dict[str, Number]]] = {
    "leave_last": (leave_last, {"n": 1}),
    "global_time": (global_time, {"test": 0.2, "validation": 0.1}),
}


def _parsed(protocol: str) -> tuple[str, dict[str, Number]]:
    """Name and settings, defaults filled in."""
    match = re.fullmatch(r"\s*(\w+)\s*(?:\((.*)\))?\s*", protocol)
    name = match[1] if match else protocol
    if match is None or name not in PROTOCOLS:
        near = difflib.get_close_matches(name, PROTOCOLS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ConfigError(
            f"no split protocol {protocol!r}{hint} There are: leave_last(n=1), global_time(test=0.2, validation=0.1)"
        )
    settings = dict(PROTOCOLS[name][1])
    for part in filter(None, (text.strip() for text in (match[2] or "").split(","))):
        key, _, value = (text.strip() for text in part.partition("="))
        if key not in settings or not re.fullmatch(r"\d+|\d*\.\d+", value):
            allowed = ", ".join(f"{k}={v}" for k, v in settings.items())
            raise ConfigError(f"{protocol!r}: {part!r} is not a setting of {name}; write {name}({allowed})")
        settings[key] = float(value) if "." in value else int(value)
    return name, settings


def _split(
    protocol: str, interactions: Interactions, train: Mask, validation: Queries, test: Queries, counts: dict[str, int]
) -> Split:
    for part, queries in (("validation", validation), ("test", test)):
        if not len(queries):
            raise DataError(
                f"{protocol} leaves no {part} query on {interactions.name}; give it a larger share or more events"
            )
    seen = replace(
        interactions,
        user=interactions.user[train],
        item=interactions.item[train],
        weight=interactions.weight[train],
        timestamp=interactions.timestamp[train],
    )
    cold = {
        "items": int((~_present(seen.item, seen.n_items))[test.targets.values].sum()),
        "users": int((~_present(seen.user, seen.n_users))[np.unique(test.user)].sum()),
    }
    return Split(protocol, seen, validation, test, cold | counts, _target_hash(interactions, test))


def _successive(events: Ragged, users: IntArray, stops: IntArray, n: int) -> Queries:
    """One query for each of the `n` events before `stops`, oldest first, with all that came before it."""
    places = (stops[:, None] + np.arange(-n, 0)).ravel()
    starts = np.repeat(events.indptr[users], n)
    user = np.repeat(users, n).astype(np.int32)
    return Queries(user, _slices(events.values, starts, places), _slices(events.values, places, places + 1))


def _slices(values: Rows, starts: IntArray, stops: IntArray) -> Ragged:
    sizes = stops - starts
    indptr = np.concatenate(([0], np.cumsum(sizes))).astype(np.int64)
    return Ragged(indptr, values[np.arange(indptr[-1]) + np.repeat(starts - indptr[:-1], sizes)])


def _cut(interactions: Interactions, share: float) -> int:
    """Where the last `share` of the events begins, moved back to the first event of that time."""
    last = len(interactions) - max(1, round(share * len(interactions)))
    return int(np.searchsorted(interactions.timestamp, interactions.timestamp[last], side="left"))


def _new_items(interactions: Interactions, begin: int, end: int) -> tuple[Queries, int]:
    """A query for each user with events before `begin` and new items in `begin..end`; and how many had none before."""
    before = replace(interactions, user=interactions.user[:begin], item=interactions.item[:begin]).histories()
    pair = interactions.user.astype(np.int64) * interactions.n_items + interactions.item
    after = np.unique(pair[begin:end], return_index=True)[1] + begin
    new = np.sort(after[~np.isin(pair[after], pair[:begin])])
    targets = replace(interactions, user=interactions.user[new], item=interactions.item[new]).histories()
    users = np.flatnonzero((before.sizes > 0) & (targets.sizes > 0))
    no_history = int(((before.sizes == 0) & (targets.sizes > 0)).sum())
    return Queries(users.astype(np.int32), before.take(users), targets.take(users)), no_history


def _present(rows: Rows, n: int) -> Mask:
    return np.bincount(rows, minlength=n) > 0


def _target_hash(interactions: Interactions, test: Queries) -> str:
    """sha256 of user id and target item ids, one JSON line a query, by user id and then in order of time."""
    users, items = interactions.user_ids, interactions.item_ids
    keyed = (
        (users[user], [items[row] for row in rows]) for user, rows in zip(test.user.tolist(), test.targets, strict=True)
    )
    lines = (json.dumps(line) for line in sorted(keyed, key=lambda line: line[0]))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()

"""Requests in ids become requests in rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from recfit.bundle import Bundle
from recfit.engine._context import Vocabulary
from recfit.texts import lookup
from recfit.types import IntArray, Request, Rows

NONE = np.empty(0, np.int32)


class Asked(NamedTuple):
    """A request as rows: the user's (-1 unknown), the history, oldest first, what must not be shown besides, the only items
    that may be (None: all), whether the history goes beyond what the bundle knows of the user, and the codes of the context
    (-1 where it says nothing; None without one)."""

    user: int
    history: Rows
    excluded: Rows
    only: Rows | None
    fresh: bool
    context: IntArray | None

    @property
    def gone(self) -> Rows:
        """What must not be shown."""
        return np.concatenate((self.history, self.excluded)) if len(self.excluded) else self.history

    @property
    def told(self) -> bool:
        """Whether the context has a value that is known."""
        return self.context is not None and bool((self.context > 0).any())


class Reader:
    """The id maps of a bundle, and what it knows of its users."""

    def __init__(self, bundle: Bundle) -> None:
        self.users, self.items = lookup(bundle.user_ids), lookup(bundle.item_ids)
        self.vocabulary = Vocabulary(bundle)
        self._histories = bundle.histories

    def asked(self, request: Request) -> Asked:
        user = -1 if request.user_id is None else self.users.get(request.user_id, -1)
        history = self._histories[user] if user >= 0 else NONE
        if request.history is not None:
            history = self.rows(request.history)
        recent = self.rows(request.recent) if request.recent else NONE
        excluded = self.rows(request.exclude) if request.exclude else NONE
        only = None if request.candidates is None else np.unique(self.rows(request.candidates))
        context = self.vocabulary.row(request.context) if request.context else None
        return Asked(user, continued(history, recent), excluded, only, bool(len(recent)), context)

    def rows(self, ids: Sequence[str]) -> Rows:
        """Rows of the known ids; unknown ones carry no signal and are skipped."""
        get = self.items.get
        return np.array([row for item in ids if (row := get(item)) is not None], np.int32)


def continued(history: Rows, recent: Rows) -> Rows:
    """`history` and what happened since. Events that both tell, at the end of one and the start of the other, count once:
    a bundle that is made anew knows some of what was live before."""
    if not len(recent):
        return history
    known = 0
    if len(history):
        for size in (np.flatnonzero(recent == history[-1])[::-1] + 1).tolist():
            if np.array_equal(history[-size:], recent[:size]):
                known = size
                break
    return np.concatenate((history, recent[known:]))

"""The nouns that have no behaviour of their own, and the errors. NumPy only: every other room may import this one.

Rows and ids: inside recfit users and items are *rows*, integers from 0; *ids* are the strings of the
user's own data and live only at the edges (reading data, requests, recommendations).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]
Rows = npt.NDArray[np.int32]
FloatArray = npt.NDArray[np.float32]
Values = tuple[str, ...] | tuple[float, ...]
"""What the codes of a feature column stand for: code i + 1 is `values[i]`; of numbers in buckets these are the inner edges, and
code i + 1 is from `values[i - 1]` to below `values[i]`."""
RequestContext = Mapping[str, str | float]
"""Values of user features by name, as the data has them; those of a list are set apart by `|`."""


class RecfitError(Exception):
    """Base of every error recfit raises on purpose. The text names the thing, its value, what is allowed, the next step."""

    exit_code = 2


class DataError(RecfitError):
    """The interactions can't be used as they are."""


class ConfigError(RecfitError):
    """A setting is unknown or has a value that is not allowed."""


class Unsupported(RecfitError):
    """A technique refuses: it would change nothing, or does not apply to this pipeline."""


class BundleError(RecfitError):
    """A bundle is damaged, incomplete or of a newer format."""


class MeasurementError(RecfitError):
    """A measuring process failed or took too long."""


class Infeasible(RecfitError):
    """No measured candidate holds every limit of the budget."""

    exit_code = 3


@dataclass(frozen=True)
class Ragged:
    """Lists of rows of different lengths in two arrays: list `i` is `values[indptr[i]:indptr[i + 1]]`."""

    indptr: IntArray
    values: Rows

    @classmethod
    def from_lists(cls, lists: Iterable[Sequence[int] | Rows]) -> Ragged:
        parts = [np.asarray(part, dtype=np.int32) for part in lists]
        sizes = np.array([len(part) for part in parts], dtype=np.int64)
        values = np.concatenate(parts) if parts else np.empty(0, np.int32)
        return cls(np.concatenate(([0], np.cumsum(sizes))).astype(np.int64), values.astype(np.int32))

    def __len__(self) -> int:
        return len(self.indptr) - 1

    def __getitem__(self, index: int) -> Rows:
        return self.values[self.indptr[index] : self.indptr[index + 1]]

    def __iter__(self) -> Iterator[Rows]:
        return (self[index] for index in range(len(self)))

    @cached_property
    def sizes(self) -> IntArray:
        return np.diff(self.indptr)

    def take(self, rows: IntArray) -> Ragged:
        """The lists at `rows`, in that order."""
        return Ragged.from_lists([self[int(row)] for row in rows])

    def last(self, n: int) -> Ragged:
        """Each list cut to its last `n` values."""
        return Ragged.from_lists([part[-n:] if n else part[:0] for part in self])

    def renumbered(self, numbers: Rows) -> Ragged:
        """The lists with `numbers[row]` in the place of each row, and without those whose number is -1."""
        values = numbers[self.values]
        kept = values >= 0
        before = np.concatenate(([0], np.cumsum(kept))).astype(np.int64)
        return Ragged(before[self.indptr], values[kept])

    def padded(self, length: int) -> IntArray:
        """Tokens `[len(self), length]`: row + 1, left-padded with 0, the newest last; longer lists lose their oldest."""
        tokens = np.zeros((len(self), length), dtype=np.int64)
        for index, part in enumerate(self):
            kept = part[-length:]
            if len(kept):
                tokens[index, length - len(kept) :] = kept + 1
        return tokens


@dataclass(frozen=True)
class Features:
    """Categorical features of users or of items.

    `codes[row, column]` is an int32 code from 1; 0 means unknown. `sizes[column]` is the number of codes, 0 included.
    A multi-valued column (genres) is spread over several columns that share a vocabulary: `genre.0`, `genre.1`, ...
    `values[column]` is that vocabulary; None where it is not known, and values can't become codes.
    """

    names: tuple[str, ...]
    codes: Rows
    sizes: tuple[int, ...]
    values: tuple[Values, ...] | None = None


@dataclass(frozen=True)
class Interactions:
    """Events in stable time order: by timestamp, then by the order of the file.

    `user`, `item` int32 [n] rows; `weight` float32 [n]; `timestamp` float64 [n] seconds (the position in
    the file where the source has no time). `user_ids[row]` and `item_ids[row]` are the source's own ids.
    """

    name: str
    user: Rows
    item: Rows
    weight: FloatArray
    timestamp: npt.NDArray[np.float64]
    user_ids: tuple[str, ...]
    item_ids: tuple[str, ...]
    user_features: Features | None = None
    item_features: Features | None = None
    titles: tuple[str, ...] | None = None
    dropped: Mapping[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.user)

    @property
    def n_users(self) -> int:
        return len(self.user_ids)

    @property
    def n_items(self) -> int:
        return len(self.item_ids)

    def histories(self) -> Ragged:
        """Item rows of every user, oldest first."""
        order = np.argsort(self.user, kind="stable")
        counts = np.bincount(self.user, minlength=self.n_users)
        return Ragged(np.concatenate(([0], np.cumsum(counts))).astype(np.int64), self.item[order])


@dataclass(frozen=True)
class Queries:
    """Recommendation requests with known answers.

    `user` int32 [q]; `history[i]` is everything user[i] did before, oldest first; `targets[i]` what came next.
    """

    user: Rows
    history: Ragged
    targets: Ragged

    def __len__(self) -> int:
        return len(self.user)

    def take(self, rows: IntArray) -> Queries:
        return Queries(self.user[rows], self.history.take(rows), self.targets.take(rows))


@dataclass(frozen=True)
class Split:
    """Train, validation and test views of one set of interactions.

    `train` holds the events a model may learn from, over the id maps of the whole set. `cold` counts the
    test targets that training never saw (`items`) and the users with a query but no training event (`users`).
    `target_hash` is the sha256 of the test targets: two numbers with different hashes are not comparable.
    """

    protocol: str
    train: Interactions
    validation: Queries
    test: Queries
    cold: Mapping[str, int]
    target_hash: str

    @property
    def n_users(self) -> int:
        return self.train.n_users

    @property
    def n_items(self) -> int:
        return self.train.n_items


@dataclass(frozen=True, slots=True)
class Request:
    """One question. `history` (item ids, oldest first) wins over what the bundle knows of `user_id`; `recent` is what
    happened after either. With `candidates` only these items are ranked. The features in `context` win over those that the
    bundle knows of `user_id`.

    A list that was precomputed for `user_id`, or for the newest items of the history, still answers first, less what is
    in `history`.
    """

    user_id: str | None = None
    history: tuple[str, ...] | None = None
    exclude: tuple[str, ...] = ()
    recent: tuple[str, ...] = ()
    candidates: tuple[str, ...] | None = None
    context: RequestContext | None = None


@dataclass(frozen=True, slots=True)
class Recommendation:
    """The answer: item ids, best first, with scores; `source` is `model`, `cache` or `fallback`."""

    items: tuple[str, ...]
    scores: tuple[float, ...]
    source: str

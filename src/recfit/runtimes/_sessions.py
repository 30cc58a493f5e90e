"""What an encoder worked out for the events of a history, kept for the request that has one more.

A session asks again and again, each time with an event or two on top. A causal encoder owes the older ones nothing: their
keys and values are what they were. They are found by the events themselves: it makes no difference who asks, and nothing is
found for others.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from threading import Lock
from typing import Any, TypeVar

import numpy as np

from recfit.runtimes import Batch
from recfit.types import FloatArray, Rows

T = TypeVar("T")
Run = Callable[[Sequence[int], Batch, FloatArray], tuple[Sequence[T], FloatArray]]
"""Lines of a batch, these with their newest N events alone, what is known of the ones before (float32 [B, P, m], zeros on
the left where there are fewer) -> an answer for each, what the newest leave (float32 [B, N, m])."""

LEAD = 8  # events that a request may have more than what is kept: each is one more look for it
SHORT = 16  # histories below are as fast to read anew
ROOM = 16  # events that memory is set aside for at a time
STRIDES = 16  # of these a history is made; see `Sessions`


@dataclass(frozen=True)
class Kept:
    """What the first `length` events left: the leading rows of float32 [_, m]."""

    numbers: FloatArray
    length: int = 0

    def extended(self, left: FloatArray, length: int) -> Kept:
        """With what the newest of `length` events left, [N, m], in the memory of this one where there is room. What is left
        lies in memory of the runtime, which it would not give back: it is copied."""
        numbers = self.numbers
        if length > len(numbers):
            numbers = np.empty((length + ROOM, numbers.shape[1]), np.float32)
            numbers[: self.length] = self.numbers[: self.length]
        numbers[length - len(left) : length] = left
        return Kept(numbers, length)


class Sessions:
    """Sessions of up to `most_bytes`, the one that was used least recently leaves first. Thread-safe.

    `numbers` are kept of each event. What the oldest event meant to all others is in what they left, so a history that loses
    it is read anew. One of more than `max_history` events would lose one with each new one; it loses a 16th at once instead,
    and then none for as long, with and without sessions.
    """

    def __init__(self, numbers: int, max_history: int) -> None:
        self._nothing, self._max_history = Kept(np.empty((0, numbers), np.float32)), max_history
        self._kept: OrderedDict[bytes, Kept] = OrderedDict()
        self._lock = Lock()
        self.most_bytes = self.bytes = self.hits = self.misses = 0

    def limit(self, most_bytes: int) -> None:
        """Keep no more than that, from now on."""
        with self._lock:
            self.most_bytes = most_bytes
            self._shed()

    def answers(self, batch: Batch, run: Run[T]) -> list[T]:
        """What `run` answers each request; those that are known and those that are not go through apart."""
        batch = replace(batch, histories=[self._read(history) for history in batch.histories])
        if not self.most_bytes:
            return [*run(range(len(batch)), batch, np.empty((len(batch), *self._nothing.numbers.shape), np.float32))[0]]
        known = [self._taken(history) for history in batch.histories]
        found: list[Any] = [None] * len(batch)
        for lines in _parted(known):
            entries, lengths = [known[line] for line in lines], [len(batch.histories[line]) for line in lines]
            # The least that is new to all; the newest event always is, since it is what the answer is read off.
            new = max(size - min(kept.length, size - 1) for size, kept in zip(lengths, entries, strict=True))
            answers, left = run(lines, batch.only(lines, new), _before(entries, lengths, new))
            for line, answer, kept, size, numbers in zip(lines, answers, entries, lengths, left, strict=True):
                found[line] = answer
                if size >= SHORT:
                    self._keep(batch.histories[line], kept.extended(numbers[-min(new, size) :], size))
        return found

    def _read(self, history: Rows) -> Rows:
        """The events that are read."""
        over, stride = len(history) - self._max_history, max(1, self._max_history // STRIDES)
        return history[-(-over // stride) * stride :] if over > 0 else history

    def _taken(self, history: Rows) -> Kept:
        """What is known of the most of its events. It is nobody else's until it is kept again."""
        size, events = len(history), np.ascontiguousarray(history, np.int32)
        with self._lock:
            for length in range(size, max(SHORT, size - LEAD) - 1, -1):
                key = events[:length].tobytes()
                if (kept := self._kept.pop(key, None)) is not None:
                    self.bytes -= _bytes(key, kept)
                    self.hits += 1
                    return kept
            self.misses += size >= SHORT
        return self._nothing

    def _keep(self, history: Rows, kept: Kept) -> None:
        key = np.ascontiguousarray(history, np.int32).tobytes()
        with self._lock:
            if (same := self._kept.pop(key, None)) is not None:  # asked by two at once
                self.bytes -= _bytes(key, same)
            if _bytes(key, kept) <= self.most_bytes:  # else all others would leave for it
                self._kept[key] = kept
                self.bytes += _bytes(key, kept)
                self._shed()

    def _shed(self) -> None:
        while self.bytes > self.most_bytes:
            self.bytes -= _bytes(*self._kept.popitem(last=False))


def _bytes(key: bytes, kept: Kept) -> int:
    return len(key) + kept.numbers.nbytes


def _parted(known: Sequence[Kept]) -> Iterator[list[int]]:
    """The lines of which something is known, and the others."""
    for warm in (True, False):
        if lines := [line for line, kept in enumerate(known) if (kept.length > 0) == warm]:
            yield lines


def _before(entries: Sequence[Kept], lengths: Sequence[int], new: int) -> FloatArray:
    """What is known of all events but the `new` newest, float32 [B, P, m]."""
    sizes = [max(0, length - new) for length in lengths]
    if len(entries) == 1:
        return entries[0].numbers[None, : sizes[0]]
    past = np.zeros((len(entries), max(sizes), entries[0].numbers.shape[1]), np.float32)
    for line, kept, size in zip(past, entries, sizes, strict=True):
        line[len(line) - size :] = kept.numbers[:size]
    return past

"""Training examples as tensors: windows of user sequences, drawn anew in every epoch."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from recfit.models import Catalogue, Model
from recfit.types import Interactions, Queries

BUCKET = 16  # batches whose windows are sorted by length together, so that a batch has little padding


@dataclass(frozen=True)
class Batch:
    """`user` int64 [B] (row + 1); `window` tokens [B, L + 1], left-padded: the last one is what followed the others.

    `end` int64 [B] is the place after the window's last token among the tokens of the `Sequences`; of a window that was
    turned around, among those of the turned sequences, which are counted on from there.
    """

    user: Tensor
    window: Tensor
    end: Tensor

    def __len__(self) -> int:
        return len(self.user)

    @property
    def history(self) -> Tensor:
        return self.window[:, :-1]

    @property
    def target(self) -> Tensor:
        return self.window[:, -1]

    def places(self, length: int) -> Tensor:
        """Where the last `length` events of the history are, int64 [B, length]; padding is anywhere."""
        return self.end[:, None] - 1 + torch.arange(-length, 0)


@dataclass(frozen=True)
class Sequences:
    """Every user's tokens, oldest first: those of user u are `tokens[start[u]:stop[u]]`."""

    tokens: Tensor
    start: Tensor
    stop: Tensor

    @classmethod
    def of(cls, events: Interactions) -> Sequences:
        histories = events.histories()
        bounds = torch.from_numpy(histories.indptr)
        return cls(torch.from_numpy(histories.values).long() + 1, bounds[:-1], bounds[1:])

    @cached_property
    def digest(self) -> str:
        """Of what they hold."""
        digest = hashlib.sha256()
        for part in (self.tokens, self.start, self.stop):
            digest.update(part.contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]

    def turned(self) -> Sequences:
        """Every user's events in the opposite order, at the user's own places."""
        ends = (self.start + self.stop - 1).repeat_interleave(self.stop - self.start)
        return Sequences(self.tokens[ends - torch.arange(len(ends))], self.start, self.stop)

    def windows(self, users: Tensor, ends: Tensor, length: int) -> Tensor:
        """Up to `length` tokens before position `ends` of each user, left-padded, [B, length]."""
        places = ends[:, None] + torch.arange(-length, 0)
        return torch.where(places >= self.start[users][:, None], self.tokens[places.clamp(min=0)], 0)

    def chosen(self, fraction: float, seed: int, least: int = 2) -> Tensor:
        """Users with at least that many events, or a random `fraction` of them."""
        users = torch.nonzero(self.stop - self.start >= least)[:, 0]
        if fraction == 1.0:
            return users
        order = torch.randperm(len(users), generator=torch.Generator().manual_seed(seed))
        return users[order[: max(1, round(fraction * len(users)))]].sort().values


@dataclass(frozen=True)
class Draw:
    """What one epoch takes: windows of up to `length` events and the one after them, `size` in a batch, of a random
    `share` of all examples."""

    length: int
    size: int
    generator: torch.Generator
    share: float = 1.0

    def some(self, count: int) -> Tensor:
        """The drawn ones of `count` examples, in random order."""
        order = torch.randperm(count, generator=self.generator)
        return order[: max(1, round(self.share * count))]


def crops(sequences: Sequences, users: Tensor, draw: Draw, reverse: float = 0.0) -> Iterator[Batch]:
    """One window of each user at a random place, for models that answer after every prefix: B x (length + 1) tokens.

    A share of `reverse` windows is turned around.
    """
    length, size, generator = draw.length, draw.size, draw.generator
    order = users[draw.some(len(users))]
    lengths = (sequences.stop - sequences.start)[order].clamp(max=length + 1)
    parts = [part[lengths[part].argsort()] for part in _chunks(torch.arange(len(order)), size * BUCKET)]
    batches = [batch for part in parts for batch in _chunks(part, size)]
    for index in torch.randperm(len(batches), generator=generator).tolist():
        rows, sizes = order[batches[index]], lengths[batches[index]]
        slack = sequences.stop[rows] - sequences.start[rows] - sizes
        shift = (torch.rand(len(rows), generator=generator, dtype=torch.float64) * (slack + 1)).long()
        ends = sequences.stop[rows] - shift
        windows = sequences.windows(rows, ends, int(sizes.max()))
        if reverse:
            turned = torch.rand(len(rows), 1, generator=generator) < reverse
            windows = torch.where(turned, _reversed(windows), windows)
            mirrored = len(sequences.tokens) + sequences.start[rows] + sequences.stop[rows] - (ends - sizes)
            ends = torch.where(turned[:, 0], mirrored, ends)
        yield Batch(rows + 1, windows, ends)


def _reversed(windows: Tensor) -> Tensor:
    """The events of each row [B, L] in the opposite order, the padding still on the left."""
    length = windows.shape[1]
    sizes = (windows > 0).sum(1, keepdim=True)
    back = torch.arange(length).flip(0)[None]
    source = (length - sizes + back).clamp(max=length - 1)
    return torch.where(back < sizes, windows.gather(1, source), 0)


def examples(sequences: Sequences, users: Tensor, draw: Draw) -> Iterator[Batch]:
    """Every event of each user once, with up to `length` events before it: B x (length + 1) tokens."""
    counts = (sequences.stop - sequences.start)[users]
    owner = users.repeat_interleave(counts)
    within = torch.arange(len(owner)) - (counts.cumsum(0) - counts).repeat_interleave(counts)
    ends = sequences.start[owner] + within + 1
    if draw.length:  # a first event has no history to be told from
        owner, ends = owner[within > 0], ends[within > 0]
    for part in _chunks(draw.some(len(owner)), draw.size):
        yield Batch(owner[part] + 1, sequences.windows(owner[part], ends[part], draw.length + 1), ends[part])


def requests(queries: Queries, length: int, size: int) -> Iterator[Batch]:
    """Every target of `queries` once, with up to `length` >= 1 events before it. They are no training events: `end` is 0."""
    targets = torch.from_numpy(queries.targets.values).long()[:, None] + 1
    lines = torch.arange(len(queries)).repeat_interleave(torch.from_numpy(queries.targets.sizes))
    windows = torch.cat((torch.from_numpy(queries.history.padded(length))[lines], targets), 1)
    users = torch.from_numpy(queries.user).long()[lines] + 1
    for part in _chunks(torch.arange(len(lines)), size):
        yield Batch(users[part], windows[part], torch.zeros_like(part))


def _chunks(rows: Tensor, size: int) -> list[Tensor]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def inputs_for(model: Model, user: Tensor, history: Tensor) -> dict[str, Tensor]:
    """What `model` reads of these requests: user rows + 1 [B], tokens [B, L]."""
    given = {
        "user": lambda: user,
        "history": lambda: _newest(history, model),
        "user_features": lambda: _codes(model, user),
    }
    return {name: given[name]() for name in model.inputs}


def _newest(history: Tensor, model: Model) -> Tensor:
    if not history.shape[1]:
        return torch.zeros(len(history), 1, dtype=torch.long)
    return history[:, -model.max_history :]


def _codes(model: Model, user: Tensor) -> Tensor:
    """The users' feature codes [B, F]; zeros for the unknown user."""
    catalogue: Catalogue = model.catalogue
    assert catalogue.user_features is not None, "a model that reads user features was built from them"
    codes = torch.from_numpy(catalogue.user_features.codes).long()
    return codes[(user - 1).clamp(min=0)] * (user > 0)[:, None]

"""What a ranker learns to put below the events of a user: random items that this user has no event of, as NeuMF samples them
(He et al., WWW 2017, arXiv 1708.05031)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from recfit.training.batches import Sequences


@dataclass(frozen=True)
class Unseen:
    """The items without an event of each of U users, of whom one that has events of all items counts as if of none.

    `seen` int64 [P], ascending, has a number for every different pair of user and item: how many unseen items come before
    that item, plus the user's row times `width`, one more than there are items. A user's part of it begins at `first` [U],
    `free` [U] is how many items are left.
    """

    seen: Tensor
    first: Tensor
    free: Tensor
    width: int

    @classmethod
    def of(cls, sequences: Sequences, n_items: int) -> Unseen:
        sizes, width = sequences.stop - sequences.start, n_items + 1
        pairs = torch.unique(torch.arange(len(sizes)).repeat_interleave(sizes) * width + sequences.tokens)
        counts = torch.bincount(pairs // width, minlength=len(sizes))
        pairs = pairs[counts[pairs // width] < n_items]
        counts = counts * (counts < n_items)
        first = counts.cumsum(0) - counts
        before = torch.arange(len(pairs)) - first[pairs // width]  # of the user's own, those with lower rows
        return cls(pairs - 1 - before, first, n_items - counts, width)

    def draw(self, users: Tensor, count: int) -> Tensor:
        """`count` random tokens, all unseen ones alike, for each of `users` (row + 1, [B]): int64 [B, count].

        The k-th unseen item is k places further for every seen one that has at most k unseen before it: no draw is thrown away.
        """
        rows = (users - 1)[:, None]
        chosen = (torch.rand(len(users), count, dtype=torch.float64) * self.free[rows]).long()
        passed = torch.searchsorted(self.seen, rows * self.width + chosen, right=True) - self.first[rows]
        return chosen + passed + 1

"""What EASE and ItemKNN share: a request scores every item by the sum of its history's item-item rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor, nn

from recfit.models import Catalogue, Model
from recfit.models._axes import no_axis
from recfit.types import Interactions, Split

ROWS_AT_ONCE = 1024


def binary_matrix(events: Interactions) -> sp.csr_matrix:
    """Who chose what, once: float32 CSR [n_users, n_items] of ones."""
    ones = np.ones(len(events), dtype=np.float32)
    matrix = sp.csr_matrix((ones, (events.user, events.item)), shape=(events.n_users, events.n_items))
    matrix.data[:] = 1.0
    return matrix


def heaviest(rows: Tensor, neighbours: int) -> tuple[Tensor, Tensor]:
    """The `neighbours` entries of largest magnitude of each row [R, N]: their columns and their values, both [R, K]."""
    columns = rows.abs().topk(neighbours, dim=1).indices.sort(dim=1).values
    return columns, rows.gather(1, columns)


class ItemItem(nn.Module):
    """`encode` gives the score of every item, so the item table is the identity.

    Dense: `rows` [N, N]. Sparse: `columns` and `values` [N + 1, K], row 0 for padding. `solver` fills them.
    """

    identity: ClassVar[bool] = True
    inputs = ("history",)
    rows: Tensor
    columns: Tensor
    values: Tensor

    def __init__(self, kind: str, config: Any, catalogue: Catalogue, solver: Any) -> None:
        super().__init__()
        self.kind, self.config, self.catalogue, self.solver = kind, config, catalogue, solver
        self.max_history = config.max_history
        items = catalogue.n_items
        self.neighbours = min(config.neighbours, items)
        if self.neighbours:
            self.register_buffer("columns", torch.zeros(items + 1, self.neighbours, dtype=torch.int32))
            self.register_buffer("values", torch.zeros(items + 1, self.neighbours))
        else:
            self.register_buffer("rows", torch.zeros(items, items))

    def solve(self, split: Split) -> None:
        self.solver(self, binary_matrix(split.train))

    def encode(self, history: Tensor) -> Tensor:
        return self._sparse(history) if self.neighbours else self._dense(history)

    def _dense(self, history: Tensor) -> Tensor:
        # A product with the 0/1 row of the request needs B x N memory; gathering its rows would need B x L x N.
        chosen = torch.zeros(history.shape[0], self.catalogue.n_items + 1)
        return chosen.scatter(1, history, 1.0)[:, 1:] @ self.rows

    def _sparse(self, history: Tensor) -> Tensor:
        empty = torch.zeros(history.shape[0], self.catalogue.n_items)
        once = history * self._first(history)
        columns, values = self.columns.long()[once], self.values[once]
        return empty.scatter_add(1, columns.flatten(1), values.flatten(1))

    def _first(self, history: Tensor) -> Tensor:
        """Whether an event is the one that counts of those of its item, bool [B, L]: as in `_dense`, each item once."""
        places = torch.arange(history.shape[1]).expand_as(history)
        marked = torch.zeros(history.shape[0], self.catalogue.n_items + 1, dtype=torch.long)
        return marked.scatter(1, history, places).gather(1, history) == places

    def item_vectors(self) -> Tensor:
        return torch.eye(self.catalogue.n_items)

    def keep(self, start: int, rows: Tensor) -> None:
        """Store the item-item rows of the items from `start` on, float [R, N]."""
        if not self.neighbours:
            self.rows[start : start + len(rows)] = rows
            return
        columns, values = heaviest(rows, self.neighbours)
        self.columns[start + 1 : start + 1 + len(rows)] = columns
        self.values[start + 1 : start + 1 + len(rows)] = values

    def take(self, source: ItemItem, rows: Tensor) -> None:
        """The item-item rows of `source` among the items at `rows` int64 [N]."""
        for start in range(0, len(rows), ROWS_AT_ONCE):
            part = rows[start : start + ROWS_AT_ONCE]
            if source.neighbours:
                empty = torch.zeros(len(part), source.catalogue.n_items)
                whole = empty.scatter(1, source.columns[part + 1].long(), source.values[part + 1])
            else:
                whole = source.rows[part]
            self.keep(start, whole[:, rows])

    def axes(self) -> Mapping[str, int]:
        return {}

    def importance(self, axis: str) -> Tensor:
        raise no_axis(self, axis)

    def shrink(self, axis: str, keep: Tensor) -> Model:
        raise no_axis(self, axis)

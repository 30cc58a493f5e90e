"""A shallow network: weighted sums of the history's item vectors, two linear layers, one answer vector.

Each of `pools` sums weighs the events by how far back they lie, with weights that are learned and start as exponential
decays of different pace: the first sees little more than the newest event, the last nearly the whole history.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recfit.models import Catalogue, Model, rebuilt
from recfit.models._axes import check_keep, narrowed, newest_kept, no_axis, recency
from recfit.models._codes import check_table, codes_of, copy_items, item_table
from recfit.models._layers import Dropout, check_features, decays, factored, selector
from recfit.options import check_ranges


@dataclass(frozen=True)
class Config:
    """`features` adds the vectors of the item's features to its own, less the columns in `without`.

    `parts`, `codes`, `table_dim`, `ranks` and `widths` are those of `sasrec`.
    """

    embedding_dim: int = 64
    hidden: int = 256
    pools: int = 3
    max_history: int = 50
    dropout: float = 0.3
    features: bool = False
    without: tuple[str, ...] = ()
    parts: int = 0
    codes: int = 256
    table_dim: int = 0
    ranks: Mapping[str, int] = field(default_factory=dict)
    widths: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        check_ranges("model.mlp", self, embedding_dim=(1, 8192), hidden=(1, 65536), pools=(1, 16))
        check_ranges("model.mlp", self, max_history=(1, 1e5), dropout=(0, 0.95))
        check_table("model.mlp", self)


class Mlp(nn.Module):
    kind: ClassVar[str] = "mlp"
    inputs = ("history",)

    def __init__(self, config: Config, catalogue: Catalogue) -> None:
        super().__init__()
        self.config, self.catalogue, self.max_history = config, catalogue, config.max_history
        described = catalogue.item_features if config.features else None
        self.items = item_table(catalogue.n_items, config, 0.05, described)
        self.recency = nn.Parameter(decays(config.pools, config.max_history))
        self.first = nn.Linear(config.pools * config.embedding_dim, config.hidden)
        self.second = nn.Linear(config.hidden, config.embedding_dim)
        self.enter = nn.Parameter(torch.tensor(float(config.embedding_dim) ** 0.5))
        self.dropout = Dropout(config.dropout)

    def encode(self, history: Tensor) -> Tensor:
        return self.encode_vectors(history, self.items.lookup(history))

    def encode_vectors(self, history: Tensor, vectors: Tensor) -> Tensor:
        back = history.shape[1] - 1 - torch.arange(history.shape[1])  # counting down exports to wrong ONNX
        pooled = self.recency[:, back] @ self.items.widen(vectors)
        return self._answer(pooled.flatten(1))

    def states(self, history: Tensor) -> Tensor:
        positions = torch.arange(history.shape[1])
        back = positions[:, None] - positions[None, :]
        weights = self.recency[:, back.clamp(min=0)] * (back >= 0)
        pooled = weights @ self.items.widen(self.items.lookup(history))[:, None]
        return self._answer(pooled.transpose(1, 2).flatten(2))

    def _answer(self, pooled: Tensor) -> Tensor:
        hidden = self.dropout(F.gelu(self.first(self.dropout(pooled * self.enter))))
        return self.items.narrow(self.second(hidden))

    def item_vectors(self) -> Tensor:
        return self.items.vectors()

    def item_codes(self) -> tuple[Tensor, Tensor] | None:
        return codes_of(self.items)

    def axes(self) -> Mapping[str, int]:
        c = self.config
        sizes = {"hidden": c.hidden, "history_length": c.max_history}
        return {} if c.ranks else sizes | self.items.axes()

    @torch.no_grad()
    def importance(self, axis: str) -> Tensor:
        if axis == "hidden":
            return torch.cat((self.first.weight, self.second.weight.T), dim=1).square().sum(1).sqrt()
        if axis == "embedding_dim":
            read = self.first.weight.square().sum(0).view(self.config.pools, -1).sum(0)
            return (self.items.vectors().square().sum(0) + read + self.second.weight.square().sum(1)).sqrt()
        if axis == "table_dim":
            return self.items.vectors().square().sum(0).sqrt()
        if axis == "history_length":
            return recency(self.config.max_history)
        raise no_axis(self, axis)

    @torch.no_grad()
    def shrink(self, axis: str, keep: Tensor) -> Model:
        check_keep(self, axis, keep)
        hidden, change = torch.arange(self.config.hidden), torch.eye(self.config.embedding_dim)
        if axis == "hidden":
            return self._taken(replace(self.config, hidden=len(keep)), keep, change)
        if axis == "embedding_dim":
            small = narrowed(self.config, embedding_dim=len(keep))
            return self._taken(small, hidden, selector(keep, self.config.embedding_dim))
        if axis == "table_dim":
            return self._taken(narrowed(self.config, table_dim=len(keep)), hidden, change, keep)
        return self._taken(replace(self.config, max_history=newest_kept(keep)), hidden, change)

    @torch.no_grad()
    def rotated(self, basis: Tensor) -> Model:
        return self._taken(self.config, torch.arange(self.config.hidden), basis)

    def _taken(self, config: Config, hidden: Tensor, change: Tensor, columns: Tensor | None = None) -> Model:
        """A model of `config` with the chosen weights of this one, its vectors times `change` [d, d_new]."""
        model = rebuilt(self, config)
        assert isinstance(model, Mlp)
        copy_items(self.items, model.items, change, columns)
        model.enter.copy_(self.enter)
        model.recency.copy_(self.recency[:, : config.max_history])
        pooled = self.first.weight[hidden].view(len(hidden), config.pools, -1) @ change
        model.first.weight.copy_(pooled.flatten(1))
        model.first.bias.copy_(self.first.bias[hidden])
        model.second.weight.copy_(change.T @ self.second.weight[:, hidden])
        model.second.bias.copy_(self.second.bias @ change)
        return model.train(self.training)


def build(config: Config, catalogue: Catalogue) -> Model:
    check_features("model.mlp", config.features, catalogue.item_features)
    return factored(Mlp(config, catalogue), config.ranks)

"""Two towers: what is known of the user becomes a vector, what is known of the item another, their product is the score
(Covington et al., RecSys 2016; Yi et al., RecSys 2019). With users alone and no network it is matrix factorization (Koren
et al., Computer 2009).

The user's tower adds up the vectors of the user, of the user's features and of the last events, each event by how far back
it lies; a network of one hidden layer adds its answer to that sum. Items have two tables, one that is scored and one that
the history is read from, which narrow, nest and are coded alike.

There is no `table_dim`, tables narrower than the model: the matrices that would widen them fold into the user's vectors and
layers, and leave a model of that `embedding_dim`, which is smaller.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import reduce
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recfit.models import Catalogue, Model, rebuilt
from recfit.models._axes import check_keep, narrowed, newest_kept, no_axis, recency
from recfit.models._codes import check_table, codes_of, copy_items, item_table
from recfit.models._layers import (
    Dropout,
    FeatureTable,
    Past,
    check_features,
    copy_features,
    factored,
    feature_groups,
    selector,
    some_unknown,
    user_tables,
)
from recfit.options import check_ranges
from recfit.types import ConfigError


@dataclass(frozen=True)
class Config:
    """`hidden` units of the user's network, 0 for none; `max_history` events are read, 0 for none; `users`: one vector
    for each user, hidden from training at rate `forget`, so that unknown users have one too.

    `features` adds those of users and items, less the columns in `without`. `parts`, `codes`, `ranks` and `widths` are those
    of `sasrec`; beside `parts` the features of users alone are added.
    """

    embedding_dim: int = 64
    hidden: int = 128
    users: bool = True
    max_history: int = 50
    dropout: float = 0.2
    forget: float = 0.02
    features: bool = False
    without: tuple[str, ...] = ()
    parts: int = 0
    codes: int = 256
    ranks: Mapping[str, int] = field(default_factory=dict)
    widths: tuple[int, ...] = ()
    table_dim: ClassVar[int] = 0

    def __post_init__(self) -> None:
        check_ranges("model.two_tower", self, embedding_dim=(1, 8192), hidden=(0, 65536), max_history=(0, 1e5))
        check_ranges("model.two_tower", self, dropout=(0, 0.95), forget=(0, 1))
        check_table("model.two_tower", self, alone=("widths",))


class TwoTower(nn.Module):
    kind: ClassVar[str] = "two_tower"

    def __init__(self, config: Config, catalogue: Catalogue) -> None:
        super().__init__()
        self.config, self.catalogue, self.max_history = config, catalogue, config.max_history
        d = config.embedding_dim
        described = catalogue.item_features if config.features else None
        about = catalogue.user_features if config.features else None
        self.items = item_table(catalogue.n_items, config, 0.05, described)
        self.users = nn.Parameter(torch.randn(catalogue.n_users + 1, d) * 0.05) if config.users else None
        read = item_table(catalogue.n_items, config, 0.05, None) if config.max_history else None
        self.past = Past(read, config.max_history) if read else None
        self.about = FeatureTable(about, config.without, d) if about and feature_groups(about, config.without) else None
        parts = {"user": self.users, "history": self.past, "user_features": self.about}
        self.inputs = tuple(name for name, part in parts.items() if part is not None)
        if not self.inputs:
            raise ConfigError(
                "model.two_tower has users = false, max_history = 0 and no user features; it needs one of them"
            )
        self.enter = nn.Parameter(torch.tensor(float(d) ** 0.5))
        self.first = nn.Linear(d, config.hidden) if config.hidden else None
        self.second = nn.Linear(config.hidden, d) if config.hidden else None
        self.dropout = Dropout(config.dropout)

    def encode(
        self, user: Tensor | None = None, history: Tensor | None = None, user_features: Tensor | None = None
    ) -> Tensor:
        parts = []
        if self.users is not None and user is not None:
            known = some_unknown(user, self.config.forget) if self.training else user
            parts.append(F.embedding(known, self.users))
        if self.past is not None and history is not None:
            parts.append(self.past(history))
        if self.about is not None and user_features is not None:
            parts.append(self.about.sums(user_features))
        joined: Tensor = self.dropout(self.items.front(reduce(torch.add, parts) * self.enter))
        if self.first is None or self.second is None:
            return joined
        answer: Tensor = joined + self.second(self.dropout(F.gelu(self.first(joined))))
        return answer

    def item_vectors(self) -> Tensor:
        return self.items.vectors()

    def item_codes(self) -> tuple[Tensor, Tensor] | None:
        return codes_of(self.items)

    def axes(self) -> Mapping[str, int]:
        c = self.config
        some = {
            "hidden": c.hidden,
            "embedding_dim": 0 if c.parts else c.embedding_dim,
            "history_length": c.max_history,
        }
        return {} if c.ranks else {axis: size for axis, size in some.items() if size}

    @torch.no_grad()
    def importance(self, axis: str) -> Tensor:
        if axis not in self.axes():
            raise no_axis(self, axis)
        if axis == "history_length":
            return recency(self.config.max_history)
        layers: list[Tensor] = []
        if self.first is not None and self.second is not None:
            layers = [self.first.weight, self.second.weight.T]
        if axis == "hidden":
            return torch.cat(layers, dim=1).square().sum(1).sqrt()
        return (
            torch.cat([self.items.vectors(), *user_tables(self.users, self.past, self.about), *layers])
            .square()
            .sum(0)
            .sqrt()
        )

    @torch.no_grad()
    def shrink(self, axis: str, keep: Tensor) -> Model:
        check_keep(self, axis, keep)
        hidden, change = torch.arange(self.config.hidden), torch.eye(self.config.embedding_dim)
        if axis == "hidden":
            return self._taken(replace(self.config, hidden=len(keep)), keep, change)
        if axis == "embedding_dim":
            small = narrowed(self.config, embedding_dim=len(keep))
            return self._taken(small, hidden, selector(keep, self.config.embedding_dim))
        return self._taken(replace(self.config, max_history=newest_kept(keep)), hidden, change)

    @torch.no_grad()
    def rotated(self, basis: Tensor) -> Model:
        return self._taken(self.config, torch.arange(self.config.hidden), basis)

    def _taken(self, config: Config, hidden: Tensor, change: Tensor) -> Model:
        """A model of `config` with the chosen weights of this one, its vectors times `change` [d, d_new]."""
        model = rebuilt(self, config)
        assert isinstance(model, TwoTower)
        copy_items(self.items, model.items, change)
        model.enter.copy_(self.enter)
        if model.users is not None and self.users is not None:
            model.users.copy_(self.users @ change)
        if model.past is not None and self.past is not None:
            copy_items(self.past.items, model.past.items, change)
            model.past.recency.copy_(self.past.recency[: config.max_history])
        if model.about is not None and self.about is not None:
            copy_features(self.about, model.about, change)
        if model.first is not None and self.first is not None:
            model.first.weight.copy_(self.first.weight[hidden] @ change)
            model.first.bias.copy_(self.first.bias[hidden])
        if model.second is not None and self.second is not None:
            model.second.weight.copy_(change.T @ self.second.weight[:, hidden])
            model.second.bias.copy_(self.second.bias @ change)
        return model.train(self.training)


def build(config: Config, catalogue: Catalogue) -> Model:
    check_features("model.two_tower", config.features and catalogue.user_features is None, catalogue.item_features)
    model = TwoTower(config, catalogue)
    if config.parts and config.features and model.about is None:
        raise ConfigError(
            f"model.two_tower.parts = {config.parts} with features = True, and none of users; codes hold whole vectors, "
            "leave it out"
        )
    return factored(model, config.ranks)

"""NeuMF: a product of factors and a small network, side by side (He et al., WWW 2017, arXiv 1708.05031).

A ranker: (user, candidate items) -> scores. User 0 is the unknown user; it is learned by forgetting users now and then.
With `max_history` a user is also what they did last, as in SVD++ (Koren, KDD 2008): unknown users with a history get
answers of their own, and an answer moves with every event.
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
from recfit.models._axes import check_keep, newest_kept, no_axis, recency
from recfit.models._codes import copy_items
from recfit.models._layers import (
    Dropout,
    FeatureTable,
    ItemTable,
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
from recfit.types import ConfigError, Features


@dataclass(frozen=True)
class Config:
    """`embedding_dim` of the product and of the network each; the network's layers have `hidden`, then `top` units.

    `users`: one vector for each user, hidden from training at rate `forget`, so that unknown users have one too; without,
    users are their features and histories. `features` adds those of users and items, less the columns in `without`.
    `max_history` events are read, 0 for the network of the paper; each counts by how far back it lies. `ranks` makes linear
    layers low-rank, by their paths.
    """

    embedding_dim: int = 32
    hidden: int = 64
    top: int = 32
    dropout: float = 0.1
    users: bool = True
    forget: float = 0.02
    max_history: int = 0
    features: bool = False
    without: tuple[str, ...] = ()
    ranks: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_ranges("model.neumf", self, embedding_dim=(1, 8192), hidden=(1, 65536), top=(1, 65536))
        check_ranges("model.neumf", self, dropout=(0, 0.95), forget=(0, 1), max_history=(0, 1e5))


class NeuMf(nn.Module):
    """Each user and item has one row of 2d numbers: d for the product, d for the network."""

    kind: ClassVar[str] = "neumf"

    def __init__(self, config: Config, catalogue: Catalogue) -> None:
        super().__init__()
        self.config, self.catalogue, self.max_history = config, catalogue, config.max_history
        d, width = config.embedding_dim, 2 * config.embedding_dim
        self.users = nn.Parameter(torch.randn(catalogue.n_users + 1, width) * 0.05) if config.users else None
        self.items = ItemTable(catalogue.n_items, width, 0.05, _used(config, catalogue.item_features), config.without)
        about = _used(config, catalogue.user_features)
        self.about = FeatureTable(about, config.without, width) if about else None
        read = ItemTable(catalogue.n_items, width, 0.05) if config.max_history else None
        self.past = Past(read, config.max_history) if read else None
        parts = {"user": self.users, "history": self.past, "user_features": self.about}
        self.inputs = tuple(name for name, part in parts.items() if part is not None)
        if not self.inputs:
            raise ConfigError(
                "model.neumf has users = false, max_history = 0 and no user features; it needs one of them"
            )
        self.from_user = nn.Linear(d, config.hidden)
        self.from_item = nn.Linear(d, config.hidden, bias=False)
        self.top = nn.Linear(config.hidden, config.top)
        self.output = nn.Linear(d + config.top, 1)
        self.dropout = Dropout(config.dropout)

    def score(
        self,
        items: Tensor,
        user: Tensor | None = None,
        history: Tensor | None = None,
        user_features: Tensor | None = None,
    ) -> Tensor:
        if not items.stride(0):  # the same items for all, as in a scan of the catalogue, are looked up once
            items = items[:1]
        asking, offered = self._user(user, history, user_features), self.items.lookup(items)
        d = self.config.embedding_dim
        product = asking[:, None, :d] * offered[..., :d]
        # The first layer sees user and item apart, so the user's half is computed once for all candidates.
        hidden = F.relu(self.from_user(asking[:, d:])[:, None] + self.from_item(offered[..., d:]))
        top = F.relu(self.top(self.dropout(hidden)))
        answer: Tensor = self.output(torch.cat((self.dropout(product), top), dim=-1))
        return answer[..., 0]

    def _user(self, user: Tensor | None, history: Tensor | None, user_features: Tensor | None) -> Tensor:
        parts = []
        if self.users is not None and user is not None:
            known = some_unknown(user, self.config.forget) if self.training else user
            parts.append(F.embedding(known, self.users))
        if self.about is not None and user_features is not None:
            parts.append(self.about.sums(user_features))
        if self.past is not None and history is not None:
            parts.append(self.past(history))
        return reduce(torch.add, parts)

    def axes(self) -> Mapping[str, int]:
        c = self.config
        sizes = {"embedding_dim": c.embedding_dim, "hidden": c.hidden, "top": c.top}
        some = {"features": len(self.feature_names()), "history_length": c.max_history}
        return {} if c.ranks else sizes | {axis: size for axis, size in some.items() if size}

    def _tables(self) -> list[FeatureTable]:
        return [table for table in (self.items.features, self.about) if table is not None]

    def feature_names(self) -> list[str]:
        """The feature columns in use, the units of the axis `features`."""
        return sorted({name for table in self._tables() for name in table.groups})

    @torch.no_grad()
    def importance(self, axis: str) -> Tensor:
        d = self.config.embedding_dim
        if axis == "embedding_dim":
            tables = torch.cat([self.items.vectors(), *user_tables(self.users, self.past, self.about)]).square().sum(0)
            layers = self.from_user.weight.square().sum(0) + self.from_item.weight.square().sum(0)
            return (tables[:d] + tables[d:] + layers + self.output.weight[0, :d].square()).sqrt()
        if axis == "hidden":
            read = self.from_user.weight.square().sum(1) + self.from_item.weight.square().sum(1)
            return (read + self.top.weight.square().sum(0)).sqrt()
        if axis == "top":
            return (self.top.weight.square().sum(1) + self.output.weight[0, d:].square()).sqrt()
        if axis == "features":
            norms = [_norms(table) for table in self._tables()]
            return torch.tensor([sum(norm.get(name, 0.0) for norm in norms) for name in self.feature_names()])
        if axis == "history_length":
            return recency(self.config.max_history)
        raise no_axis(self, axis)

    @torch.no_grad()
    def shrink(self, axis: str, keep: Tensor) -> Model:
        check_keep(self, axis, keep)
        c = self.config
        units = {name: torch.arange(size) for name, size in self.axes().items()} | {axis: keep}
        if axis == "features":
            kept = {self.feature_names()[unit] for unit in keep.tolist()}
            small = replace(c, without=(*c.without, *(name for name in self.feature_names() if name not in kept)))
        elif axis == "history_length":
            small = replace(c, max_history=newest_kept(keep))
        else:
            small = replace(c, **{axis: len(keep)})  # type: ignore[arg-type]
        return self._taken(small, units["embedding_dim"], units["hidden"], units["top"])

    def _taken(self, config: Config, dims: Tensor, hidden: Tensor, top: Tensor) -> Model:
        """A model of `config` with the chosen weights of this one."""
        model = rebuilt(self, config)
        assert isinstance(model, NeuMf)
        d = self.config.embedding_dim
        change = selector(torch.cat((dims, dims + d)), 2 * d)
        if model.users is not None and self.users is not None:
            model.users.copy_(self.users @ change)
        model.items.map_(self.items, change)
        if model.about is not None and self.about is not None:
            copy_features(self.about, model.about, change)
        if model.past is not None and self.past is not None:
            copy_items(self.past.items, model.past.items, change)
            model.past.recency.copy_(self.past.recency[: config.max_history])
        model.from_user.weight.copy_(self.from_user.weight[hidden][:, dims])
        model.from_user.bias.copy_(self.from_user.bias[hidden])
        model.from_item.weight.copy_(self.from_item.weight[hidden][:, dims])
        model.top.weight.copy_(self.top.weight[top][:, hidden])
        model.top.bias.copy_(self.top.bias[top])
        model.output.weight.copy_(self.output.weight[:, torch.cat((dims, top + d))])
        model.output.bias.copy_(self.output.bias)
        return model.train(self.training)


def _used(config: Config, features: Features | None) -> Features | None:
    return features if config.features and feature_groups(features, config.without) else None


def _norms(table: FeatureTable) -> dict[str, float]:
    return {name: float(table.weight[table.rows(name)].norm()) for name in table.groups}


def build(config: Config, catalogue: Catalogue) -> Model:
    check_features("model.neumf", config.features and catalogue.user_features is None, catalogue.item_features)
    return factored(NeuMf(config, catalogue), config.ranks)

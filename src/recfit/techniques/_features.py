"""How much a feature column matters: ways to judge the units of the axis `features`, float [units], higher is better."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from itertools import chain

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from recfit.models import Catalogue, Featured, as_module, copied
from recfit.models._layers import FeatureTable, feature_groups
from recfit.techniques import Context
from recfit.training import batch_losses, held_out_losses
from recfit.types import Features, IntArray, Rows

GATE_STEPS = 200
GATE_RATE = 0.02
PENALTY = 0.01


def permutation(model: Featured, context: Context) -> Tensor:
    """How much the loss of held-out events rises when a feature's codes are shuffled over its users and items (Breiman 2001).
    Of training events it would tell how much was learned by heart, most from features with many codes."""
    shuffled = (copied(model, catalogue=_shuffled(model.catalogue, name)) for name in model.feature_names())
    before, *after = held_out_losses(chain([model], shuffled), context.split, context.fit_of(model))
    return torch.tensor(after) - before


def mutual_information(model: Featured, context: Context) -> Tensor:
    """I(code; item) over the training events for users' features, I(code; user) for items', in nats, less what shuffled
    codes have: of finite data, the more codes the more."""
    true, chance = (_information(catalogue, context) for catalogue in (model.catalogue, _all_shuffled(model)))
    return torch.tensor([true.get(name, 0.0) - chance.get(name, 0.0) for name in model.feature_names()])


def gates(model: Featured, context: Context) -> Tensor:
    """The norms of the features' vectors after each was given a factor that is trained with a penalty on these norms
    (group lasso: Yuan and Lin 2006). All other weights are held: where they could grow, a factor would tell nothing."""
    copy = as_module(copied(model)).requires_grad_(False)
    norms = model.importance("features")
    open_ = nn.Parameter(torch.ones_like(norms))
    for table in (part for part in list(copy.modules()) if isinstance(part, FeatureTable)):
        rows = torch.zeros(len(table.weight), dtype=torch.long)
        for name in table.groups:
            rows[table.rows(name)] = model.feature_names().index(name)
        parametrize.register_parametrization(table, "weight", _Gated(open_, rows))
    optimizer = torch.optim.Adam([open_], lr=GATE_RATE)
    for loss in batch_losses(copy, context.split, context.fit_of(model), GATE_STEPS):  # type: ignore[arg-type]
        optimizer.zero_grad()
        (loss + PENALTY * (norms * open_.abs()).sum()).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return norms * open_.detach().abs()


WAYS: Mapping[str, Callable[[Featured, Context], Tensor]] = {
    "permutation": permutation,
    "mutual_information": mutual_information,
    "gates": gates,
}


class _Gated(nn.Module):
    """Rows of a table times their gates."""

    def __init__(self, gates: nn.Parameter, rows: Tensor) -> None:
        super().__init__()
        self.gates, self.of = gates, rows

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.gates[self.of][:, None]


def _all_shuffled(model: Featured) -> Catalogue:
    catalogue = model.catalogue
    for name in model.feature_names():
        catalogue = _shuffled(catalogue, name)
    return catalogue


def _shuffled(catalogue: Catalogue, name: str) -> Catalogue:
    """`catalogue` with the codes of one feature in another order; those of one user or item stay together."""
    users, items = (_mixed(side, name) for side in (catalogue.user_features, catalogue.item_features))
    return replace(catalogue, user_features=users, item_features=items)


def _mixed(features: Features | None, name: str) -> Features | None:
    columns = feature_groups(features).get(name, [])
    if features is None or not columns:
        return features
    codes = features.codes.copy()
    codes[:, columns] = np.random.default_rng(0).permutation(codes[:, columns])
    return replace(features, codes=codes)


def _information(catalogue: Catalogue, context: Context) -> dict[str, float]:
    """The information of each feature, summed over its columns and sides."""
    found: dict[str, float] = {}
    for name, codes, other in _columns(catalogue, context):
        known = codes > 0
        found[name] = found.get(name, 0.0) + known.mean() * information(codes[known], other[known])
    return found


def _columns(catalogue: Catalogue, context: Context) -> Iterator[tuple[str, Rows, Rows]]:
    """The codes of every feature column at the training events, and the row of the other side."""
    events = context.split.train
    sides = ((catalogue.user_features, events.user, events.item), (catalogue.item_features, events.item, events.user))
    for features, own, other in sides:
        if features is not None:
            for name, columns in feature_groups(features).items():
                yield from ((name, features.codes[own, column], other) for column in columns)


def information(left: Rows, right: Rows) -> float:
    """The mutual information of two lists of numbers, in nats: sum of p(x, y) log(p(x, y) / (p(x) p(y)))."""
    if not len(left):
        return 0.0
    width = int(right.max()) + 1
    pairs, counts = np.unique(left.astype(np.int64) * width + right, return_counts=True)
    joint, alone = counts / len(left), [np.bincount(side) / len(left) for side in (left, right)]
    apart: IntArray = pairs // width
    return float((joint * np.log(joint / (alone[0][apart] * alone[1][pairs % width]))).sum())

"""Checks that every family's `importance` and `shrink` share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from recfit.models import Model
from recfit.types import ConfigError

C = TypeVar("C", bound=Any)
ABSENT = -1  # fills the rows of layers that have fewer units than the widest


def no_axis(model: Model, axis: str) -> ConfigError:
    """The error for an axis that `model` does not have."""
    return ConfigError(f"{model.kind} has no axis {axis!r}; it has: {', '.join(model.axes()) or 'none'}")


def check_keep(model: Model, axis: str, keep: Tensor) -> None:
    """Raise ConfigError unless `keep` names at least one unit of `axis`, each once, ascending."""
    if axis not in model.axes():
        raise no_axis(model, axis)
    size = model.axes()[axis]
    for units in [row[row != ABSENT].tolist() for row in keep] if keep.ndim > 1 else [keep.tolist()]:
        if not units or units != sorted(set(units)) or units[0] < 0 or units[-1] >= size:
            raise ConfigError(f"keep = {units} of {model.kind}.{axis}; give ascending units out of 0 to {size - 1}")


def narrowed(config: C, **sizes: int) -> C:
    """`config` with narrower item vectors; of `widths`, which are trained to do without the rest, those that are left."""
    (size,) = sizes.values()
    widths = tuple(width for width in config.widths if width < size)
    return replace(config, **sizes, widths=widths)


def newest_kept(keep: Tensor, axis: str = "history_length") -> int:
    """How many positions `keep` leaves of an axis whose unit i is the i-th newest event."""
    if keep.tolist() != list(range(len(keep))):
        raise ConfigError(f"keep = {keep.tolist()} of {axis}; only the newest can stay: 0, 1, ...")
    return len(keep)


def recency(length: int) -> Tensor:
    """The importance of events that lie so far back: falls with the distance from the newest, float [length]."""
    return 1.0 / torch.arange(1, length + 1)


def own_units(keep: Tensor, sizes: Sequence[int]) -> list[Tensor]:
    """The units out of `keep`, [k] or [layers, k], that each layer has: those below its number in `sizes`."""
    rows = zip(keep.expand(len(sizes), -1), sizes, strict=True)
    return [row[(row != ABSENT) & (row < size)] for row, size in rows]


def strongest(model: Model, axis: str, count: int, *, together: bool = False) -> Tensor:
    """The `count` most important units of `axis`, where each layer has its own of every layer or, `together`, of all layers:
    what `shrink` takes as `keep`."""
    scores = model.importance(axis)
    ranked = _across(scores).flatten() if together else scores
    chosen = torch.zeros_like(ranked, dtype=torch.bool).scatter(-1, ranked.topk(count).indices, True)
    kept = chosen.view_as(scores) & (scores >= 0)
    if kept.ndim == 1:
        return kept.nonzero()[:, 0]
    return pad_sequence([row.nonzero()[:, 0] for row in kept], batch_first=True, padding_value=ABSENT)


def _across(scores: Tensor) -> Tensor:
    """Importances [layers, size] that can be compared between layers: divided by the L2 norm of their layer's (Molchanov et
    al., ICLR 2017, arXiv 1611.06440); the best of each layer, which needs one, is above all."""
    norms: Tensor = scores.clamp(min=0).norm(dim=1, keepdim=True).clamp(min=1e-30)
    return (scores / norms).scatter(1, scores.argmax(1, keepdim=True), torch.inf)

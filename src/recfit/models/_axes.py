"""Checks that every family's `importance` and `shrink` share."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from recfit.models import Model
from recfit.types import ConfigError

C = TypeVar("C", bound=Any)


def no_axis(model: Model, axis: str) -> ConfigError:
    """The error for an axis that `model` does not have."""
    return ConfigError(f"{model.kind} has no axis {axis!r}; it has: {', '.join(model.axes()) or 'none'}")


def check_keep(model: Model, axis: str, keep: Tensor) -> None:
    """Raise ConfigError unless `keep` names at least one unit of `axis`, each once, ascending."""
    if axis not in model.axes():
        raise no_axis(model, axis)
    size = model.axes()[axis]
    for units in (keep if keep.ndim > 1 else keep[None]).tolist():
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


def strongest(model: Model, axis: str, count: int) -> Tensor:
    """The `count` most important units of `axis`, of every layer where each has its own: what `shrink` takes as `keep`."""
    return torch.topk(model.importance(axis), count).indices.sort().values

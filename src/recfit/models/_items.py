"""Fewer items: the same model over a part of its catalogue."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from recfit.models import Model, as_module, rebuilt
from recfit.models._item_item import ItemItem
from recfit.types import ConfigError, Rows


def with_items(model: Model, rows: Rows) -> Model:
    """A new, smaller model that knows the items at `rows`, ascending, and answers about them as before."""
    small = rebuilt(model, model.config, model.catalogue.only(rows))
    kept = torch.from_numpy(rows.astype(np.int64))
    if isinstance(model, ItemItem) and isinstance(small, ItemItem):
        small.take(model, kept)
    else:
        wanted = as_module(small).state_dict()
        found = as_module(model).state_dict()
        weights = {name: _kept(model, name, value, wanted[name].shape, kept) for name, value in found.items()}
        as_module(small).load_state_dict(weights)
    as_module(small).train(as_module(model).training)
    return small


def _kept(model: Model, name: str, value: Tensor, shape: torch.Size, rows: Tensor) -> Tensor:
    """`value` along each axis that counts items: one entry an item, or one more, which is the padding's, in front."""
    items = model.catalogue.n_items
    entries = {items: rows, items + 1: torch.cat((torch.zeros(1, dtype=torch.long), rows + 1))}
    for axis, (size, wanted) in enumerate(zip(value.shape, shape, strict=True)):
        if size != wanted:
            if len(entries.get(size, ())) != wanted:
                raise ConfigError(
                    f"{model.kind}.{name} has {size} entries for {items} items and {wanted} for {len(rows)}; "
                    "its items can't be told apart, keep all of them"
                )
            value = value.index_select(axis, entries[size])
    return value

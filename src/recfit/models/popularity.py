"""Items by how often they were chosen: the constant 1 against a one-column table of counts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from recfit.models import Catalogue, Model
from recfit.models._axes import no_axis
from recfit.types import Split


@dataclass(frozen=True)
class Config:
    """Nothing to set."""


class Popularity(nn.Module):
    kind: ClassVar[str] = "popularity"
    inputs = ("history",)
    max_history = 1
    counts: Tensor

    def __init__(self, config: Config, catalogue: Catalogue) -> None:
        super().__init__()
        self.config, self.catalogue = config, catalogue
        self.register_buffer("counts", torch.zeros(catalogue.n_items, 1))

    def solve(self, split: Split) -> None:
        items = torch.from_numpy(split.train.item).long()
        self.counts.copy_(torch.bincount(items, minlength=self.catalogue.n_items)[:, None])

    def encode(self, history: Tensor) -> Tensor:
        # The history only tells how many requests there are.
        return torch.ones(history.shape[0], 1)

    def item_vectors(self) -> Tensor:
        return self.counts

    def axes(self) -> Mapping[str, int]:
        return {}

    def importance(self, axis: str) -> Tensor:
        raise no_axis(self, axis)

    def shrink(self, axis: str, keep: Tensor) -> Model:
        raise no_axis(self, axis)


def build(config: Config, catalogue: Catalogue) -> Model:
    return Popularity(config, catalogue)

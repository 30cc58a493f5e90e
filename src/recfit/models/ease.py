"""EASE: the linear item-item model with a closed form (Steck, WWW 2019, arXiv 1905.03375)."""

from __future__ import annotations

from dataclasses import dataclass

import scipy.sparse as sp
import torch

from recfit.models import Catalogue, Model
from recfit.models._item_item import ItemItem
from recfit.options import check_ranges


@dataclass(frozen=True)
class Config:
    """`l2` is the ridge penalty; `neighbours` > 0 stores only so many weights of each item, the strongest."""

    l2: float = 300.0
    neighbours: int = 0
    max_history: int = 1000

    def __post_init__(self) -> None:
        check_ranges("model.ease", self, l2=(1e-3, 1e9), neighbours=(0, 1e6), max_history=(1, 1e5))


def solve(model: ItemItem, chosen: sp.csr_matrix) -> None:
    """`B = I - P / diag(P)` with `P = (X'X + l2 I)^-1`, zero diagonal."""
    gram = torch.from_numpy((chosen.T @ chosen).toarray())
    gram.diagonal().add_(model.config.l2)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(gram))
    weights = inverse / -inverse.diagonal()
    weights.fill_diagonal_(0.0)
    model.keep(0, weights)


def build(config: Config, catalogue: Catalogue) -> Model:
    return ItemItem("ease", config, catalogue, solve)

"""Item-based nearest neighbours: a chosen item votes for similar ones (Deshpande and Karypis, TOIS 2004)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
import torch

from recfit.models import Catalogue, Model
from recfit.models._item_item import ROWS_AT_ONCE, ItemItem
from recfit.options import check_choice, check_ranges


@dataclass(frozen=True)
class Config:
    """`similarity` is `cosine` or `tfidf` (users who chose much count less); `shrinkage` damps rare pairs."""

    neighbours: int = 100
    similarity: str = "cosine"
    shrinkage: float = 10.0
    max_history: int = 1000

    def __post_init__(self) -> None:
        check_choice("model.itemknn.similarity", self.similarity, ("cosine", "tfidf"))
        check_ranges("model.itemknn", self, neighbours=(1, 1e6), shrinkage=(0, 1e9), max_history=(1, 1e5))


def solve(model: ItemItem, chosen: sp.csr_matrix) -> None:
    """`x_i . x_j / (|x_i| |x_j| + shrinkage)`, zero diagonal, block of rows by block of rows."""
    items = _weighted(chosen, model.config.similarity).T.tocsr()
    norms = np.sqrt(np.asarray(items.multiply(items).sum(axis=1)).ravel())
    for start in range(0, items.shape[0], ROWS_AT_ONCE):
        stop = min(start + ROWS_AT_ONCE, items.shape[0])
        products = (items[start:stop] @ items.T).toarray()
        products /= norms[start:stop, None] * norms[None] + model.config.shrinkage + 1e-9
        products[np.arange(stop - start), np.arange(start, stop)] = 0.0
        model.keep(start, torch.from_numpy(products.astype(np.float32)))


def _weighted(chosen: sp.csr_matrix, similarity: str) -> sp.csr_matrix:
    """For tfidf: a user who chose much says little about each choice, log((1 + n_items) / (1 + n_chosen)) + 1."""
    if similarity == "cosine":
        return chosen
    sizes = np.asarray(chosen.sum(axis=1)).ravel()
    rarity = np.log((1 + chosen.shape[1]) / (1 + sizes)) + 1
    weighted: sp.csr_matrix = sp.diags(rarity.astype(np.float32)) @ chosen
    return weighted


def build(config: Config, catalogue: Catalogue) -> Model:
    return ItemItem("itemknn", config, catalogue, solve)

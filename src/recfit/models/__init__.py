"""Recommender models: one file a family, the file's name is its `kind`.

A family's file offers

* `Config`: a frozen dataclass of its settings;
* `build(config, catalogue) -> Model`: a new, untrained torch module.

Every model is an `Encoder` (a request becomes a vector, items are scored by dot product with the rows of a
table) or a `Ranker` (a request and candidate items become scores). Tokens are item rows + 1; 0 pads on the left.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor

from recfit.types import Features, Split


@dataclass(frozen=True)
class Catalogue:
    """What a model must know of the data to be built: sizes and features, no events."""

    n_users: int
    n_items: int
    user_features: Features | None = None
    item_features: Features | None = None


class Model(Protocol):
    """What both kinds share. Implemented by `torch.nn.Module`s; `config` rebuilds the module, weights go to safetensors.

    `inputs` names what `encode`/`score` takes, out of `history` (tokens int64 [B, L]), `user` (user row + 1,
    0 unknown, int64 [B]) and `user_features` (codes int64 [B, F]).
    """

    kind: ClassVar[str]
    config: Any
    catalogue: Catalogue
    inputs: tuple[str, ...]

    def axes(self) -> Mapping[str, int]:
        """The sizes that `shrink` can reduce, by axis name (`layers, heads, ffn, embedding_dim, ...`)."""
        ...

    def importance(self, axis: str) -> Tensor:
        """One non-negative number for each unit of `axis` (L2 norm of the weights that belong to it), float [size]."""
        ...

    def shrink(self, axis: str, keep: Tensor) -> Model:
        """A new, really smaller model: `keep` are the unit indices (int64, ascending) of `axis` that stay."""
        ...


@runtime_checkable
class Encoder(Protocol):
    """A request becomes a vector [B, d]; item i scores `vector @ item_vectors()[i]`."""

    def encode(self, **inputs: Tensor) -> Tensor: ...

    def item_vectors(self) -> Tensor:
        """float [n_items, d], in row order."""
        ...


@runtime_checkable
class Tied(Protocol):
    """An encoder whose input embeddings are the rows of its item table, so that a bundle stores them once."""

    def encode_vectors(self, history: Tensor, vectors: Tensor) -> Tensor:
        """Like `encode`, with the table's rows of `history` given: tokens [B, L], float [B, L, d] (zeros where 0)."""
        ...


@runtime_checkable
class Causal(Protocol):
    """An encoder that can answer after every prefix at once; training uses it."""

    def states(self, history: Tensor) -> Tensor:
        """Vectors [B, L, d]: position t answers the request whose history is `history[:, :t + 1]`."""
        ...


@runtime_checkable
class Ranker(Protocol):
    """A request and candidates become scores."""

    def score(self, items: Tensor, **inputs: Tensor) -> Tensor:
        """Candidate tokens int64 [B, C] -> float [B, C]."""
        ...


@runtime_checkable
class Solved(Protocol):
    """A model that is computed rather than trained by gradient steps."""

    def solve(self, split: Split) -> None: ...

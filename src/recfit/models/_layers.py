"""Layers that several families share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recfit.types import ConfigError, Features

if TYPE_CHECKING:
    from recfit.models._codes import CodedTable

M = TypeVar("M", bound=nn.Module)


def embed(tokens: Tensor, table: Tensor) -> Tensor:
    """Rows of `table` [N, d] for tokens of any shape; zeros for the padding token 0."""
    rows = F.embedding((tokens - 1).clamp(min=0), table)
    return rows * (tokens > 0)[..., None].to(rows.dtype)


class Dropout(nn.Module):
    """Dropout at a rate rounded to 1/256: one random byte a number, several times faster on a CPU than torch's."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.limit = round(rate * 256)

    def forward(self, hidden: Tensor) -> Tensor:
        if not self.training or not self.limit:
            return hidden
        words = torch.empty((hidden.numel() + 7) // 8, dtype=torch.int64).random_(-(2**63), None)
        dropped = words.view(torch.uint8)[: hidden.numel()].view(hidden.shape) < self.limit
        return (hidden * (256 / (256 - self.limit))).masked_fill(dropped, 0.0)


class LowRank(nn.Module):
    """A linear layer whose matrix [out, in] has rank r, as two: [in] -> [r] -> [out]."""

    def __init__(self, layer: nn.Linear, rank: int) -> None:
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.inner = nn.Linear(layer.in_features, rank, bias=False)
        self.outer = nn.Linear(rank, layer.out_features, bias=layer.bias is not None)

    def forward(self, hidden: Tensor) -> Tensor:
        answer: Tensor = self.outer(self.inner(hidden))
        return answer

    @property
    def weight(self) -> Tensor:
        """The matrix of both, [out, in]."""
        return self.outer.weight @ self.inner.weight


def factors(layer: nn.Module) -> list[Tensor]:
    """The matrices whose product is that of a linear layer, one or two, the one that is applied last first."""
    if isinstance(layer, LowRank):
        return [layer.outer.weight, layer.inner.weight]
    return [layer.get_parameter("weight")]


def linear_layers(module: nn.Module) -> dict[str, nn.Linear]:
    """The linear layers by their paths in `module`."""
    return {path: layer for path, layer in module.named_modules() if isinstance(layer, nn.Linear)}


def factored(module: M, ranks: Mapping[str, int]) -> M:
    """`module` after the linear layers at the paths in `ranks` became layers of these ranks, untrained."""
    for path, rank in ranks.items():
        layers = linear_layers(module)
        if path not in layers or rank < 1:
            raise ConfigError(f"ranks has {path!r} = {rank!r}; give ranks from 1 to layers out of: {', '.join(layers)}")
        parent, _, name = path.rpartition(".")
        setattr(module.get_submodule(parent), name, LowRank(layers[path], rank))
    return module


def feature_groups(features: Features | None, without: Sequence[str] = ()) -> dict[str, list[int]]:
    """Columns by name, less those in `without`; `genre.0` and `genre.1` share a vocabulary and count as `genre`."""
    groups: dict[str, list[int]] = {}
    for column, name in enumerate(features.names if features else ()):
        groups.setdefault(name.split(".")[0], []).append(column)
    return {name: columns for name, columns in groups.items() if name not in without}


class FeatureTable(nn.Module):
    """The sum of one learned vector for each known code: codes int [..., F] -> float [..., d]."""

    columns: Tensor
    offsets: Tensor

    def __init__(self, features: Features, without: Sequence[str], dim: int) -> None:
        super().__init__()
        self.groups = feature_groups(features, without)
        self.start: dict[str, int] = {}
        columns, offsets, rows = [], [], 0
        for name, group in self.groups.items():
            self.start[name] = rows
            columns += group
            offsets += [rows] * len(group)
            rows += max(features.sizes[column] for column in group) - 1
        self.register_buffer("columns", torch.tensor(columns), persistent=False)
        self.register_buffer("offsets", torch.tensor(offsets), persistent=False)
        self.weight = nn.Parameter(torch.randn(rows, dim) * 0.02)

    def sums(self, codes: Tensor) -> Tensor:
        """The vectors of these codes, added up."""
        chosen = codes[..., self.columns].long()
        return embed(torch.where(chosen > 0, chosen + self.offsets, 0), self.weight).sum(-2)

    def rows(self, name: str) -> slice:
        """Where the vectors of one group lie in `weight`."""
        later = [start for start in self.start.values() if start > self.start[name]]
        return slice(self.start[name], min(later, default=len(self.weight)))


class ItemTable(nn.Module):
    """One learned vector for each item, drawn with scale `std`, plus those of its features if `features` is given.

    With `rank` > 0 the vectors have so many numbers, and `basis` [rank, dim] leads to the `dim` of the model and back: a
    table of low rank. With `limit` set only that many leading numbers of the vectors count, the others are zero.
    """

    codes: Tensor
    basis: nn.Parameter | None

    def __init__(
        self,
        n_items: int,
        dim: int,
        std: float,
        features: Features | None = None,
        without: Sequence[str] = (),
        rank: int = 0,
    ):
        super().__init__()
        width = rank or dim
        self.limit: int | None = None
        self.weight = nn.Parameter(torch.randn(n_items, width) * std)
        self.basis = nn.Parameter(torch.eye(dim)[:rank]) if rank else None
        known = features and feature_groups(features, without)
        self.features = FeatureTable(features, without, width) if features and known else None
        if features is not None:
            self.register_buffer("codes", torch.from_numpy(features.codes), persistent=False)

    def vectors(self) -> Tensor:
        """float [n_items, d], d the rank where there is one."""
        return self.front(self.weight if self.features is None else self.weight + self.features.sums(self.codes))

    def lookup(self, tokens: Tensor) -> Tensor:
        """The vectors of tokens of any shape; zeros where 0."""
        vectors = embed(tokens, self.weight)
        if self.features is not None:
            described = self.features.sums(F.embedding((tokens - 1).clamp(min=0), self.codes))
            vectors = vectors + described * (tokens > 0)[..., None].to(vectors.dtype)
        return self.front(vectors)

    def front(self, vectors: Tensor) -> Tensor:
        """`vectors` [..., width] with what lies beyond `limit` zero."""
        if self.limit is None:
            return vectors
        return F.pad(vectors[..., : self.limit], (0, vectors.shape[-1] - self.limit))

    def widen(self, vectors: Tensor) -> Tensor:
        """Vectors of the table as the model reads them, [..., dim]."""
        return vectors if self.basis is None else vectors @ self.basis

    def narrow(self, hidden: Tensor) -> Tensor:
        """What meets the table's vectors, of what would meet the widened ones: `hidden . widen(v) = narrow(hidden) . v`."""
        return hidden if self.basis is None else hidden @ self.basis.T

    @property
    def width(self) -> int:
        """Numbers of a vector."""
        return self.weight.shape[1]

    def axes(self) -> dict[str, int]:
        """The axes of the vectors; the model's own width no longer is one when the table has a rank of its own."""
        return ({"embedding_dim": self.width} if self.basis is None else {}) | {"table_dim": self.width}

    def map_(self, source: ItemTable, change: Tensor, keep: Tensor | None = None) -> None:
        """Take the vectors of `source` times `change` [d_source, d]; features by name, those it lacks stay out.

        A table with a basis takes the vectors' columns `keep` (None: all), and the change into its basis.
        """
        if self.basis is None:
            self.take_(source, change)
            return
        keep = torch.arange(source.width) if keep is None else keep
        self.take_(source, selector(keep, source.width), source.widen(torch.eye(source.width))[keep] @ change)

    def take_(self, source: ItemTable, change: Tensor, basis: Tensor | None = None) -> None:
        """Take the vectors of `source` times `change` [width_source, width], and a basis [width, dim] where there is one."""
        self.weight.copy_(source.weight @ change)
        if self.features is not None and source.features is not None:
            copy_features(source.features, self.features, change)
        if self.basis is not None and basis is not None:
            self.basis.copy_(basis)


def copy_features(source: FeatureTable, target: FeatureTable, change: Tensor) -> None:
    """Copy the vectors of the groups that `target` still has, times `change` [d_source, d]."""
    for name in target.groups:
        target.weight[target.rows(name)] = source.weight[source.rows(name)] @ change


def decays(pools: int, length: int) -> Tensor:
    """`exp(-distance / pace)` normalized to sum 1, pace 1, 10, 100, ..., float [pools, length]."""
    pace = 10.0 ** torch.arange(pools)
    weights = torch.exp(-torch.arange(length)[None] / pace[:, None])
    return weights / weights.sum(1, keepdim=True)


class Past(nn.Module):
    """The newest events as one vector: tokens [B, L] -> [B, d], sums of the vectors of `items`. Each event weighs by how
    far back it lies."""

    def __init__(self, items: ItemTable | CodedTable, length: int) -> None:
        super().__init__()
        self.items = items
        self.recency = nn.Parameter(decays(2, length)[1])

    def forward(self, history: Tensor) -> Tensor:
        back = history.shape[1] - 1 - torch.arange(history.shape[1])  # counting down exports to wrong ONNX
        return self.recency[back] @ self.items.lookup(history)


def some_unknown(user: Tensor, share: float) -> Tensor:
    """`user` rows + 1, a random `share` of them 0: so a model learns what the unknown user is like."""
    return user * (torch.rand(user.shape) >= share)


def user_tables(users: Tensor | None, past: Past | None, about: FeatureTable | None) -> list[Tensor]:
    """The tables [n, d] that the vector of a request is summed from, of those that there are."""
    return [
        *([] if users is None else [users]),
        *([] if past is None else [past.items.vectors()]),
        *([] if about is None else [about.weight]),
    ]


def selector(keep: Tensor, size: int) -> Tensor:
    """The matrix [size, len(keep)] that keeps the columns `keep` of what is multiplied by it."""
    return torch.eye(size)[:, keep]


def check_features(where: str, wanted: bool, features: Features | None) -> None:
    """Raise ConfigError where features are asked for and the data has none."""
    if wanted and features is None:
        raise ConfigError(f"{where}.features = true, but the data has none; add feature columns or set it to false")

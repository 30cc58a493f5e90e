"""Layers that several families share."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recfit.types import ConfigError, Features


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
    """One learned vector for each item, drawn with scale `std`, plus those of its features if `features` is given."""

    codes: Tensor

    def __init__(
        self, n_items: int, dim: int, std: float, features: Features | None = None, without: Sequence[str] = ()
    ):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(n_items, dim) * std)
        self.features = FeatureTable(features, without, dim) if features and feature_groups(features, without) else None
        if features is not None:
            self.register_buffer("codes", torch.from_numpy(features.codes), persistent=False)

    def vectors(self) -> Tensor:
        """float [n_items, d]."""
        return self.weight if self.features is None else self.weight + self.features.sums(self.codes)

    def lookup(self, tokens: Tensor) -> Tensor:
        """The vectors of tokens of any shape; zeros where 0."""
        vectors = embed(tokens, self.weight)
        if self.features is None:
            return vectors
        described = self.features.sums(F.embedding((tokens - 1).clamp(min=0), self.codes))
        return vectors + described * (tokens > 0)[..., None].to(vectors.dtype)

    def map_(self, source: ItemTable, change: Tensor) -> None:
        """Take the vectors of `source` times `change` [d_source, d]; features by name, those it lacks stay out."""
        self.weight.copy_(source.weight @ change)
        if self.features is not None and source.features is not None:
            copy_features(source.features, self.features, change)


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
    """The newest events as one vector: tokens [B, L] -> [B, width]. Each event weighs by how far back it lies."""

    def __init__(self, n_items: int, width: int, length: int) -> None:
        super().__init__()
        self.items = ItemTable(n_items, width, 0.05)
        self.recency = nn.Parameter(decays(2, length)[1])

    def forward(self, history: Tensor) -> Tensor:
        back = history.shape[1] - 1 - torch.arange(history.shape[1])  # counting down exports to wrong ONNX
        return self.recency[back] @ self.items.lookup(history)


def selector(keep: Tensor, size: int) -> Tensor:
    """The matrix [size, len(keep)] that keeps the columns `keep` of what is multiplied by it."""
    return torch.eye(size)[:, keep]


def check_features(where: str, wanted: bool, features: Features | None) -> None:
    """Raise ConfigError where features are asked for and the data has none."""
    if wanted and features is None:
        raise ConfigError(f"{where}.features = true, but the data has none; add feature columns or set it to false")

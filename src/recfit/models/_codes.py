"""An item table of trained codes: an item is one sub-id for each part of its vector, and what is learned are the
vectors of the sub-ids, which items share (RecJPQ: Petrov and Macdonald, WSDM 2024, arXiv 2312.06165)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recfit.models._layers import ItemTable
from recfit.options import check_ranges
from recfit.types import ConfigError, Features, Unsupported


class CodedTable(nn.Module):
    """`parts` sub-ids an item, drawn at random as in the paper's control, each a learned vector out of `codes`. With `rank` > 0
    they make vectors of so many numbers, which a learned `basis` [rank, dim] widens (see `ItemTable`)."""

    sub_ids: Tensor
    basis: nn.Parameter | None

    def __init__(self, n_items: int, dim: int, std: float, parts: int, codes: int, rank: int = 0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(parts, codes, (rank or dim) // parts) * std)
        self.basis = nn.Parameter(torch.eye(dim)[:rank]) if rank else None
        self.register_buffer("sub_ids", torch.randint(codes, (n_items, parts)).to(torch.uint8))

    def vectors(self) -> Tensor:
        """float [n_items, d]."""
        return self._joined(self.sub_ids)

    def lookup(self, tokens: Tensor) -> Tensor:
        """The vectors of tokens of any shape; zeros where 0."""
        vectors = self._joined(F.embedding((tokens - 1).clamp(min=0), self.sub_ids))
        return vectors * (tokens > 0)[..., None].to(vectors.dtype)

    def _joined(self, sub_ids: Tensor) -> Tensor:
        parts, codes, _ = self.weight.shape
        places = sub_ids.long() + codes * torch.arange(parts)
        return F.embedding(places, self.books().flatten(0, 1)).flatten(-2)

    def books(self) -> Tensor:
        """float [parts, codes, width]; but for training, numbers that the half precision of a stored codebook holds."""
        return self.weight if self.training else self.weight.half().float()

    def widen(self, vectors: Tensor) -> Tensor:
        """Vectors of the table as the model reads them, [..., dim]."""
        return vectors if self.basis is None else vectors @ self.basis

    def narrow(self, hidden: Tensor) -> Tensor:
        """What meets the table's vectors, of what the model gives."""
        return hidden if self.basis is None else hidden @ self.basis.T

    def front(self, vectors: Tensor) -> Tensor:
        """Vectors as they are: codes are never trained to do without a part."""
        return vectors

    @property
    def width(self) -> int:
        """Numbers of a vector."""
        return self.weight.shape[0] * self.weight.shape[2]

    def axes(self) -> dict[str, int]:
        """None: to cut or to turn the space would mix the parts."""
        return {}


@torch.no_grad()
def copy_items(
    source: ItemTable | CodedTable, target: ItemTable | CodedTable, change: Tensor, keep: Tensor | None = None
) -> None:
    """`target.map_(source, change, keep)`. Vectors of codes are copied as they are."""
    if isinstance(source, ItemTable) and isinstance(target, ItemTable):
        target.map_(source, change, keep)
    elif (
        isinstance(source, CodedTable)
        and isinstance(target, CodedTable)
        and torch.equal(change, torch.eye(len(change)))
    ):
        target.load_state_dict(source.state_dict())
    else:
        raise Unsupported("the space of trained codes can be neither cut nor turned; reduce before the codes are made")


def codes_of(items: ItemTable | CodedTable) -> tuple[Tensor, Tensor] | None:
    """What `Codable.item_codes` gives of a model with the table `items`."""
    return (items.sub_ids, items.books()) if isinstance(items, CodedTable) else None


def item_table(n_items: int, config: Any, std: float, described: Features | None) -> ItemTable | CodedTable:
    """The table that `config` (of a family with `parts` and `table_dim`) asks for; `described` are the features it adds."""
    if config.parts:
        return CodedTable(n_items, config.embedding_dim, std, config.parts, config.codes, config.table_dim)
    return ItemTable(n_items, config.embedding_dim, std, described, config.without, config.table_dim)


def check_table(where: str, config: Any, alone: Sequence[str] = ("features", "widths")) -> None:
    """Raise ConfigError for a table that cannot be: `table_dim` and `widths` beyond the vectors, `parts` that don't divide
    them, or codes with settings that they stand `alone` without: what they cannot add to or cut."""
    check_ranges(where, config, table_dim=(0, config.embedding_dim), parts=(0, 8192), codes=(2, 256))
    whole = config.table_dim or config.embedding_dim
    if wrong := [width for width in config.widths if not 1 <= width < whole]:
        raise ConfigError(f"{where}.widths has {wrong[0]}; give widths from 1 to {whole - 1}")
    if not config.parts:
        return
    if whole % config.parts:
        name = "table_dim" if config.table_dim else "embedding_dim"
        raise ConfigError(f"{where}.parts = {config.parts} does not divide {name} = {whole}")
    for name in alone:
        if value := getattr(config, name):
            raise ConfigError(
                f"{where}.parts = {config.parts} with {name} = {value}; codes hold whole vectors, leave it out"
            )

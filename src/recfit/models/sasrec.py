"""SASRec: a causal Transformer over the history (Kang and McAuley, ICDM 2018, arXiv 1808.09781), trained here with the
full softmax (Klenitskiy and Vasilev, RecSys 2023, arXiv 2309.07602).

Positions enter as a learned bias of each head on each distance (Raffel et al., arXiv 1910.10683), so that an answer
depends on how far back each event lies and on nothing else: padding, windows and prefixes all agree.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from operator import matmul
from typing import ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from recfit.models import Catalogue, Model, rebuilt
from recfit.models._axes import ABSENT, check_keep, narrowed, newest_kept, no_axis, own_units, recency
from recfit.models._codes import check_table, codes_of, copy_items, item_table
from recfit.models._kernels import MASKED, attend, rms_norm, shifted, trailing
from recfit.models._layers import Dropout, check_features, factored, factors, selector
from recfit.options import check_ranges
from recfit.types import ConfigError

PER_LAYER = ("heads", "ffn")
LAID_OUT = 4_000_000  # pairs of positions whose biases a graph lays out when it is opened; of more, in every request


@dataclass(frozen=True)
class Config:
    """`heads` and `ffn` units of each layer, one number for all or one for each; `head_dim` 0 means `embedding_dim` / the most
    heads of a layer; `max_history` events are read.

    Each layer but the first looks at the newest `window` positions before each (0: at all; Beltagy et al., arXiv 2004.05150),
    so that the first computes no more than those that a request needs.
    `features` adds the vectors of the item's features to its own, less the columns in `without`. With `parts` an item is
    that many sub-ids out of `codes` each (see `_codes`). `table_dim` > 0 stores item vectors of so many numbers, which one
    matrix widens; `ranks` makes linear layers low-rank, by their paths; each of `widths` leading numbers of the item
    vectors is trained to do without the others.
    """

    layers: int = 2
    embedding_dim: int = 64
    heads: int | tuple[int, ...] = 2
    ffn: int | tuple[int, ...] = 256
    max_history: int = 100
    dropout: float = 0.2
    head_dim: int = 0
    features: bool = False
    without: tuple[str, ...] = ()
    parts: int = 0
    codes: int = 256
    table_dim: int = 0
    ranks: Mapping[str, int] = field(default_factory=dict)
    widths: tuple[int, ...] = ()
    window: int = 0

    def __post_init__(self) -> None:
        check_ranges("model.sasrec", self, layers=(1, 64), embedding_dim=(1, 8192), heads=(1, 256), ffn=(1, 65536))
        check_ranges("model.sasrec", self, max_history=(1, 1e5), dropout=(0, 0.95), head_dim=(0, 4096))
        check_ranges("model.sasrec", self, window=(0, self.max_history))
        check_table("model.sasrec", self)
        for axis in PER_LAYER:
            if len(sizes := self.each(axis)) != self.layers:
                raise ConfigError(
                    f"model.sasrec.{axis} = {list(sizes)} for {self.layers} layers; give one number, or one for each layer"
                )

    @property
    def width(self) -> int:
        """Coordinates of one head."""
        return self.head_dim or max(1, self.embedding_dim // max(self.each("heads")))

    def each(self, axis: str) -> tuple[int, ...]:
        """How many units of `axis`, `heads` or `ffn`, each layer has."""
        size: int | tuple[int, ...] = getattr(self, axis)
        return size if isinstance(size, tuple) else (size,) * self.layers

    def seen(self, layer: int) -> int:
        """How many positions before each a layer looks at."""
        return (self.window or self.max_history) if layer else self.max_history

    def asked(self, layer: int) -> int:
        """How many of the newest positions a layer answers for (0: all), so that none computes more than the next needs."""
        return self.needed(layer) if self.window else 0

    def needed(self, layer: int) -> int:
        """How many of the newest positions a layer has to answer for the last one to answer the newest."""
        return min(1 + (self.layers - 1 - layer) * (self.seen(1) - 1), self.max_history)


class Block(nn.Module):
    """Attention, then a two-layer network, each added to its input: hidden [B, L, d] -> [B, Lq, d]."""

    def __init__(self, config: Config, at: int) -> None:
        super().__init__()
        self.longest = config.needed(at - 1) if at else config.max_history
        self.heads, self.width, ffn = config.each("heads")[at], config.width, config.each("ffn")[at]
        d, inner = config.embedding_dim, self.heads * self.width
        self.query = nn.Linear(d, inner, bias=False)
        self.key = nn.Linear(d, inner, bias=False)
        self.value = nn.Linear(d, inner, bias=False)
        self.out = nn.Linear(inner, d, bias=False)
        self.up = nn.Linear(d, ffn, bias=False)
        self.down = nn.Linear(ffn, d, bias=False)
        self.distance = nn.Parameter(torch.zeros(self.heads, config.seen(at)))
        self.dropout = Dropout(config.dropout)
        for layer in (self.out, self.down):
            nn.init.normal_(layer.weight, std=(2 * config.layers * layer.in_features) ** -0.5)

    def forward(self, hidden: Tensor, real: Tensor, asked: int = 0) -> Tensor:
        """`real` bool [B, L] tells events from padding; `asked` so many of the newest are asked (0: all)."""
        normed = rms_norm(hidden)
        asking = normed[:, -asked:]
        return self.attended(hidden[:, -asked:], asking, self.key(normed), self.value(normed), real, asked)

    def attended(
        self, hidden: Tensor, normed: Tensor, key: Tensor, value: Tensor, real: Tensor, most: int = 0
    ) -> Tensor:
        """The positions `hidden` and `normed`, `most` at most (0: any), after they asked the keys and values of all."""
        query = self.query(normed)
        return self._added(hidden, attend(query, key, value, self._bias(query, key, most), real, self.heads))

    def newest(self, hidden: Tensor, normed: Tensor, real: Tensor) -> Tensor:
        """The newest position of `hidden`, [B, 1, d], after it asked all of `normed`."""
        return self._added(hidden[:, -1:], self._newest_mixed(normed, real))

    def _added(self, asking: Tensor, mixed: Tensor) -> Tensor:
        asking = asking + self.dropout(self.out(mixed))
        answer: Tensor = asking + self.dropout(self.down(F.gelu(self.up(rms_norm(asking)))))
        return answer

    def _bias(self, asking: Tensor, asked: Tensor, most: int) -> Tensor:
        """The bias of each of the newest positions `asking` [B, Lq, _], `most` at most (0: any), on each of those that are
        `asked` [B, L, _]: [1, H, Lq, L]; those that are later, or too far before, are not seen."""
        most = most or self.longest
        if not torch.onnx.is_in_onnx_export():
            return self._shifted(asking.shape[1], asked.shape[1])[None]
        if most * self.longest > LAID_OUT:
            positions = torch.arange(asked.shape[1])
            back = (positions[-asking.shape[1] :, None] - positions).clamp(min=-1)
            back = torch.where(back < self.distance.shape[1], back, -1)
            return F.pad(self.distance, (0, 1), value=MASKED)[None][:, :, back]
        # Once for the longest history: its last rows and columns are those of any shorter one.
        return trailing(self._shifted(most, self.longest)[None], asking, asked)

    def _shifted(self, asking: int, asked: int) -> Tensor:
        back = self.distance[:, :asked].flip(1)
        before, after = (back.new_full((self.heads, n), MASKED) for n in (asked - back.shape[1], asking - 1))
        return shifted(torch.cat((before, back, after), 1), asking, asked)

    def _newest_mixed(self, normed: Tensor, real: Tensor) -> Tensor:
        """What the newest position attends to, [B, L, d] -> [B, 1, heads * width].

        One query asks L keys, so its key and value matrices meet the query and the mixture instead of all positions:
        `q (X K)^T = (q K^T) X^T` and `w (X V) = (w X) V`.
        """
        shape = (self.heads, self.width, -1)
        (key, *key_inner), (value, *value_inner) = factors(self.key), factors(self.value)
        query = self.query(normed[:, -1:]).view(-1, self.heads, 1, self.width)
        asked = reduce(matmul, key_inner, query @ (key.view(shape) * self.width**-0.5))
        scores = asked.view(-1, self.heads, self.query.in_features) @ normed.transpose(1, 2)
        bias = trailing(self.distance.flip(1), normed)
        weights = (scores + bias + torch.where(real, 0.0, MASKED)[:, None]).softmax(-1)
        seen = reduce(matmul, [matrix.T for matrix in value_inner], (weights @ normed)[:, :, None])
        mixed = seen @ value.view(shape).transpose(1, 2)
        joined: Tensor = mixed.view(-1, 1, self.heads * self.width)
        return joined

    def head_strengths(self) -> Tensor:
        """L2 norm of the weights of each head, [heads]."""
        weights = torch.cat([*(layer.weight for layer in self._projections()), self.out.weight.T], dim=1)
        return weights.reshape(self.heads, -1).square().sum(1).sqrt()

    def ffn_strengths(self) -> Tensor:
        """L2 norm of the weights of each hidden unit, [ffn]."""
        return torch.cat((self.up.weight, self.down.weight.T), dim=1).square().sum(1).sqrt()

    def stream_strengths(self) -> Tensor:
        """Squared L2 norm of the weights that read or write each coordinate of the hidden space, [d]."""
        read = [layer.weight for layer in (*self._projections(), self.up)]
        return torch.cat([*read, self.out.weight.T, self.down.weight.T]).square().sum(0)

    def _projections(self) -> tuple[nn.Linear, nn.Linear, nn.Linear]:
        return self.query, self.key, self.value

    def take(self, source: Block, heads: Tensor, ffn: Tensor, change: Tensor, scale: float) -> None:
        """The weights of `source`: its `heads` and `ffn` units, its hidden space times `change` [d_source, d]."""
        within = (heads[:, None] * source.width + torch.arange(source.width)).flatten()
        for mine, theirs in zip(self._projections(), source._projections(), strict=True):
            mine.weight.copy_(theirs.weight[within] @ change * scale)
        self.out.weight.copy_(change.T @ source.out.weight[:, within])
        self.up.weight.copy_(source.up.weight[ffn] @ change * scale)
        self.down.weight.copy_(change.T @ source.down.weight[:, ffn])
        self.distance.copy_(source.distance[heads, : self.distance.shape[1]])


class SasRec(nn.Module):
    """No biases anywhere: no history gives exactly zero, and the hidden space can be turned without changing an answer."""

    kind: ClassVar[str] = "sasrec"
    inputs = ("history",)

    def __init__(self, config: Config, catalogue: Catalogue) -> None:
        super().__init__()
        self.config, self.catalogue, self.max_history = config, catalogue, config.max_history
        described = catalogue.item_features if config.features else None
        self.items = item_table(catalogue.n_items, config, 0.02, described)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.layers))
        self.enter = nn.Parameter(torch.tensor(float(config.embedding_dim) ** 0.5))
        self.leave = nn.Parameter(torch.tensor(1.0))
        self.dropout = Dropout(config.dropout)

    def encode(self, history: Tensor) -> Tensor:
        return self.encode_vectors(history, self.items.lookup(history))

    def encode_vectors(self, history: Tensor, vectors: Tensor) -> Tensor:
        return self._upwards(0, self.items.widen(vectors) * self.enter, history > 0)

    def encode_items(self, history: Tensor, table: Tensor) -> Tensor:
        every, real = self.items.widen(table) * self.enter, history > 0
        normed = rms_norm(every)
        if self.config.layers == 1:
            return self._answered(F.embedding(history[:, -1:], every), F.embedding(history, normed), real)
        first, asked = cast(Block, self.blocks[0]), self.config.asked(0)
        key, value = (F.embedding(history, made(normed)) for made in (first.key, first.value))
        newest = F.embedding(history[:, -asked:], every)
        hidden = first.attended(newest, rms_norm(newest), key, value, real, asked)
        return self._upwards(1, hidden, real[:, -asked:])

    def _upwards(self, layer: int, hidden: Tensor, real: Tensor) -> Tensor:
        """The vector of the newest position, from what goes into a layer."""
        for at in range(layer, self.config.layers - 1):
            asked = self.config.asked(at)
            hidden = self.blocks[at](hidden, real, asked)
            real = real[:, -asked:]
        return self._answered(hidden, rms_norm(hidden), real)

    def _answered(self, hidden: Tensor, normed: Tensor, real: Tensor) -> Tensor:
        """The vector of the newest position, after the last block: `normed` has all positions that it looks at."""
        newest = cast(Block, self.blocks[-1]).newest(hidden, normed, real)
        return self.items.narrow(rms_norm(newest[:, 0], self.leave))

    @property
    def remembers(self) -> int:
        return 0 if self.config.window else sum(self._kept)

    @property
    def _kept(self) -> list[int]:
        """Numbers that an event leaves: a 1 for not being padding, a key and a value in every block but the last, which
        looks at the event itself."""
        inner = [heads * self.config.width for heads in self.config.each("heads")[:-1] for _ in ("key", "value")]
        return [1, *inner, self.config.embedding_dim]

    def encode_on(self, history: Tensor, vectors: Tensor, past: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.items.widen(vectors) * self.enter
        known, *before, seen = torch.split(past, self._kept, -1)
        left = [(history > 0)[..., None].to(hidden.dtype)]
        real = torch.cat((known, left[0]), 1)[..., 0] > 0
        for block, keys, values in zip(cast(list[Block], self.blocks[:-1]), before[::2], before[1::2], strict=True):
            normed = rms_norm(hidden)
            key, value = block.key(normed), block.value(normed)
            left += [key, value]
            hidden = block.attended(hidden, normed, torch.cat((keys, key), 1), torch.cat((values, value), 1), real)
        left.append(rms_norm(hidden))
        return self._answered(hidden, torch.cat((seen, left[-1]), 1), real), torch.cat(left, -1)

    def states(self, history: Tensor) -> Tensor:
        hidden = self.dropout(self.items.widen(self.items.lookup(history)) * self.enter)
        for block in self.blocks:
            hidden = block(hidden, history > 0)
        return self.items.narrow(rms_norm(hidden, self.leave))

    def item_vectors(self) -> Tensor:
        return self.items.vectors()

    def item_codes(self) -> tuple[Tensor, Tensor] | None:
        return codes_of(self.items)

    def axes(self) -> Mapping[str, int]:
        c = self.config
        sizes = {"layers": c.layers, **{axis: max(c.each(axis)) for axis in PER_LAYER}, "history_length": c.max_history}
        sizes |= {"window": c.seen(1)} if c.layers > 1 else {}
        return {} if c.ranks else sizes | self.items.axes()

    @torch.no_grad()
    def importance(self, axis: str) -> Tensor:
        blocks: list[Block] = list(self.blocks)  # type: ignore[arg-type]
        if axis == "layers":
            return torch.stack([block.stream_strengths().sum().sqrt() for block in blocks])
        if axis in PER_LAYER:
            found = [getattr(block, f"{axis.removesuffix('s')}_strengths")() for block in blocks]
            return pad_sequence(found, batch_first=True, padding_value=ABSENT)
        if axis == "embedding_dim":
            table = self.items.vectors().square().sum(0)
            return (table + torch.stack([block.stream_strengths() for block in blocks]).sum(0)).sqrt()
        if axis == "table_dim":
            return self.items.vectors().square().sum(0).sqrt()
        if axis in ("history_length", "window"):
            return recency(self.axes()[axis])
        raise no_axis(self, axis)

    @torch.no_grad()
    def shrink(self, axis: str, keep: Tensor) -> Model:
        check_keep(self, axis, keep)
        config, everything = self.config, torch.arange(max(*self.axes().values(), self.config.embedding_dim))
        layers = keep if axis == "layers" else everything[: config.layers]
        heads, ffn = (own_units(keep if axis == name else everything, config.each(name)) for name in PER_LAYER)
        small = replace(
            config, layers=len(layers), heads=_sizes(heads, layers), ffn=_sizes(ffn, layers), head_dim=config.width
        )
        change, columns = torch.eye(config.embedding_dim), torch.arange(self.items.width)
        if axis == "embedding_dim":
            small, change = narrowed(small, embedding_dim=len(keep)), selector(keep, config.embedding_dim)
        elif axis == "table_dim":
            small, columns = narrowed(small, table_dim=len(keep)), keep
        elif axis == "window":
            small = replace(small, window=newest_kept(keep, axis))
        elif axis == "history_length":
            length = newest_kept(keep, axis)
            small = replace(small, max_history=length, window=small.window if small.window < length else 0)
        return self._taken(small, layers, heads, ffn, change, columns)

    @torch.no_grad()
    def rotated(self, basis: Tensor) -> Model:
        c = self.config
        heads, ffn = ([torch.arange(size) for size in c.each(axis)] for axis in PER_LAYER)
        return self._taken(c, torch.arange(c.layers), heads, ffn, basis, torch.arange(self.items.width))

    def _taken(
        self,
        config: Config,
        layers: Tensor,
        heads: Sequence[Tensor],
        ffn: Sequence[Tensor],
        change: Tensor,
        columns: Tensor,
    ) -> Model:
        """A model of `config` with the chosen weights of this one."""
        model = rebuilt(self, config)
        assert isinstance(model, SasRec)
        # rms over fewer coordinates is larger or smaller by this much; exact where the dropped ones were zero
        scale = (self.config.embedding_dim / config.embedding_dim) ** 0.5
        copy_items(self.items, model.items, change, columns)
        model.enter.copy_(self.enter)
        model.leave.copy_(self.leave * scale)
        for block, layer in zip(model.blocks, layers.tolist(), strict=True):
            block.take(self.blocks[layer], heads[layer], ffn[layer], change, scale)  # type: ignore[operator]
        return model.train(self.training)


def _sizes(units: Sequence[Tensor], layers: Tensor) -> int | tuple[int, ...]:
    """How many `units` each of `layers` has, as a config says it."""
    sizes = tuple(len(units[layer]) for layer in layers)
    return sizes[0] if len(set(sizes)) == 1 else sizes


def build(config: Config, catalogue: Catalogue) -> Model:
    check_features("model.sasrec", config.features, catalogue.item_features)
    return factored(SasRec(config, catalogue), config.ranks)

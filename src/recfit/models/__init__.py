"""Recommender models: one file a family, the file's name is its `kind`.

A family's file offers

* `Config`: a frozen dataclass of its settings;
* `build(config, catalogue) -> Model`: a new, untrained torch module.

Every model is an `Encoder` (a request becomes a vector, items are scored by dot product with the rows of a
table) or a `Ranker` (a request and candidate items become scores). Tokens are item rows + 1; 0 pads on the left.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol, cast, runtime_checkable

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from recfit.options import from_options
from recfit.registry import find
from recfit.types import ConfigError, Features, Rows, Split

FORMAT = 1
PAIRS_AT_ONCE = 1 << 13  # so that their activations stay in the cache


@dataclass(frozen=True)
class Catalogue:
    """What a model must know of the data to be built: sizes and features, no events.

    `item_rows` int32 [n_items] tells, where some items have left, which rows of the data are here, ascending. `ids` are
    digests of the data's ids of `users` and `items`, in the order of their rows; empty where they are not known.
    """

    n_users: int
    n_items: int
    user_features: Features | None = None
    item_features: Features | None = None
    item_rows: Rows | None = None
    ids: Mapping[str, str] = field(default_factory=dict)

    def only(self, rows: Rows) -> Catalogue:
        """The catalogue of the items at `rows`, ascending."""
        described = self.item_features
        if described is not None:
            described = replace(described, codes=described.codes[rows])
        known = rows if self.item_rows is None else self.item_rows[rows]
        return replace(self, n_items=len(rows), item_features=described, item_rows=known.astype(np.int32))


class Model(Protocol):
    """What both kinds share. Implemented by `torch.nn.Module`s; `config` rebuilds the module, weights are saved apart.

    `inputs` names what `encode`/`score` takes, out of `history` (tokens int64 [B, L]), `user` (user row + 1,
    0 unknown, int64 [B]) and `user_features` (codes int64 [B, F]).
    """

    @property
    def kind(self) -> str: ...

    @property
    def config(self) -> Any: ...

    @property
    def catalogue(self) -> Catalogue: ...

    @property
    def inputs(self) -> tuple[str, ...]: ...

    @property
    def max_history(self) -> int:
        """Events that are read, 0 for a model that reads none; `history` may be any shorter length, down to 1."""
        ...

    def axes(self) -> Mapping[str, int]:
        """The sizes that `shrink` can reduce, by axis name (`layers, heads, ffn, embedding_dim, ...`); where layers differ,
        that of the widest."""
        ...

    def importance(self, axis: str) -> Tensor:
        """One non-negative number for each unit of `axis`, float [size], or [layers, size] where every layer has units of
        its own: the root of the sum of squares of the weights that belong to it; -1 for what a narrower layer lacks."""
        ...

    def shrink(self, axis: str, keep: Tensor) -> Model:
        """A new, really smaller model: `keep` are the unit indices (int64, ascending) of `axis` that stay, [k], or
        [layers, k] where every layer has units of its own, rows of fewer filled up with -1."""
        ...


@runtime_checkable
class Encoder(Protocol):
    """A request becomes a vector [B, d]; item i scores `vector @ item_vectors()[i]`."""

    def encode(self, **inputs: Tensor) -> Tensor: ...

    def item_vectors(self) -> Tensor:
        """float [n_items, d], in row order. Where this is the identity the model says `identity = True`."""
        ...


@runtime_checkable
class Tied(Protocol):
    """An encoder whose input embeddings are the rows of its item table, so that a bundle stores them once."""

    def encode_vectors(self, history: Tensor, vectors: Tensor) -> Tensor:
        """Like `encode`, with the table's rows of `history` given: tokens [B, L], float [B, L, d] (zeros where 0)."""
        ...


@runtime_checkable
class Foresighted(Tied, Protocol):
    """A tied encoder that makes something of each item before it looks at a history: that can be made once, of all items."""

    def encode_items(self, history: Tensor, table: Tensor) -> Tensor:
        """Like `encode`, with the vector of each token given: tokens [B, L], float [n_items + 1, d], the first row zeros."""
        ...


@runtime_checkable
class Continuing(Tied, Protocol):
    """A tied encoder that can go on from what it worked out for the events before."""

    @property
    def remembers(self) -> int:
        """How many numbers it leaves of each event; 0 where it can't go on."""
        ...

    def encode_on(self, history: Tensor, vectors: Tensor, past: Tensor) -> tuple[Tensor, Tensor]:
        """Like `encode_vectors` for the whole history, of which `history` [B, N] and `vectors` [B, N, d] are the newest
        events, and `past` [B, P, m] what those before left (zeros for padding): the vector [B, d], and what the newest
        leave, [B, N, m]."""
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


@runtime_checkable
class Rotatable(Protocol):
    """An encoder whose hidden space can be turned, so that `shrink("embedding_dim")` keeps principal directions."""

    def rotated(self, basis: Tensor) -> Model:
        """A model with the same scores and the hidden coordinates `hidden @ basis`, `basis` orthogonal [d, d]."""
        ...


@runtime_checkable
class Codable(Protocol):
    """An encoder whose item table, its module `items`, can be made of trained codes (`config.parts`, `config.codes`)."""

    def item_codes(self) -> tuple[Tensor, Tensor] | None:
        """Sub-ids uint8 [n_items, parts] and their vectors float [parts, codes, width]; None where each item has its own."""
        ...


@runtime_checkable
class Featured(Model, Protocol):
    """A model with the axis `features`."""

    def feature_names(self) -> list[str]:
        """The feature columns in use, the units of that axis in order; `genre.0` and `genre.1` are `genre`."""
        ...


def catalogue_of(split: Split) -> Catalogue:
    """The sizes, features and ids of `split`."""
    train = split.train
    ids = {"users": _digest(train.user_ids), "items": _digest(train.item_ids)}
    return Catalogue(split.n_users, split.n_items, train.user_features, train.item_features, ids=ids)


@lru_cache(maxsize=4)  # of one data set, whose models are built again and again
def _digest(ids: tuple[str, ...]) -> str:
    return hashlib.sha256(json.dumps(ids).encode()).hexdigest()[:16]


def check_ids(model: Model, split: Split, where: str) -> None:
    """Raise `ConfigError` for a model whose rows are other items than those of `split`, or other users if it reads them."""
    here = catalogue_of(split).ids
    for what in ("items", *(["users"] if "user" in model.inputs else [])):
        if model.catalogue.ids.get(what, here[what]) != here[what]:
            raise ConfigError(
                f"the model at {where} was trained on other {what} than this data has, or on the same in another order; "
                "train it on this data"
            )


def build(kind: str, options: Mapping[str, Any], catalogue: Catalogue) -> Model:
    """A new, untrained model of the family `kind`; `options` are checked against its `Config`."""
    family = find("models", kind)
    config = from_options(family.Config, options, f"model.{kind}")
    return cast(Model, family.build(config, catalogue))


def rebuilt(model: Model, config: Any, catalogue: Catalogue | None = None) -> Model:
    """A new, untrained model of the same family with another config, and another catalogue if one is given."""
    return cast(Model, find("models", model.kind).build(config, catalogue or model.catalogue))


def copied(model: Model, config: Any = None, catalogue: Catalogue | None = None) -> Model:
    """A model of its own with the weights of `model`, and another config or catalogue of the same shapes if one is given."""
    copy = rebuilt(model, config or model.config, catalogue)
    as_module(copy).load_state_dict(as_module(model).state_dict())
    return copy


def as_module(model: Model) -> nn.Module:
    """`model` as the torch module it is."""
    return cast(nn.Module, model)


def is_identity(model: Model) -> bool:
    """Whether the output of `encode` already is the score of every item."""
    return bool(getattr(model, "identity", False))


def item_codes(model: Model) -> tuple[Tensor, Tensor] | None:
    """What `model.item_codes()` gives, None for any other model."""
    return model.item_codes() if isinstance(model, Codable) else None


def scores(model: Model, inputs: Mapping[str, Tensor]) -> Tensor:
    """Scores of the whole catalogue, float [B, n_items]; a ranker is asked chunk by chunk."""
    if isinstance(model, Encoder):
        vectors = model.encode(**inputs)
        return vectors if is_identity(model) else vectors @ model.item_vectors().T
    ranker = cast(Ranker, model)
    batch = next(iter(inputs.values())).shape[0]
    tokens = torch.arange(1, model.catalogue.n_items + 1).expand(batch, -1)
    step = max(1, PAIRS_AT_ONCE // batch)
    parts = [tokens[:, start : start + step] for start in range(0, tokens.shape[1], step)]
    return torch.cat([ranker.score(part, **inputs) for part in parts], dim=1)


def save(model: Model, directory: Path) -> None:
    """Write `model.json` and `weights.safetensors`; never a pickle."""
    directory.mkdir(parents=True, exist_ok=True)
    tensors = {f"weights.{name}": value for name, value in as_module(model).state_dict().items()}
    sides = {"user_features": model.catalogue.user_features, "item_features": model.catalogue.item_features}
    tensors |= {name: torch.from_numpy(side.codes) for name, side in sides.items() if side is not None}
    if model.catalogue.item_rows is not None:
        tensors["item_rows"] = torch.from_numpy(model.catalogue.item_rows)
    save_file({name: value.detach().clone().contiguous() for name, value in tensors.items()}, _weights(directory))
    (directory / "model.json").write_text(json.dumps(_described(model), indent=1))


def load(directory: Path) -> Model:
    """The model that `save` wrote, in evaluation mode."""
    if not (directory / "model.json").is_file():
        raise ConfigError(f"{directory} holds no model.json, so it is not a saved model; `recfit train` writes one")
    described = json.loads((directory / "model.json").read_text())
    if described["format"] > FORMAT:
        raise ConfigError(f"{directory} has model format {described['format']}, known up to {FORMAT}; update recfit")
    tensors = load_file(_weights(directory))
    sizes = described["catalogue"]
    sides = {side: _features(sizes[side], tensors.get(side)) for side in ("user_features", "item_features")}
    rows = tensors["item_rows"].numpy() if "item_rows" in tensors else None
    catalogue = Catalogue(sizes["n_users"], sizes["n_items"], **sides, item_rows=rows, ids=sizes.get("ids", {}))
    model = build(described["kind"], described["config"], catalogue)
    weights = {name.removeprefix("weights."): value for name, value in tensors.items() if name.startswith("weights.")}
    as_module(model).load_state_dict(weights)
    as_module(model).eval()
    return model


def fingerprint(model: Model) -> str:
    """sha256 of kind, config, catalogue and weights: equal digests answer equally."""
    digest = hashlib.sha256(json.dumps(_described(model), sort_keys=True).encode())
    if model.catalogue.item_rows is not None:
        digest.update(model.catalogue.item_rows.tobytes())
    for name, value in sorted(as_module(model).state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _weights(directory: Path) -> Path:
    return directory / "weights.safetensors"


def _described(model: Model) -> dict[str, Any]:
    catalogue = model.catalogue
    sides = {"user_features": catalogue.user_features, "item_features": catalogue.item_features}
    columns = {name: None if f is None else {"names": f.names, "sizes": f.sizes} for name, f in sides.items()}
    sizes: dict[str, Any] = {"n_users": catalogue.n_users, "n_items": catalogue.n_items, **columns}
    if catalogue.ids:
        sizes["ids"] = dict(catalogue.ids)
    return {"format": FORMAT, "kind": model.kind, "config": asdict(model.config), "catalogue": sizes}


def _features(columns: Mapping[str, Any] | None, codes: Tensor | None) -> Features | None:
    if columns is None or codes is None:
        return None
    return Features(tuple(columns["names"]), codes.numpy(), tuple(columns["sizes"]))

"""Smaller models to try in an original's place: fixed fractions of its own depth and width, the shallow network, and two
towers in a ranker's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from recfit.models import Model, Ranker

Proposal = tuple[str, Mapping[str, Any]]


def students(original: Model) -> list[Proposal]:
    """Kinds and options of students for `original`."""
    config = original.config
    dim = int(getattr(config, "embedding_dim", 64))
    history = int(original.max_history) or 50
    shallow: Proposal = ("mlp", {"embedding_dim": _round(dim / 2), "hidden": _round(dim), "max_history": history})
    if original.kind != "sasrec":
        towers = [two_tower(original)] if isinstance(original, Ranker) else []
        return [*towers, sequences(history), ("sasrec", _transformer(1, _round(dim), history)), shallow]
    halves = max(1, config.layers // 2)
    # Depth keeps quality, and costs little where the upper layers look back a little: of ten layers, 4 of 128 with a window
    # of 10 kept more than 2 with a window of 20 (MovieLens-1M, docs/seeds.md).
    deep = {"window": min(history, max(2, history // 10))}
    proposals = [
        ("sasrec", _transformer(halves, _round(dim / 2), history)),
        *([("sasrec", _transformer(halves, _round(dim / 4), history) | deep)] if halves > 1 else []),
        ("sasrec", _transformer(1, _round(dim / 2), history)),
        ("sasrec", _transformer(1, _round(dim / 4), history)),
        shallow,
    ]
    return list({str(proposal): proposal for proposal in proposals}.values())


def sequences(history: int) -> Proposal:
    """A Transformer in the place of an original of another kind, whose width and history say nothing of what it needs: the
    smaller of those that rank as well as NeuMF on MovieLens-1M, in a tenth of its bytes (docs/seeds.md)."""
    return "sasrec", _transformer(2, 80, max(history, 100)) | {"window": 10, "table_dim": 32}


def two_tower(original: Model) -> Proposal:
    """Two towers that read what `original` reads, as wide: one product scores the catalogue where a ranker asks a network for
    each item. A history stands for its user, whose own vector most of the bytes would go to (docs/seeds.md)."""
    config = original.config
    dim = _round(int(getattr(config, "embedding_dim", 64)))
    options: dict[str, Any] = {
        "embedding_dim": dim,
        "hidden": _round(int(getattr(config, "hidden", 2 * dim))),
        "users": "user" in original.inputs and "history" not in original.inputs,
        "max_history": int(original.max_history) if "history" in original.inputs else 0,
    }
    if getattr(config, "features", "user_features" in original.inputs):
        options |= {"features": True, "without": list(getattr(config, "without", ()))}
    return "two_tower", options


def _transformer(layers: int, dim: int, history: int) -> dict[str, Any]:
    return {
        "layers": layers,
        "embedding_dim": dim,
        "heads": max(1, dim // 32),
        "ffn": 2 * dim,
        "max_history": history,
    }


def _round(width: float) -> int:
    """To a multiple of 16, which is what vector units take at a time."""
    return max(16, round(width / 16) * 16)

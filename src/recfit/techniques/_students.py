"""Smaller models to try in an original's place: fixed fractions of its own depth and width, and the shallow network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from recfit.models import Model

Proposal = tuple[str, Mapping[str, Any]]


def students(original: Model) -> list[Proposal]:
    """Kinds and options of students for `original`, the largest first."""
    config = original.config
    dim = int(getattr(config, "embedding_dim", 64))
    history = int(original.max_history) or 50
    shallow: Proposal = ("mlp", {"embedding_dim": _round(dim / 2), "hidden": _round(dim), "max_history": history})
    if original.kind != "sasrec":
        return [("sasrec", _transformer(1, _round(dim), history)), shallow]
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

"""Fewer dimensions, features or past events: rotate the hidden space to its principal components, keep the largest,
fine-tune (PCA on the item vectors; for the Transformer the rotation is exact as in SliceGPT, arXiv 2401.15024)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from recfit.models import Causal, Encoder, Model, Rotatable
from recfit.models._options import check_ranges
from recfit.pipeline import Pipeline
from recfit.techniques import Context
from recfit.techniques._shrink import fine_tuned, size_of
from recfit.types import Split, Unsupported

CALIBRATION = 256  # users whose request vectors are looked at


@dataclass(frozen=True)
class Technique:
    """Keep `size` units of `axis` (`embedding_dim` by principal components, `history_length` the newest,
    `features` by importance), then fine-tune."""

    family: ClassVar[str] = "reduce"
    order: ClassVar[int] = 30
    trains: ClassVar[bool] = True

    axis: str = "embedding_dim"
    size: int = 32
    epochs: int = 10
    data_fraction: float = 1.0
    learning_rate: float = 5e-4

    def __post_init__(self) -> None:
        check_ranges("technique.reduce", self, size=(1, 1e6), epochs=(0, 1e6), data_fraction=(1e-6, 1))

    def apply(self, pipeline: Pipeline, context: Context) -> Pipeline:
        model = pipeline.main.model
        now = size_of(model, self.axis)
        if self.size >= now:
            raise Unsupported(f"size={self.size} is not below the {now} of {self.axis}; pass size <= {now - 1}")
        model, keep = self._choose(model, context)
        return fine_tuned(pipeline, model.shrink(self.axis, keep), context, self)

    def _choose(self, model: Model, context: Context) -> tuple[Model, Tensor]:
        """The model, rotated where that helps, and the units that stay."""
        if self.axis == "embedding_dim" and isinstance(model, Rotatable):
            return model.rotated(principal_axes(model, context.split)), torch.arange(self.size)
        if self.axis == "history_length":
            return model, torch.arange(self.size)
        return model, torch.topk(model.importance(self.axis), self.size).indices.sort().values

    @classmethod
    def variants(cls, context: Context) -> Sequence[Technique]:
        axes = context.original.main.model.axes()
        return [
            cls(axis, size)
            for axis, shares in (("embedding_dim", (0.5, 0.25)), ("history_length", (0.4,)), ("features", (0.5,)))
            for share in shares
            if (size := round(axes.get(axis, 0) * share)) >= 1
        ]


def principal_axes(model: Model, split: Split) -> Tensor:
    """An orthogonal matrix [d, d], columns by falling share of the energy of item vectors and request vectors together.

    Both count alike: a direction matters for a score only where both sides of the product use it.
    """
    assert isinstance(model, Encoder)
    with torch.no_grad():
        energy = _energy(model.item_vectors())
        if isinstance(model, Causal):
            past = split.train.histories().last(model.max_history).take(np.arange(min(CALIBRATION, split.n_users)))
            tokens = torch.from_numpy(past.padded(model.max_history))
            energy = energy + _energy(model.states(tokens)[tokens > 0])
        _, basis = torch.linalg.eigh(energy)
    largest_first: Tensor = basis.flip(1).float()
    return largest_first


def _energy(vectors: Tensor) -> Tensor:
    """The second moment of `vectors` [n, d], scaled to trace 1 unless all are zero, as before any training."""
    moment = vectors.T.double() @ vectors.double()
    return moment / moment.trace().clamp(min=1e-30)

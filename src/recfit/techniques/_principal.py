"""Principal axes of a vector space that requests and items share."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from recfit.models import Causal, Encoder, Model, is_identity
from recfit.models._layers import ItemTable
from recfit.types import Split

CALIBRATION = 256  # users whose request vectors are looked at


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


@torch.no_grad()
def inherit_items(student: Model, teacher: Model, split: Split) -> None:
    """Give an encoder its teacher's item vectors to start from, along as many principal axes as it has coordinates."""
    table = getattr(student, "items", None)
    if not (isinstance(student, Encoder) and isinstance(teacher, Encoder) and isinstance(table, ItemTable)):
        return
    if is_identity(teacher):
        return
    vectors = teacher.item_vectors().float() @ principal_axes(teacher, split)
    width = min(vectors.shape[1], table.weight.shape[1])
    described = table.vectors() - table.weight  # what the item's features add already
    table.weight[:, :width] = vectors[:, :width] - described[:, :width]

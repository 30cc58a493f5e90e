"""What a smaller model takes over from a larger one: all that fits, along the axes that matter most."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from recfit.models import Causal, Encoder, Model, Rotatable, as_module, is_identity
from recfit.models._axes import strongest
from recfit.models._layers import ItemTable
from recfit.types import Split

WIDTHS = ("embedding_dim", "table_dim")
CALIBRATION = 256  # users whose request vectors are looked at


def cut(model: Model, axis: str, size: int, split: Split) -> Model:
    """`model` with the `size` units of `axis` that matter most: of `embedding_dim` and `table_dim` the principal axes, where
    the model can be turned onto them, or the leading ones, where they were trained to stand alone; of `history_length` and
    `window` the newest events; else by the norm of their weights."""
    front = torch.arange(size)
    if axis in WIDTHS and not nested(model) and isinstance(model, Rotatable) and "embedding_dim" in model.axes():
        return model.rotated(principal_axes(model, split)).shrink(axis, front)
    if axis in ("history_length", "window") or (axis in WIDTHS and nested(model)):
        return model.shrink(axis, front)
    return model.shrink(axis, strongest(model, axis, size))


def nested(model: Model) -> bool:
    """Whether the leading numbers of the model's item vectors were trained to do without the others."""
    return bool(getattr(model.config, "widths", ()))


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


def inherit(student: Model, teacher: Model, split: Split) -> None:
    """Start `student` from `teacher`: from the teacher cut to the student's size where both are of one family, else,
    between encoders with item vectors, from those. Nothing is changed where neither fits."""
    if (weights := _fitting(student, teacher, split)) is not None:
        as_module(student).load_state_dict(weights)
    elif isinstance(student, Encoder) and isinstance(teacher, Encoder) and not is_identity(teacher):
        _inherit_items(getattr(student, "items", None), teacher, split)


def _fitting(student: Model, teacher: Model, split: Split) -> Mapping[str, Tensor] | None:
    """The weights of the teacher cut to the student's axes, if they are the student's in name and shape."""
    larger = teacher.axes()
    if student.kind != teacher.kind or any(size > larger.get(axis, 0) for axis, size in student.axes().items()):
        return None
    model = teacher
    for axis, size in student.axes().items():
        if size < model.axes().get(axis, 0):  # a cut may have made it as small already
            model = cut(model, axis, size, split)
    found, wanted = (as_module(part).state_dict() for part in (model, student))
    fits = {name: part.shape for name, part in found.items()} == {name: part.shape for name, part in wanted.items()}
    return found if fits else None


@torch.no_grad()
def _inherit_items(table: object, teacher: Encoder, split: Split) -> None:
    if isinstance(table, ItemTable):
        vectors = teacher.item_vectors().float() @ principal_axes(teacher, split)  # type: ignore[arg-type]
        width = min(vectors.shape[1], table.weight.shape[1])
        described = table.vectors() - table.weight  # what the item's features add already
        table.weight[:, :width] = vectors[:, :width] - described[:, :width]

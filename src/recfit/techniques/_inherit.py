"""What a smaller model takes over from a larger one: all that fits, along the axes that matter most."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recfit.models import Causal, Encoder, Model, Rotatable, as_module, is_identity
from recfit.models._axes import strongest
from recfit.models._layers import ItemTable
from recfit.techniques._subids import item_weights
from recfit.types import Split, Unsupported

WIDTHS = ("embedding_dim", "table_dim")
USERS = 256  # whose request vectors are looked at
# Share of all directions alike in what counts of an item vector: encoders read it, not only requests score it.
READ = 0.1


def cut(model: Model, axis: str, size: int, split: Split) -> Model:
    """`model` with the `size` units of `axis` that matter most: of `embedding_dim` the principal axes, where the model can be
    turned onto them, of `table_dim` those that keep the scores, of both the leading ones where they were trained to stand
    alone; of `history_length` and `window` the newest events; else by the norm of their weights."""
    front = torch.arange(size)
    if axis == "table_dim" and not nested(model) and isinstance(getattr(model, "items", None), ItemTable):
        return of_rank(model, size, split)
    if axis == "embedding_dim" and axis in model.axes() and not nested(model) and isinstance(model, Rotatable):
        return model.rotated(principal_axes(model, split)).shrink(axis, front)
    if axis in ("history_length", "window") or (axis in WIDTHS and nested(model)):
        return model.shrink(axis, front)
    return model.shrink(axis, strongest(model, axis, size))


def nested(model: Model) -> bool:
    """Whether the leading numbers of the model's item vectors were trained to do without the others."""
    return bool(getattr(model.config, "widths", ()))


@torch.no_grad()
def of_rank(model: Model, size: int, split: Split) -> Model:
    """`model` with item vectors of `size` numbers, those of which its requests' scores change least.

    Of all `U B`, U [n, size], B [size, d], the one with the least `sum_i w_i |(v_i - u_i B) H^1/2|^2`: H is the second moment
    of request vectors, of which a share `READ` counts all directions alike, w_i the root of an item's events (low rank by
    data: Chen et al., DRONE, NeurIPS 2021; in the metric of what it meets: SVD-LLM, Wang et al., arXiv 2403.07378).
    """
    small: Any = model.shrink("table_dim", torch.arange(size))
    source: ItemTable = model.items  # type: ignore[attr-defined]
    root, back = _metric(model, split)
    axes = _decomposed(model, root, split)[1][:size]
    change = (root @ axes.T).float()
    small.items.take_(source, change, (axes @ back).float() @ source.widen(torch.eye(source.width)))
    found: Model = small
    return found


def _metric(model: Any, split: Split) -> tuple[Tensor, Tensor]:
    """`H^1/2` of `of_rank`, and its inverse."""
    even = torch.eye(model.items.width, dtype=torch.float64) / model.items.width
    values, turn = torch.linalg.eigh((1 - READ) * _requests(model, split) + READ * even)
    return turn * values.sqrt() @ turn.T, turn / values.sqrt() @ turn.T


def _decomposed(model: Any, root: Tensor, split: Split) -> tuple[Tensor, Tensor]:
    """Singular values of the weighted item vectors times `root`, the largest first, and the axes [d, d] that they belong to."""
    weights = torch.from_numpy(item_weights(split)).double().sqrt()[:, None]
    _, values, axes = torch.linalg.svd(weights * model.items.vectors().double() @ root, full_matrices=False)
    return values, axes


@torch.no_grad()
def enough(model: Model, axis: str, share: float, split: Split) -> int:
    """How many components of `axis`, the largest first, hold `share` of the energy that `cut` orders them by."""
    if axis == "table_dim" and isinstance(getattr(model, "items", None), ItemTable):
        energies = _decomposed(model, _metric(model, split)[0], split)[0].square()
    elif axis == "embedding_dim" and isinstance(model, Encoder) and isinstance(model, Rotatable):
        energies = torch.linalg.eigvalsh(_moments(model, split)).flip(0)
    else:
        raise Unsupported(f"energy={share} has no components of {axis!r} of {model.kind} to count; pass a size")
    held = energies.cumsum(0) / energies.sum()
    return min(len(held), int((held < share - 1e-9).sum()) + 1)


@torch.no_grad()
def turned(model: Model, turn: Tensor) -> Model:
    """`model`, whose item vectors are narrower than itself, with these times `turn`, orthogonal [width, width]: the matrix that
    widens them takes it back, so that no score changes."""
    copied = copy.deepcopy(model)
    items: ItemTable = model.items  # type: ignore[attr-defined]
    assert items.basis is not None
    copied.items.take_(items, turn, turn.T @ items.basis)  # type: ignore[attr-defined]
    return copied


def principal_axes(model: Model, split: Split) -> Tensor:
    """An orthogonal matrix [d, d], columns by falling share of the energy of item vectors and request vectors together.

    Both count alike: a direction matters for a score only where both sides of the product use it.
    """
    assert isinstance(model, Encoder)
    with torch.no_grad():
        _, basis = torch.linalg.eigh(_moments(model, split))
    largest_first: Tensor = basis.flip(1).float()
    return largest_first


def _moments(model: Any, split: Split) -> Tensor:
    """The second moments that `principal_axes` are of."""
    return _energy(model.item_vectors()) + _requests(model, split)


@torch.no_grad()
def _requests(model: Model, split: Split) -> Tensor:
    """The second moment of the request vectors of some training histories, of trace 1; zeros where they are not looked at."""
    if not isinstance(model, Causal):
        return torch.zeros((), dtype=torch.float64)
    past = split.train.histories().last(model.max_history).take(np.arange(min(USERS, split.n_users)))
    tokens = torch.from_numpy(past.padded(model.max_history))
    return _energy(model.states(tokens)[tokens > 0])


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

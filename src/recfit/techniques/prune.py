"""Structured pruning: the least important units of an axis leave, the model really shrinks, and a short fine-tuning
on a share of the data repairs what it can (magnitudes: Han et al., arXiv 1506.02626; first-order Taylor expansion of the
loss: Molchanov et al., arXiv 1906.10771)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from recfit.models import Model, Solved, as_module, copied
from recfit.models._axes import strongest
from recfit.options import check_choice, check_ranges
from recfit.pipeline import Pipeline
from recfit.techniques import Context
from recfit.techniques._shrink import BATCHES, LIGHT, SCOPES, fine_tuned, size_of
from recfit.training import squared_gradients
from recfit.types import Unsupported

# What takes the place of a weight (its squared gradient is None where it takes no part), so that the sum of squares that every
# family's importance is made of becomes the sum that is wanted.
WEIGHED: Mapping[str, Callable[[Tensor, Tensor | None], Tensor]] = {
    "l2": lambda weight, squared: weight,
    "l1": lambda weight, squared: weight.abs().sqrt(),
    "taylor": lambda weight, squared: torch.zeros_like(weight) if squared is None else weight * squared.sqrt(),
    "random": lambda weight, squared: torch.rand(weight.shape),
}
PRESETS: Mapping[str, Mapping[str, Any]] = {
    "light": {"keep": 0.6, **LIGHT},
}


@dataclass(frozen=True)
class Technique:
    """Keep the share `keep` of the most important units of `axis`, then fine-tune on `data_fraction` of the users.

    A unit counts `by` the sum over its weights w of w^2 (`l2`), |w| (`l1`), (w * gradient of the loss)^2 over some batches
    (`taylor`), or by chance (`random`, the control that any other has to beat). It competes with the units of its own layer
    (`scope` `layer`) or of all (`global`), which leaves layers of different widths. In several `rounds` each cuts a part,
    the first the largest (as Zhu and Gupta's cubic schedule), and has its share of the epochs.
    """

    family: ClassVar[str] = "prune"
    order: ClassVar[int] = 20
    trains: ClassVar[bool] = True

    axis: str
    keep: float = 0.5
    by: str = "l2"
    scope: str = "layer"
    rounds: int = 1
    epochs: int = 20
    data_fraction: float = 1.0
    learning_rate: float = 1e-3

    def __post_init__(self) -> None:
        check_choice("technique.prune.by", self.by, tuple(WEIGHED))
        check_choice("technique.prune.scope", self.scope, SCOPES)
        check_ranges("technique.prune", self, keep=(1e-6, 1), epochs=(0, 1e6), data_fraction=(1e-6, 1))
        check_ranges("technique.prune", self, rounds=(1, 1000))

    @property
    def works_on(self) -> tuple[str, ...]:
        return (self.axis,)

    def apply(self, pipeline: Pipeline, context: Context) -> Pipeline:
        size, least = self._sizes(pipeline.main.model)
        count = max(least, round(size * self.keep))
        if count >= size:
            raise Unsupported(
                f"keep={self.keep} of {size} {self.axis} removes nothing; pass keep < {1 - 0.5 / size:.2f}"
            )
        for number in range(1, self.rounds + 1):
            model = pipeline.main.model
            wanted = count + round((size - count) * ((self.rounds - number) / self.rounds) ** 3)
            judged = model if self.by == "l2" or context.structure_only else _weighed(model, self.by, context)
            best = strongest(judged, self.axis, wanted, together=self.scope == "global")
            pipeline = fine_tuned(pipeline, model.shrink(self.axis, best), context, self, turn=(number, self.rounds))
        return pipeline

    def _sizes(self, model: Model) -> tuple[int, int]:
        """How many units compete, and the least number that has to stay: one of every layer."""
        size = size_of(model, self.axis)
        if self.scope == "layer":
            return size, 1
        scores = model.importance(self.axis)
        if scores.ndim == 1:
            raise Unsupported(f"{self.axis} of {model.kind} are compared as a whole anyway; leave out scope='global'")
        return int((scores >= 0).sum()), len(scores)

    @classmethod
    def variants(cls, context: Context) -> Sequence[Technique]:
        axes = context.original.main.model.axes()
        wanted = [(axis, 0.5) for axis in ("ffn", "layers", "heads", "hidden") if axes.get(axis, 1) > 1]
        return [cls(axis, keep) for axis, keep in wanted]


def _weighed(model: Model, by: str, context: Context) -> Model:
    """A copy of `model` whose weights were replaced by what `WEIGHED[by]` makes of them."""
    copy = copied(model)
    found: Mapping[str, Tensor] = {}
    if by == "taylor":
        if isinstance(copy, Solved):
            raise Unsupported(f"{model.kind} is solved in closed form and has no loss to expand; use by='l2'")
        found = squared_gradients(copy, context.split, context.fit_of(copy), BATCHES)
    with torch.no_grad():
        for name, values in as_module(copy).state_dict().items():
            if values.is_floating_point():
                values.copy_(WEIGHED[by](values, found.get(name)))
    return copy

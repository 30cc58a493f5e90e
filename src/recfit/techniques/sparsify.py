"""Unstructured pruning: the least important single weights become zero, and a fine-tuning of the others repairs what it can
(Han et al., arXiv 1506.02626; by the loss: Molchanov et al., arXiv 1906.10771). A bundle stores a zero in one bit; no
runtime here computes any faster for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from recfit.models import Model, Solved, as_module, copied
from recfit.options import check_choice, check_ranges
from recfit.pipeline import Pipeline
from recfit.techniques import Context
from recfit.techniques._masks import Masks, matrices
from recfit.techniques._shrink import BATCHES, LIGHT, SCOPES, fine_tuned
from recfit.training import squared_gradients
from recfit.types import Unsupported

RAMP = 0.5  # of the fine-tuning, until the cubic schedule has reached its sparsity
PRESETS: Mapping[str, Mapping[str, Any]] = {
    "light": {"sparsity": 0.4, **LIGHT},
}


@dataclass(frozen=True)
class Technique:
    """Set the share `sparsity` of the deciding model's matrices to zero, then fine-tune on `data_fraction` of the users.

    A weight w counts `by` |w| (`l1`), (w * gradient of the loss)^2 over some batches (`taylor`) or chance (`random`),
    against those of its own matrix (`scope` `layer`) or of all (`global`); all at once (`one_shot`) or over the first half
    of the fine-tuning (`cubic`).
    """

    family: ClassVar[str] = "prune"
    order: ClassVar[int] = 38  # what trains or takes layers apart would fill its zeros
    trains: ClassVar[bool] = True
    works_on: ClassVar[tuple[str, ...]] = ("single weights",)

    sparsity: float = 0.5
    by: str = "l1"
    scope: str = "layer"
    schedule: str = "one_shot"
    epochs: int = 20
    data_fraction: float = 1.0
    learning_rate: float = 1e-3

    def __post_init__(self) -> None:
        check_choice("technique.sparsify.by", self.by, ("l1", "taylor", "random"))
        check_choice("technique.sparsify.scope", self.scope, SCOPES)
        check_choice("technique.sparsify.schedule", self.schedule, ("one_shot", "cubic"))
        check_ranges("technique.sparsify", self, sparsity=(1e-3, 0.999), epochs=(0, 1e6), data_fraction=(1e-6, 1))

    def apply(self, pipeline: Pipeline, context: Context) -> Pipeline:
        model = copied(pipeline.main.model)
        if isinstance(model, Solved):
            raise Unsupported(
                f"{model.kind} is solved in closed form and its matrices belong together; use its own settings"
            )
        weights = matrices(model)
        if not weights:
            raise Unsupported(f"{model.kind} has no matrices beside its item table; use quantize for that")
        ramp = RAMP if self.schedule == "cubic" and self.epochs else 0.0
        masks = Masks(weights, self._score(model, context), self.sparsity, together=self.scope == "global", ramp=ramp)
        if not ramp or context.structure_only:
            masks.finish()
        done = fine_tuned(pipeline, model, context, self, masks)
        masks.finish()  # a training that ended early may not have come that far
        as_module(model).eval()
        return done

    def _score(self, model: Model, context: Context) -> Callable[[str, Tensor], Tensor]:
        if self.by == "random":
            draws = {name: torch.rand(weight.shape) for name, weight in matrices(model).items()}
            return lambda name, weight: draws[name]
        if self.by == "taylor" and not context.structure_only:
            found = squared_gradients(model, context.split, context.fit_of(model), BATCHES)
            return lambda name, weight: weight.square() * found[name] if name in found else torch.zeros_like(weight)
        return lambda name, weight: weight.abs()

    @classmethod
    def variants(cls, context: Context) -> Sequence[Technique]:
        model = context.original.main.model
        if isinstance(model, Solved) or not matrices(model):
            return []
        return [cls(**PRESETS["light"]), cls(sparsity=0.8, schedule="cubic")]

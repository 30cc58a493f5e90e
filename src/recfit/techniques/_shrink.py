"""What the techniques that remove units share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Protocol

from recfit.models import Model, Solved, as_module
from recfit.pipeline import Pipeline
from recfit.techniques import Context, Technique, describe
from recfit.techniques._lessons import lesson
from recfit.training import Hold, evaluate
from recfit.types import Unsupported

BATCHES = 8  # of the training, whose gradients and activations tell what matters
SCOPES = ("layer", "global")  # what competes: the units or weights of a layer, or of the model
# How the original scenario's light pruning, in which 40 % leave, is repaired.
LIGHT: Mapping[str, Any] = {"epochs": 2, "data_fraction": 0.1, "learning_rate": 1e-4}

NOT_BETTER = "no epoch of its fine-tuning was as good as the start, which was kept"


class FineTuning(Technique, Protocol):
    """A technique with settings of the repair after units were removed."""

    @property
    def epochs(self) -> int: ...
    @property
    def data_fraction(self) -> float: ...
    @property
    def learning_rate(self) -> float: ...


def size_of(model: Model, axis: str) -> int:
    """How many units `axis` has; a model without it refuses."""
    axes = model.axes()
    if axis not in axes:
        raise Unsupported(f"{model.kind} has no axis {axis!r}; it has: {', '.join(axes) or 'none'}")
    return axes[axis]


def fine_tuned(
    pipeline: Pipeline,
    model: Model,
    context: Context,
    settings: FineTuning,
    hold: Hold | None = None,
    *,
    or_start: bool = True,
    turn: tuple[int, int] = (1, 1),
) -> Pipeline:
    """`pipeline` with the shrunk `model`, fine-tuned for `settings.epochs` (0 leaves it as it was cut) under `hold`.

    A solved model stays as it was cut: solving it again would throw away what was kept. Any other learns from the original
    too, where that has a `lesson` for it. Where no epoch is as good as the start, that is left, `or_start`, and noted: but
    under a `hold`, or where training is for something that NDCG@10 does not tell. `turn` (k, n) is the k-th of n rounds that
    share the epochs.
    """
    number, rounds = turn
    if settings.epochs > 0 and not isinstance(model, Solved):
        keeps = or_start and hold is None and not context.structure_only
        start = {name: part.clone() for name, part in as_module(model).state_dict().items()} if keeps else {}
        before = _ndcg(model, context) if keeps else 0.0
        context.train(
            model,
            distill=lesson(context, model),
            hold=hold,
            epochs=-(-settings.epochs // rounds),
            data_fraction=settings.data_fraction,
            learning_rate=settings.learning_rate,
        )
        if keeps and before > _ndcg(model, context):
            as_module(model).load_state_dict(start)
            told = describe(settings) + (f", round {number} of {rounds}" if rounds > 1 else "")
            pipeline = replace(pipeline, notes=(*pipeline.notes, f"{told}: {NOT_BETTER}"))
    return pipeline.with_main(replace(pipeline.main, model=model))


def _ndcg(model: Model, context: Context) -> float:
    return evaluate(model, context.split.validation)["ndcg@10"]

"""The loss of one batch, for each kind of model and teacher."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recfit.models import Causal, Encoder, Model, Ranker, as_module, is_identity
from recfit.training.batches import Batch, inputs_for
from recfit.training.losses import candidate_loss, catalogue_loss, sampled_loss
from recfit.training.negatives import Unseen
from recfit.training.settings import Distill
from recfit.training.teaching import Lesson, Teaching
from recfit.types import ConfigError

HINT = "hint_map"  # of a student, while it trains: its vectors as its teacher's


@dataclass(frozen=True)
class Step:
    """How `model` learns from a batch: `loss` is ce, sampled or bce, `dtype` what products are computed in, `unseen` what a
    ranker's negatives are drawn from."""

    model: Model
    loss: str
    negatives: int
    dtype: torch.dtype
    teaching: Teaching | None = None
    unseen: Unseen | None = None

    def __call__(self, batch: Batch) -> Tensor:
        with self._precision():
            widths = getattr(self.model.config, "widths", ())
            return self._nested(batch, widths) if widths else self._loss(batch)

    def of_targets(self, batch: Batch) -> Tensor:
        """The loss of the targets alone, also of a model that answers every prefix."""
        with self._precision():
            return self._candidates(batch) if isinstance(self.model, Ranker) else self._newest(batch)

    def _precision(self) -> torch.autocast:
        return torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.dtype == torch.bfloat16)

    def _loss(self, batch: Batch) -> Tensor:
        if isinstance(self.model, Ranker):
            return self._candidates(batch)
        return self._positions(batch) if isinstance(self.model, Causal) else self._newest(batch)

    def _nested(self, batch: Batch, widths: Sequence[int]) -> Tensor:
        """The mean of the loss with whole item vectors and that with one of `widths` of their leading numbers."""
        model: Any = self.model
        whole = self._loss(batch)
        model.items.limit = widths[int(torch.randint(len(widths), ()))]
        try:
            return (whole + self._loss(batch)) / 2
        finally:
            model.items.limit = None

    def _positions(self, batch: Batch) -> Tensor:
        """Every prefix of the window has an answer and what followed it."""
        model: Any = self.model
        history = batch.window[:, -model.max_history - 1 : -1]
        real = history > 0
        vectors = model.states(history)[real].float()
        targets = batch.window[:, -history.shape[1] :][real] - 1
        if self.teaching is None:
            return self._own(vectors, targets)
        if (lesson := self.teaching.positions(batch, real)) is not None:
            return self._own(vectors, targets, lesson)
        # The teacher can't answer every prefix, so only the newest position hears it.
        ends = real.sum(1).cumsum(0) - 1
        return self._own(vectors, targets) + self._own(vectors[ends], targets[ends], self.teaching.newest(batch), 0.0)

    def _newest(self, batch: Batch) -> Tensor:
        model: Any = self.model
        vectors = model.encode(**inputs_for(self.model, batch.user, batch.history)).float()
        return self._own(vectors, batch.target - 1, self.teaching.newest(batch) if self.teaching else None)

    def _own(
        self, vectors: Tensor, targets: Tensor, lesson: Lesson | None = None, weight: float | None = None
    ) -> Tensor:
        table = self._table()
        if self.loss == "sampled":
            return sampled_loss(vectors, table, targets, torch.randint(len(table), (self.negatives,)))
        own = 1.0 if self.teaching is None else self.teaching.distill.beta
        weight, opinion = own if weight is None else weight, None if lesson is None else lesson.opinion
        loss = catalogue_loss(vectors, table, targets, weight=weight, soft=opinion, dtype=self.dtype)
        if lesson is None or lesson.vectors is None or self.teaching is None:
            return loss
        hinted = getattr(self.model, HINT)(vectors).float()
        return loss + self.teaching.distill.hint * F.mse_loss(hinted, lesson.vectors)

    def _table(self) -> Tensor:
        model: Any = self.model
        table: Tensor = model.item_vectors()
        return table.float()

    def _candidates(self, batch: Batch) -> Tensor:
        """The target beside random items that the user has no event of, new ones for each request."""
        model: Any = self.model
        assert self.unseen is not None, "a ranker's step is told what its users have not seen"
        items = torch.cat((batch.target[:, None], self.unseen.draw(batch.user, self.negatives)), dim=1)
        given = model.score(items, **inputs_for(model, batch.user, batch.history)).float()
        own = candidate_loss(given, self.loss)
        if self.teaching is None:
            return own
        distill = self.teaching.distill
        return distill.beta * own + distill.alpha * self.teaching.of_candidates(model, batch, items, given)


def longest_window(model: Model, distill: Distill | None) -> int:
    """Events before the target that a batch must hold. A known answer needs no more than the place of the newest."""
    if distill is None or not distill.cache:
        return max(model.max_history, 0 if distill is None else distill.teacher.max_history)
    return max(model.max_history, int("history" in distill.teacher.inputs))


def check_trainable(model: Model, loss: str, distill: Distill | None) -> None:
    """Raise ConfigError for a model that gradient steps can't train, or not by this loss and teacher."""
    if not any(weight.requires_grad for weight in as_module(model).parameters()):
        raise ConfigError(f"{model.kind} has no weights to train and no solve(split); give it one of the two")
    if isinstance(model, Encoder) and is_identity(model):
        raise ConfigError(f"{model.kind} scores items directly; give it solve(split) or an item table")
    if distill is None or isinstance(model, Ranker):
        if distill is not None and distill.hint:
            raise ConfigError(f"distill.hint = {distill.hint:g}, but {model.kind} has no vectors to learn; set it to 0")
        return
    if loss == "sampled":
        raise ConfigError("fit.loss = 'sampled' can't be distilled into an encoder; use loss = 'ce'")


@contextmanager
def hinted(model: Model, distill: Distill | None) -> Iterator[None]:
    """`model` with a linear map from its vectors to its teacher's, which learns along and is dropped afterwards."""
    if distill is None or not distill.hint or isinstance(model, Ranker):
        yield
        return
    student, teacher = (part.item_vectors().shape[1] for part in (model, distill.teacher))  # type: ignore[attr-defined]
    module = as_module(model)
    module.add_module(HINT, nn.Linear(student, teacher, bias=False))
    try:
        yield
    finally:
        delattr(module, HINT)

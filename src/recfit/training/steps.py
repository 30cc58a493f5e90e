"""The loss of one batch, for each kind of model and teacher."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from recfit.models import Causal, Encoder, Model, Ranker, as_module, is_identity, scores
from recfit.training.batches import Batch, inputs_for
from recfit.training.losses import Soft, candidate_loss, catalogue_loss, divergence, sampled_loss
from recfit.training.settings import Distill
from recfit.types import ConfigError


@dataclass(frozen=True)
class Step:
    """How `model` learns from a batch: `loss` is ce, sampled or bce, `dtype` what products are computed in."""

    model: Model
    loss: str
    negatives: int
    dtype: torch.dtype
    distill: Distill | None = None

    def __post_init__(self) -> None:
        if self.distill is not None and self.loss == "sampled" and not isinstance(self.model, Ranker):
            raise ConfigError("fit.loss = 'sampled' can't be distilled into an encoder; use loss = 'ce'")

    def __call__(self, batch: Batch) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.dtype == torch.bfloat16):
            if isinstance(self.model, Ranker):
                return self._candidates(batch)
            return self._positions(batch) if isinstance(self.model, Causal) else self._newest(batch)

    def _positions(self, batch: Batch) -> Tensor:
        """Every prefix of the window has an answer and what followed it."""
        model: Any = self.model
        history = batch.window[:, -model.max_history - 1 : -1]
        real = history > 0
        vectors = model.states(history)[real].float()
        targets = batch.window[:, -history.shape[1] :][real] - 1
        if self.distill is None:
            return self._own(vectors, targets)
        teacher = self.distill.teacher
        if isinstance(teacher, Causal) and teacher.max_history >= history.shape[1]:
            return self._own(vectors, targets, self._taught_positions(batch, real))
        # The teacher can't answer every prefix, so only the newest position hears it.
        ends = real.sum(1).cumsum(0) - 1
        return self._own(vectors, targets) + self._own(vectors[ends], targets[ends], self._taught(batch), 0.0)

    def _newest(self, batch: Batch) -> Tensor:
        model: Any = self.model
        vectors = model.encode(**inputs_for(self.model, batch.user, batch.history)).float()
        return self._own(vectors, batch.target - 1, self._taught(batch) if self.distill else None)

    def _own(self, vectors: Tensor, targets: Tensor, soft: Soft | None = None, weight: float | None = None) -> Tensor:
        table = self._table()
        if self.loss == "sampled":
            return sampled_loss(vectors, table, targets, torch.randint(len(table), (self.negatives,)))
        own = 1.0 if self.distill is None else self.distill.beta
        return catalogue_loss(
            vectors, table, targets, weight=own if weight is None else weight, soft=soft, dtype=self.dtype
        )

    def _table(self) -> Tensor:
        model: Any = self.model
        table: Tensor = model.item_vectors()
        return table.float()

    @torch.no_grad()
    def _taught_positions(self, batch: Batch, real: Tensor) -> Soft:
        """A causal teacher's answers after every prefix that the student answers."""
        distill, teacher = _asked(self.distill), _asked(self.distill).teacher
        length = real.shape[1]
        history = batch.history[:, -teacher.max_history :]
        model: Any = teacher
        vectors = model.states(history)[:, -length:][real].float()
        return Soft(vectors, model.item_vectors().float(), distill.temperature, distill.alpha)

    @torch.no_grad()
    def _taught(self, batch: Batch) -> Soft:
        """Any teacher's scores of the catalogue after the whole window."""
        distill = _asked(self.distill)
        given = scores(distill.teacher, inputs_for(distill.teacher, batch.user, batch.history))
        return Soft(given.float(), None, distill.temperature, distill.alpha)

    def _candidates(self, batch: Batch) -> Tensor:
        """The target beside random items, new ones for each request."""
        model: Any = self.model
        random = torch.randint(1, model.catalogue.n_items + 1, (len(batch), self.negatives))
        items = torch.cat((batch.target[:, None], random), dim=1)
        given = model.score(items, **inputs_for(model, batch.user, batch.history)).float()
        own = candidate_loss(given, self.loss)
        if self.distill is None:
            return own
        wanted = self._taught(batch).vectors.gather(1, items - 1)
        soft = divergence(given, wanted, self.distill.temperature)
        return self.distill.beta * own + self.distill.alpha * soft


def longest_window(model: Model, distill: Distill | None) -> int:
    """Events before the target that a batch must hold."""
    return max(model.max_history, 0 if distill is None else distill.teacher.max_history)


def check_trainable(model: Model) -> None:
    """Raise ConfigError for a model that gradient steps can't train."""
    if not any(weight.requires_grad for weight in as_module(model).parameters()):
        raise ConfigError(f"{model.kind} has no weights to train and no solve(split); give it one of the two")
    if isinstance(model, Encoder) and is_identity(model):
        raise ConfigError(f"{model.kind} scores items directly; give it solve(split) or an item table")


def _asked(distill: Distill | None) -> Distill:
    assert distill is not None
    return distill

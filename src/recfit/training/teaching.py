"""What a teacher says of a batch: asked now, or looked up among its answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from recfit.models import Causal, Encoder, Model, Ranker, is_identity, scores
from recfit.training.answers import Answers, Wanted, answers
from recfit.training.batches import Batch, Sequences, inputs_for
from recfit.training.losses import Opinion, Soft, Top, divergence
from recfit.training.settings import Distill, Fit, has_vectors

RANKS = 10.0  # places over which the weight of a ranked item falls to 1 / e


@dataclass(frozen=True)
class Lesson:
    """Of R requests: the teacher's `opinion` of the items, and its `vectors` [R, d] where the student is given hints."""

    opinion: Opinion
    vectors: Tensor | None


@dataclass(frozen=True)
class Teaching:
    """A teacher, how it is listened to, and its `answers` where they were computed before."""

    distill: Distill
    answers: Answers | None = None

    @torch.no_grad()
    def positions(self, batch: Batch, real: Tensor) -> Lesson | None:
        """What the teacher says after every one of the last events of each history that is `real` (bool [B, L]).

        None where it has to be asked and cannot answer every prefix.
        """
        length = real.shape[1]
        if self.answers is not None:
            return self._known(self.answers, self.answers.lines(batch, length)[real])
        teacher = self.distill.teacher
        if not isinstance(teacher, Causal) or self.distill.teacher.max_history < length:
            return None
        history = batch.history[:, -self.distill.teacher.max_history :]
        vectors = teacher.states(history)[:, -length:][real].float()
        return self._told(vectors, _table(self.distill.teacher))

    @torch.no_grad()
    def newest(self, batch: Batch) -> Lesson:
        """What the teacher says after the whole window."""
        if self.answers is not None:
            return self._known(self.answers, self.answers.lines(batch, 1)[:, 0])
        teacher = self.distill.teacher
        given = inputs_for(teacher, batch.user, batch.history)
        if not has_vectors(teacher):
            return self._told(scores(teacher, given).float(), None)
        return self._told(cast(Encoder, teacher).encode(**given).float(), _table(teacher))

    def of_candidates(self, student: Ranker, batch: Batch, items: Tensor, given: Tensor) -> Tensor:
        """The lesson's loss for a student that scored the candidates `items` [B, C] with `given`.

        A teacher that is asked scores just these. Its softmax, not its sigmoids as soft labels, whatever the student's own
        loss is: those would hold the student to the level of the scores too, which ranks nothing. Of known answers the
        student scores the best items instead.
        """
        temperature = self.distill.temperature
        if self.answers is None:
            with torch.no_grad():
                wanted = _scores_of(self.distill.teacher, batch, items).float()
            return divergence(given, wanted, temperature)
        best, logs = self.answers.best(self.answers.lines(batch, 1)[:, 0])
        model: Any = student
        found = model.score(best + 1, **inputs_for(model, batch.user, batch.history)).float()
        if self.distill.loss == "ranking":
            return -(_ranked(best).exp() * F.logsigmoid(found)).sum(1).mean()
        return divergence(found, logs * temperature, temperature)

    def _told(self, vectors: Tensor, table: Tensor | None) -> Lesson:
        soft = Soft(vectors, table, self.distill.temperature, self.distill.alpha)
        return Lesson(soft, vectors if self.distill.hint else None)

    def _known(self, answers: Answers, lines: Tensor) -> Lesson:
        distill, (items, logs) = self.distill, answers.best(lines)
        if distill.loss == "ranking":  # a distribution, not positives: see `Distill`
            opinion = Top(items, _ranked(items), 1.0, distill.alpha)
        else:
            opinion = Top(items, logs, distill.temperature, distill.alpha)
        return Lesson(opinion, answers.vectors(lines) if distill.hint else None)


def teaching_of(distill: Distill, sequences: Sequences, users: Tensor, fit: Fit, *, progress: bool) -> Teaching:
    """The teaching of `users`; computes the teacher's answers where they are wanted and not known yet."""
    if not distill.cache:
        return Teaching(distill)
    brief = fit.dtype() == torch.bfloat16
    wanted = Wanted(distill.cache, distill.temperature, fit.reverse > 0, distill.hint > 0, brief)
    return Teaching(distill, answers(distill.teacher, sequences, users, wanted, distill.folder, progress=progress))


def _ranked(items: Tensor) -> Tensor:
    """Logs of the weights `exp(-rank / RANKS)` of items [R, n] that stand in order, scaled to sum to 1 in each row."""
    return (-torch.arange(items.shape[1]) / RANKS).log_softmax(0).expand(len(items), -1)


def _scores_of(teacher: Model, batch: Batch, items: Tensor) -> Tensor:
    """A teacher's scores of candidate tokens [B, C]."""
    model: Any = teacher
    given = inputs_for(teacher, batch.user, batch.history)
    if isinstance(teacher, Ranker):
        found: Tensor = model.score(items, **given)
        return found
    vectors: Tensor = model.encode(**given)
    if is_identity(teacher):
        return vectors.gather(1, items - 1)
    return (_table(teacher)[items - 1] @ vectors[:, :, None])[..., 0]


def _table(teacher: Model) -> Tensor:
    return cast(Encoder, teacher).item_vectors().float()

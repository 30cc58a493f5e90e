"""What a training can be told, and what it tells back."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

from recfit.measure.machine import halves_fast
from recfit.models import Encoder, Model, Ranker, is_identity
from recfit.options import check_choice, check_ranges
from recfit.types import ConfigError

LOSSES = ("auto", "ce", "sampled", "bce")
PRECISIONS = ("auto", "fp32", "bf16")
LESSONS = ("kl", "ranking")


@dataclass(frozen=True)
class Fit:
    """Settings of one training.

    Training ends after `epochs`, after `patience` epochs without a better validation NDCG@10, or after `max_minutes`
    (0: no limit; with one, the result depends on the machine's speed), or after a quarter of that if no epoch reached
    `hopeless`. The learning rate rises over `warmup` steps and falls to 0 along a cosine to the end. `loss`: `ce`
    is the softmax over the catalogue, `sampled` that over the target and `negatives` random items, `bce` the binary
    one for rankers, whose random items are none that the user has an event of; `auto` is `ce`, for rankers `bce`.
    `data_fraction` is the share of users that is learned from, `epoch_share` the share of their examples, drawn anew, that
    makes an epoch: large data need not wait for a validation and a checkpoint until all of it was seen. `reverse` is the
    share of windows that are read backwards, which helps small data whose order within a visit is chance.
    `threads` 0 leaves torch's number. `precision` `auto` is bf16 where the processor is fast in it (`halves_fast`).
    """

    epochs: int = 100
    patience: int = 15
    batch_size: int = 128
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    warmup: int = 50
    loss: str = "auto"
    negatives: int = 256
    seed: int = 0
    threads: int = 0
    precision: str = "auto"
    data_fraction: float = 1.0
    epoch_share: float = 1.0
    reverse: float = 0.0
    max_minutes: float = 0.0
    hopeless: float = 0.0

    def __post_init__(self) -> None:
        check_choice("fit.loss", self.loss, LOSSES)
        check_choice("fit.precision", self.precision, PRECISIONS)
        check_ranges("fit", self, epochs=(1, 1e6), patience=(1, 1e6), batch_size=(1, 1e6), learning_rate=(1e-9, 10))
        check_ranges("fit", self, weight_decay=(0, 10), warmup=(0, 1e6), negatives=(1, 1e6), threads=(0, 1024))
        check_ranges("fit", self, data_fraction=(1e-6, 1), epoch_share=(1e-6, 1), reverse=(0, 1))
        check_ranges("fit", self, max_minutes=(0, 1e6), hopeless=(0, 1), seed=(0, 2**31))

    def loss_for(self, model: Model) -> str:
        """The loss that `auto` means for `model`; ConfigError where the named one does not fit it."""
        ranker = isinstance(model, Ranker)
        if self.loss == "auto":
            return "bce" if ranker else "ce"
        if self.loss == ("ce" if ranker else "bce"):
            allowed = "bce, sampled" if ranker else "ce, sampled"
            raise ConfigError(f"fit.loss = {self.loss!r} does not fit {model.kind}; allowed: auto, {allowed}")
        return self.loss

    def dtype(self) -> torch.dtype:
        """What matrix products are computed in."""
        halves = self.precision == "bf16" or (self.precision == "auto" and halves_fast())
        return torch.bfloat16 if halves else torch.float32


@dataclass(frozen=True)
class Distill:
    """Learn from `teacher` too: `alpha * lesson + beta * own loss + hint * feature loss`.

    The lesson is `T^2 * KL(teacher || student at T)`, T the `temperature` (`kl`; Hinton, Vinyals and Dean, arXiv
    1503.02531), or the order of the teacher's best items, which weigh `exp(-rank / 10)` (`ranking`). A ranker takes these
    as positives of its sigmoids (Tang and Wang, KDD 2018, arXiv 1809.07428, without their second weight); for an encoder
    they are a distribution that its softmax is to meet, as in ListNet (Cao et al., ICML 2007): log-sigmoids of its scores
    could be raised all at once, which its own softmax does not notice. The feature loss is the squared distance of the
    teacher's vector from a learned linear map of the student's (Romero et al., arXiv 1412.6550). `cache` is how many items
    of each of the teacher's answers are computed once and kept in `folder` (in memory without one); 0 asks the teacher in
    every step: for the scores of the whole catalogue, or where the student is a ranker for those of the candidates in its
    batch.
    """

    teacher: Model
    alpha: float = 0.7
    beta: float = 0.3
    temperature: float = 2.0
    loss: str = "kl"
    hint: float = 0.0
    cache: int = 0
    folder: Path | None = None

    def __post_init__(self) -> None:
        check_choice("distill.loss", self.loss, LESSONS)
        check_ranges("distill", self, alpha=(0, 1e3), beta=(0, 1e3), temperature=(1e-2, 1e3), hint=(0, 1e3))
        check_ranges("distill", self, cache=(0, 1e6))
        if self.loss == "ranking" and not self.cache:
            raise ConfigError(
                "distill.loss = 'ranking' learns from the teacher's best items; set cache to their number"
            )
        if self.hint and not has_vectors(self.teacher):
            raise ConfigError(
                f"distill.hint = {self.hint:g}, but {self.teacher.kind} has no vectors to teach; set it to 0"
            )

    @property
    def lesson(self) -> tuple[float | str, ...]:
        """Everything but the teacher and where its answers are kept."""
        return self.alpha, self.beta, self.temperature, self.loss, self.hint, self.cache


def has_vectors(model: Model) -> bool:
    """Whether requests become vectors of the model's own."""
    return isinstance(model, Encoder) and not is_identity(model)


class Hold(Protocol):
    """Keeps the weights of a model to a rule while they are trained."""

    def begin(self) -> None:
        """Called when the weights that the training starts or goes on from are there."""
        ...

    def after_step(self, through: float) -> None:
        """Called after every step, at the share `through` of the training."""
        ...

    def settled(self, through: float) -> bool:
        """Whether the rule is in full force at this share of the training; no epoch before that can be the best."""
        ...


@dataclass(frozen=True)
class Epoch:
    """One pass over the training data: mean loss, validation NDCG@10, seconds since the start."""

    loss: float
    ndcg: float
    seconds: float


@dataclass(frozen=True)
class Trained:
    """How a training went; `best` is the index of the epoch whose weights the model now has."""

    epochs: tuple[Epoch, ...]
    best: int
    ndcg: float
    seconds: float
    precision: str

"""What a training can be told, and what it tells back."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from recfit.models import Model, Ranker
from recfit.models._options import check_choice, check_ranges
from recfit.types import ConfigError

LOSSES = ("auto", "ce", "sampled", "bce")
PRECISIONS = ("auto", "fp32", "bf16")


@dataclass(frozen=True)
class Fit:
    """Settings of one training.

    Training ends after `epochs`, after `patience` epochs without a better validation NDCG@10, or after `max_minutes`
    (0: no limit; with one, the result depends on the machine's speed), or after a quarter of that if no epoch reached
    `hopeless`. The learning rate rises over `warmup` steps and falls to 0 along a cosine to the end. `loss`: `ce`
    is the softmax over the catalogue, `sampled` that over the target and `negatives` random items, `bce` the binary
    one for rankers; `auto` is `ce`, for rankers `bce`. `data_fraction` is the share of users that is learned from,
    `epoch_share` the share of their examples, drawn anew, that makes an epoch: large data need not wait for a validation
    and a checkpoint until all of it was seen. `reverse` is the share of windows that are read backwards, which helps small
    data whose order within a visit is chance.
    `threads` 0 leaves torch's number. `precision` `auto` is bf16 where the processor computes in it.
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
        fast = bool(torch.cpu.get_capabilities().get("avx512_bf16", False))
        return torch.bfloat16 if self.precision == "bf16" or (self.precision == "auto" and fast) else torch.float32


@dataclass(frozen=True)
class Distill:
    """Learn from `teacher` too: `alpha * T^2 * KL(teacher || student at T) + beta * own loss`, T the `temperature`
    (Hinton, Vinyals and Dean, arXiv 1503.02531)."""

    teacher: Model
    alpha: float = 0.7
    beta: float = 0.3
    temperature: float = 2.0

    def __post_init__(self) -> None:
        check_ranges("distill", self, alpha=(0, 1e3), beta=(0, 1e3), temperature=(1e-2, 1e3))


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

"""Losses over the catalogue and over sampled candidates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

NUMBERS_AT_ONCE = 1 << 20
SMALLEST = 1e-6  # probability of what is left; sums of float32 are not exacter
TINIEST = 1e-30  # probability whose logarithm is taken


class Opinion(Protocol):
    """What a teacher says of R rows."""

    def divergence(self, scores: Tensor, rows: slice) -> tuple[Tensor, Tensor]:
        """Sum over `rows` of `weight * T^2 * KL(teacher || student at T)` and its gradient with respect to the student's
        `scores`, which are left as they are."""
        ...


@dataclass(frozen=True)
class Soft:
    """A teacher's opinion of the whole catalogue: its scores are `vectors @ table.T`, or `vectors` [R, N] where `table` is
    None."""

    vectors: Tensor
    table: Tensor | None
    temperature: float
    weight: float

    def scores(self, rows: slice) -> Tensor:
        part = self.vectors[rows]
        return (part if self.table is None else part @ self.table.T).float()

    def divergence(self, scores: Tensor, rows: slice) -> tuple[Tensor, Tensor]:
        t = self.temperature
        student = (scores / t).log_softmax(1)
        teacher = (self.scores(rows) / t).log_softmax(1)
        wanted = teacher.exp()
        loss = (wanted * (teacher - student)).double().sum() * self.weight * t * t
        return loss, (student.exp() - wanted).mul_(self.weight * t)


@dataclass(frozen=True)
class Top:
    """A teacher's opinion of the `items` [R, n] that it likes best, `logs` [R, n] of their probabilities at `temperature`;
    all others together have the rest, however the student spreads it over them."""

    items: Tensor
    logs: Tensor
    temperature: float
    weight: float

    def divergence(self, scores: Tensor, rows: slice) -> tuple[Tensor, Tensor]:
        t, items, logs = self.temperature, self.items[rows], self.logs[rows]
        wanted = logs.exp()
        slope = scores / t
        slope.sub_(slope.amax(1, keepdim=True)).exp_()
        total = slope.sum(1, keepdim=True)
        given = slope.gather(1, items) / total
        others = (1 - wanted.sum(1, keepdim=True)).clamp(min=0)
        left = (1 - given.sum(1, keepdim=True)).clamp(min=SMALLEST)
        parts = (wanted * (logs - given.clamp(min=TINIEST).log())).sum(), torch.xlogy(others, others / left).sum()
        scale = self.weight * t
        slope.mul_((1 - others / left) * scale / total).scatter_(1, items, (given - wanted) * scale)
        return (parts[0].double() + parts[1].double()) * scale * t, slope


def catalogue_loss(
    vectors: Tensor,
    table: Tensor,
    targets: Tensor,
    *,
    weight: float = 1.0,
    soft: Opinion | None = None,
    dtype: torch.dtype,
) -> Tensor:
    """Mean over rows of `weight * CE(scores, target)` plus the divergence from `soft`.

    `vectors` [R, d], `table` [N, d], `targets` item rows [R]; products in `dtype`. The R x N scores are never all held.
    """
    loss: Tensor = _CatalogueLoss.apply(vectors, table, targets, weight, soft, dtype)  # type: ignore[no-untyped-call]
    return loss


class _CatalogueLoss(torch.autograd.Function):
    """Computes the gradients along with the loss, block of rows by block of rows, while the scores are in the cache."""

    @staticmethod
    def forward(
        ctx: Any,
        vectors: Tensor,
        table: Tensor,
        targets: Tensor,
        weight: float,
        soft: Opinion | None,
        dtype: torch.dtype,
    ) -> Tensor:
        vectors_low, table_low = vectors.to(dtype), table.to(dtype)
        vectors_grad = torch.empty(vectors.shape)
        table_grad = torch.zeros(table.shape)
        total = torch.zeros((), dtype=torch.float64)
        step = max(16, NUMBERS_AT_ONCE // len(table))
        for start in range(0, len(vectors), step):
            rows = slice(start, start + step)
            scores = (vectors_low[rows] @ table_low.T).float()
            loss, slope = _both(scores, targets[rows], weight, soft, rows)
            total += loss
            slope_low = slope.to(dtype)
            vectors_grad[rows] = (slope_low @ table_low).float()
            table_grad += (slope_low.T @ vectors_low[rows]).float()
        count = max(1, len(vectors))
        ctx.save_for_backward(vectors_grad.div_(count).to(vectors.dtype), table_grad.div_(count).to(table.dtype))
        return (total / count).float()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        vectors_grad, table_grad = ctx.saved_tensors
        return vectors_grad * grads[0], table_grad * grads[0], None, None, None, None


def _both(scores: Tensor, targets: Tensor, weight: float, soft: Opinion | None, rows: slice) -> tuple[Tensor, Tensor]:
    """The loss of `rows` and its gradient with respect to their scores, which are overwritten."""
    if soft is None:
        return _hard(scores, targets, weight)
    loss, slope = soft.divergence(scores, rows)
    if weight == 0.0:
        return loss, slope
    own, hard = _hard(scores, targets, weight)
    return loss + own, slope.add_(hard)


def _hard(scores: Tensor, targets: Tensor, weight: float) -> tuple[Tensor, Tensor]:
    """Sum of the weighted cross-entropies and its gradient with respect to the scores, which are overwritten."""
    rows = torch.arange(len(scores))
    slope = scores.sub_(scores.amax(1, keepdim=True))
    right = slope[rows, targets]
    total = slope.exp_().sum(1, keepdim=True)
    loss = (total[:, 0].log() - right).double().sum() * weight
    slope.mul_(weight / total)
    slope[rows, targets] -= weight
    return loss, slope


def sampled_loss(vectors: Tensor, table: Tensor, targets: Tensor, negatives: Tensor) -> Tensor:
    """Mean cross-entropy of the target against `negatives` [K] item rows that all rows share; hits are masked."""
    right = (vectors * table[targets]).sum(1, keepdim=True)
    wrong = vectors @ table[negatives].T
    wrong = wrong.masked_fill(negatives[None] == targets[:, None], -1e9)
    return -torch.cat((right, wrong), 1).float().log_softmax(1)[:, 0].mean()


def candidate_loss(scores: Tensor, kind: str) -> Tensor:
    """Loss of candidate scores [B, 1 + K] whose first column is the true one: `bce` or `sampled` (softmax)."""
    if kind == "sampled":
        return -scores.log_softmax(1)[:, 0].mean()
    truth = torch.zeros_like(scores)
    truth[:, 0] = 1.0
    return F.binary_cross_entropy_with_logits(scores, truth, reduction="none").sum(1).mean()


def divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Mean over rows of `T^2 * KL(teacher || student at T)` of candidate scores [B, C]."""
    wanted = (teacher / temperature).log_softmax(1)
    given = (student / temperature).log_softmax(1)
    return F.kl_div(given, wanted, reduction="batchmean", log_target=True) * temperature**2

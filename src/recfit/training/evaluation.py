"""Ranking quality of a torch model, for early stopping. What is reported is measured on the exported bundle."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from recfit.models import Model, as_module, scores
from recfit.training.batches import inputs_for
from recfit.types import IntArray, Queries

QUERIES_AT_ONCE = 256


@dataclass(frozen=True)
class _Part:
    """Some queries as tensors; `seen` and `wanted` are pairs (line, item row), [2, n]."""

    user: Tensor
    history: Tensor
    seen: Tensor
    wanted: Tensor


class Evaluation:
    """`queries` made ready once, to be asked of a model again and again: HR and NDCG at `k`, seen items removed.

    With `sampled` each query ranks its targets among that many random unseen items instead of the catalogue, which only
    serves to check published numbers (Krichene and Rendle, KDD 2020).
    """

    def __init__(self, model: Model, queries: Queries, k: int = 10, sampled: int | None = None) -> None:
        self.k, self.sampled, self.count, self.n_items = k, sampled, len(queries), model.catalogue.n_items
        order = np.argsort(queries.history.sizes, kind="stable")
        length = max(1, model.max_history)
        chunks = np.array_split(order, max(1, -(-len(order) // QUERIES_AT_ONCE))) if self.count else []
        self.parts = [_part(queries.take(chunk), length) for chunk in chunks]

    @torch.inference_mode()
    def __call__(self, model: Model) -> dict[str, float]:
        """The means over all queries by metric name."""
        as_module(model).eval()
        draws = np.random.default_rng(0)
        sums = torch.zeros(2, dtype=torch.float64)
        for part in self.parts:
            given = scores(model, inputs_for(model, part.user, part.history)).float().clone()
            given[part.seen[0], part.seen[1]] = -torch.inf
            if self.sampled is not None:
                given = _only_sampled(given, part.wanted, self.sampled, draws)
            sums += _gains(given, part.wanted, self.k)
        hits, gains = (sums / max(1, self.count)).tolist()
        return {f"hr@{self.k}": hits, f"ndcg@{self.k}": gains}


def evaluate(model: Model, queries: Queries, k: int = 10, sampled: int | None = None) -> dict[str, float]:
    """HR@k and NDCG@k of `model`, see `Evaluation`."""
    return Evaluation(model, queries, k, sampled)(model)


def _part(queries: Queries, length: int) -> _Part:
    longest = min(length, max(1, int(queries.history.sizes.max())))
    return _Part(
        torch.from_numpy(queries.user).long() + 1,
        torch.from_numpy(queries.history.padded(longest)),
        _pairs(queries.history.sizes, queries.history.values),
        _pairs(queries.targets.sizes, queries.targets.values),
    )


def _pairs(sizes: IntArray, values: np.ndarray) -> Tensor:
    lines = np.repeat(np.arange(len(sizes)), sizes)
    return torch.from_numpy(np.stack((lines, values.astype(np.int64))))


def _only_sampled(given: Tensor, wanted: Tensor, count: int, draws: np.random.Generator) -> Tensor:
    """`given` with -inf everywhere but at the targets and at `count` random unseen items of each line."""
    noise = torch.from_numpy(draws.random(given.shape, dtype=np.float32))
    noise[given == -torch.inf] = -1.0
    noise[wanted[0], wanted[1]] = -1.0
    chosen = torch.zeros_like(given, dtype=torch.bool).scatter(1, noise.topk(min(count, given.shape[1])).indices, True)
    chosen[wanted[0], wanted[1]] = True
    return given.masked_fill(~chosen, -torch.inf)


def _gains(given: Tensor, wanted: Tensor, k: int) -> Tensor:
    """Sums over lines of hit and of NDCG with the ideal over min(k, relevant), [2]."""
    lines, width = len(given), min(k, given.shape[1])
    best = given.topk(width).indices
    relevant = torch.zeros_like(given, dtype=torch.bool)
    relevant[wanted[0], wanted[1]] = True
    hits = relevant.gather(1, best) & (given.gather(1, best) > -torch.inf)
    discounts = 1.0 / torch.log2(torch.arange(2, k + 2, dtype=torch.float64))
    ideal = torch.cat((torch.zeros(1, dtype=torch.float64), discounts.cumsum(0)))
    counts = torch.bincount(wanted[0], minlength=lines).clamp(max=k)
    ndcg = (hits * discounts[:width]).sum(1) / ideal[counts].clamp(min=1e-12)
    return torch.stack((hits.any(1).double().sum(), ndcg.sum()))

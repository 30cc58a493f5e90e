"""Weighted matrix factorization for implicit data (Hu, Koren and Volinsky, ICDM 2008): item factors from `implicit`,
the request's vector by fold-in, so that unknown users and fresh events need no training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from recfit.models import Catalogue, Model, rebuilt
from recfit.models._axes import check_keep, no_axis
from recfit.models._item_item import binary_matrix
from recfit.models._layers import embed
from recfit.options import check_ranges
from recfit.types import Split


@dataclass(frozen=True)
class Config:
    """Confidence of a chosen item is 1 + `alpha`; `steps` conjugate-gradient steps solve for the request's vector."""

    embedding_dim: int = 64
    alpha: float = 10.0
    l2: float = 10.0
    sweeps: int = 20
    steps: int = 12
    max_history: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        check_ranges("model.als", self, embedding_dim=(1, 4096), alpha=(0, 1e6), l2=(1e-6, 1e9), sweeps=(1, 1000))
        check_ranges("model.als", self, steps=(1, 200), max_history=(1, 1e5))


class Als(nn.Module):
    """`factors` float [n_items, d]; `gram` their Gram matrix and `start` its regularized inverse, both [d, d]."""

    kind: ClassVar[str] = "als"
    inputs = ("history",)
    factors: Tensor
    gram: Tensor
    start: Tensor

    def __init__(self, config: Config, catalogue: Catalogue) -> None:
        super().__init__()
        self.config, self.catalogue, self.max_history = config, catalogue, config.max_history
        d = config.embedding_dim
        self.register_buffer("factors", torch.zeros(catalogue.n_items, d))
        self.register_buffer("gram", torch.zeros(d, d))
        self.register_buffer("start", torch.zeros(d, d))

    def solve(self, split: Split) -> None:
        from implicit.als import AlternatingLeastSquares
        from threadpoolctl import threadpool_limits

        config = self.config
        with threadpool_limits(1, user_api="blas"):  # implicit parallelizes by itself and slows down under BLAS threads
            solver = AlternatingLeastSquares(
                factors=config.embedding_dim,
                regularization=config.l2,
                alpha=config.alpha + 1,
                iterations=config.sweeps,
                num_threads=torch.get_num_threads(),
                random_state=config.seed,
            )
            solver.fit(binary_matrix(split.train), show_progress=False)
        self.use(torch.from_numpy(solver.item_factors))

    def use(self, factors: Tensor) -> None:
        """Take these item factors [n_items, d] and prepare the fold-in."""
        self.factors.copy_(factors)
        self.gram.copy_(factors.T @ factors)
        self.start.copy_(torch.linalg.inv(self.gram + self.config.l2 * torch.eye(len(self.gram))))

    def encode(self, history: Tensor) -> Tensor:
        return self.encode_vectors(history, embed(history, self.factors))

    def encode_vectors(self, history: Tensor, vectors: Tensor) -> Tensor:
        """Solve `(Y'Y + l2 I + alpha H'H) x = (1 + alpha) H'1`, H the history's factors, by conjugate gradients [B, d].

        Preconditioned with `(Y'Y + l2 I)^-1`: what is left has rank L, so that short histories converge in L + 1 steps.
        """
        vectors = vectors * (history > 0)[..., None]
        goal = (1 + self.config.alpha) * vectors.sum(1)
        answer = torch.zeros_like(goal)
        residual = goal
        direction = step = residual @ self.start
        energy = (residual * step).sum(1, keepdim=True)
        for _ in range(self.config.steps):
            image = self._system(vectors, direction)
            length = energy / ((direction * image).sum(1, keepdim=True) + 1e-20)
            answer = answer + length * direction
            residual = residual - length * image
            step = residual @ self.start
            before, energy = energy, (residual * step).sum(1, keepdim=True)
            direction = step + energy / (before + 1e-20) * direction
        return answer

    def _system(self, vectors: Tensor, direction: Tensor) -> Tensor:
        products = (vectors @ direction[:, :, None]).transpose(1, 2) @ vectors
        return direction @ self.gram + self.config.l2 * direction + self.config.alpha * products[:, 0]

    def item_vectors(self) -> Tensor:
        return self.factors

    def axes(self) -> Mapping[str, int]:
        return {"embedding_dim": self.config.embedding_dim}

    def importance(self, axis: str) -> Tensor:
        if axis != "embedding_dim":
            raise no_axis(self, axis)
        return self.factors.square().sum(0).sqrt()

    def shrink(self, axis: str, keep: Tensor) -> Model:
        check_keep(self, axis, keep)
        return self._with(self.factors[:, keep])

    def rotated(self, basis: Tensor) -> Model:
        return self._with(self.factors @ basis)

    def _with(self, factors: Tensor) -> Model:
        model = rebuilt(self, replace(self.config, embedding_dim=factors.shape[1]))
        assert isinstance(model, Als)
        model.use(factors)
        return model


def build(config: Config, catalogue: Catalogue) -> Model:
    return Als(config, catalogue)

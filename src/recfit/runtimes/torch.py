"""PyTorch eager: the reference, and the original "as the team runs it today". Needs `recfit[train]`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from recfit.runtimes import Batch, Scorer, StageSpec
from recfit.topk import Found, best
from recfit.types import BundleError, FloatArray, IntArray, Rows

if TYPE_CHECKING:
    from recfit.models import Model

GRAPHS = ("float32",)


def open_scorer(directory: Path, spec: StageSpec, threads: int) -> Scorer:
    try:
        import torch
    except ImportError as error:
        raise BundleError("this bundle runs on PyTorch, which is not installed; pip install 'recfit[train]'") from error
    from recfit import models

    torch.set_num_threads(threads)
    return TorchScorer(models.load(directory / "model"), spec)


class TorchScorer:
    """The module itself: encode, then one matrix product over the whole catalogue."""

    def __init__(self, model: Model, spec: StageSpec) -> None:
        self._model: Any = model  # `models.load` gives it in evaluation mode
        self._spec = spec

    def _inputs(self, batch: Batch) -> dict[str, Any]:
        import torch

        return {name: torch.from_numpy(array) for name, array in batch.inputs(self._spec).items()}

    def top(self, batch: Batch, k: int, gone: Sequence[Rows]) -> list[Found]:
        import torch

        from recfit import models

        with torch.inference_mode():
            scores: FloatArray = models.scores(self._model, self._inputs(batch)).numpy()
        return best(scores, k, gone)

    def rescore(self, batch: Batch, candidates: IntArray) -> FloatArray:
        import torch

        from recfit import models

        items, inputs = torch.from_numpy(np.maximum(candidates, 0)), self._inputs(batch)
        with torch.inference_mode():
            if self._spec.kind == "ranker":
                scores: FloatArray = self._model.score(items + 1, **inputs).numpy()
            elif models.is_identity(self._model):
                scores = self._model.encode(**inputs).gather(1, items).numpy()
            else:
                rows = self._model.item_vectors()[items]
                scores = (rows @ self._model.encode(**inputs)[:, :, None])[:, :, 0].numpy()
        return scores

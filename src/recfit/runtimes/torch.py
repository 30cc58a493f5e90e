"""PyTorch, eager or under `torch.compile`: the reference, and the original "as the team runs it today". Needs
`recfit[train]`, and a C++ compiler to compile."""

from __future__ import annotations

import os
import shutil
import sys
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
OPTIONS = ("compile",)
MOST_CODE = 64  # versions of a model that `compile` may make

_NOTHING = np.empty(0, np.int32)


def open_scorer(directory: Path, spec: StageSpec, threads: int) -> Scorer:
    try:
        import torch
    except ImportError as error:
        raise BundleError("this bundle runs on PyTorch, which is not installed; pip install 'recfit[train]'") from error
    from recfit import models

    torch.set_num_threads(threads)
    scorer = TorchScorer(models.load(directory / "model"), spec)
    if spec.options.get("compile"):
        if missing := no_compiler():
            raise BundleError(missing)
        try:
            scorer.compile()
        except Exception as error:  # whatever a compiler says
            raise BundleError(f"torch.compile cannot compile {directory / 'model'}: {error}") from error
    return scorer


def no_compiler() -> str:
    """What `compile` lacks on this machine, empty where it has all. The compiler is the one that PyTorch calls."""
    name = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
    if shutil.which(name):
        return ""
    return f"torch.compile needs a C++ compiler and there is no {name!r}; install it, name another in CXX, or leave out compile"


class TorchScorer:
    """The module itself: encode, then one matrix product over the whole catalogue."""

    def __init__(self, model: Model, spec: StageSpec) -> None:
        self._model: Any = model  # `models.load` gives it in evaluation mode
        self._spec = spec

    def compile(self) -> None:
        """Compile the model for every shape that it will be asked with, so that no request waits for that.

        A size of 1 gets code of its own, as do histories by how they meet the windows of a model; other sizes are free, but
        for two that are equal when they are first seen, which are taken for one.
        """
        import torch
        from torch._dynamo import config  # noqa: PLC2701 (`recompile_limit` of `torch.compile` is younger than our oldest torch)

        config.recompile_limit = MOST_CODE  # beyond its 8 a shape would run eagerly
        name = "score" if self._spec.kind == "ranker" else "encode"
        setattr(self._model, name, torch.compile(getattr(self._model, name), dynamic=True))
        columns, longest = self._model.catalogue.user_features, max(1, self._spec.max_history)
        features = 0 if columns is None else len(columns.names)
        several, wide = [size for size in range(2, 6) if size not in (features, longest)][:2]
        for count in (several, 1):
            users, codes = np.zeros(count, np.int64), np.zeros((count, features), np.int64)
            for length in range(longest, 0, -1):
                batch = Batch(users, [np.zeros(length, np.int32)] * count, codes)
                self.top(batch, 1, [_NOTHING] * count)
                for width in (wide, 1) if name == "score" else ():
                    self.rescore(batch, np.zeros((count, width), np.int64))

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

        with torch.inference_mode():
            items, inputs = torch.from_numpy(np.maximum(candidates, 0)), self._inputs(batch)
            if self._spec.kind == "ranker":
                scores: FloatArray = self._model.score(items + 1, **inputs).numpy()
            elif models.is_identity(self._model):
                scores = self._model.encode(**inputs).gather(1, items).numpy()
            else:
                rows = self._model.item_vectors()[items]
                scores = (rows @ self._model.encode(**inputs)[:, :, None])[:, :, 0].numpy()
        return scores

"""A torch module compiled ahead of time (AOTInductor) that gives the score of every item: `model.pt2`. Histories are
padded to the length it was compiled for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from recfit.runtimes import Batch, Scorer, StageSpec
from recfit.topk import Found, best
from recfit.types import FloatArray, Rows


def open_scorer(directory: Path, spec: StageSpec, threads: int) -> Scorer:
    return Compiled(directory / "model.pt2", spec, threads)


class Compiled:
    def __init__(self, path: Path, spec: StageSpec, threads: int) -> None:
        import torch

        torch.set_num_threads(threads)
        self._run = torch._inductor.aoti_load_package(str(path))
        self._spec = spec

    def top(self, batch: Batch, k: int, gone: Sequence[Rows]) -> list[Found]:
        import torch

        length = self._spec.max_history
        tokens = batch.tokens(length)
        padded = torch.from_numpy(np.pad(tokens, ((0, 0), (length - tokens.shape[1], 0))))
        with torch.inference_mode():
            scores: FloatArray = self._run(padded).numpy()
        return best(scores, k, gone)

"""A model of OpenVINO that gives the score of every item: `model.xml`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from recfit.runtimes import Batch, Scorer, StageSpec
from recfit.topk import Found, best
from recfit.types import FloatArray, Rows


def open_scorer(directory: Path, spec: StageSpec, threads: int) -> Scorer:
    return OpenVino(directory / "model.xml", spec, threads)


class OpenVino:
    """Histories are padded to one length, and every size of batch gets a model of its own: with open shapes OpenVINO takes
    up to five times as long."""

    def __init__(self, path: Path, spec: StageSpec, threads: int) -> None:
        import openvino

        self._core, self._path, self._spec = openvino.Core(), path, spec
        self._settings = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": threads,
            "ENABLE_CPU_PINNING": False,  # several are measured side by side; pinned, they would share a core
        }
        self._requests: dict[int, Any] = {}

    def top(self, batch: Batch, k: int, gone: Sequence[Rows]) -> list[Found]:
        length = self._spec.max_history
        tokens = batch.tokens(length)
        padded = np.pad(tokens, ((0, 0), (length - tokens.shape[1], 0)))
        found = self._request(len(batch)).infer([padded], share_inputs=True)
        scores: FloatArray = found[0]
        return best(scores, k, gone)

    def _request(self, batch: int) -> Any:
        if batch not in self._requests:
            model = self._core.read_model(self._path)
            model.reshape([batch, self._spec.max_history])
            self._requests[batch] = self._core.compile_model(model, "CPU", self._settings).create_infer_request()
        return self._requests[batch]

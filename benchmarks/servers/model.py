"""The model behind the peers, as a team writes it by hand: ids to tokens, one call, seen items out, the best k."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypedDict

import numpy as np

FOLDER = "BENCHMARK_FOLDER"
RUNTIME = "BENCHMARK_RUNTIME"
ROUTE = "/v1/recommend"


class Item(TypedDict):
    item_id: str
    score: float


class Ranker:
    """The original of the study on one thread; `runtime` is `torch` or `onnx`."""

    def __init__(self, folder: Path, runtime: str) -> None:
        about = json.loads((folder / "about.json").read_text())
        self._items: list[str] = about["items"]
        self._rows = {item: row for row, item in enumerate(self._items)}
        self._length: int = about["max_history"]
        self._scores = {"torch": _torch, "onnx": _onnx}[runtime](folder)

    def recommend(self, histories: Sequence[Sequence[str]], k: int = 10) -> list[list[Item]]:
        """The best `k` items for each history, without those in it."""
        rows = [[self._rows[item] for item in history if item in self._rows] for history in histories]
        recent = [part[-self._length :] for part in rows]
        tokens = np.zeros((len(rows), max(1, *map(len, recent))), np.int64)
        for at, part in enumerate(recent):
            if part:
                tokens[at, -len(part) :] = np.asarray(part) + 1
        scores = self._scores(tokens)
        for at, part in enumerate(rows):
            scores[at, part] = -np.inf
        found = np.argpartition(-scores, k, axis=1)[:, :k]
        ranked = np.take_along_axis(found, np.argsort(-np.take_along_axis(scores, found, 1), axis=1), 1)
        return [
            [Item(item_id=self._items[row], score=float(scores[at, row])) for row in best]
            for at, best in enumerate(ranked)
        ]


def ranker() -> Ranker:
    """The one that the environment names."""
    return Ranker(Path(os.environ[FOLDER]), os.environ[RUNTIME])


def _torch(folder: Path) -> Callable[[Any], Any]:
    import torch

    torch.set_num_threads(1)
    module = torch.load(folder / "model.pt", weights_only=False).eval()

    def scores(tokens: Any) -> Any:
        with torch.inference_mode():
            return module(torch.from_numpy(tokens)).numpy()

    return scores


def _onnx(folder: Path) -> Callable[[Any], Any]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(folder / "model.onnx", options, providers=["CPUExecutionProvider"])
    return lambda tokens: session.run(None, {"history": tokens})[0]

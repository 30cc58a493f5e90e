"""What every peer is given, and how its result becomes a bundle that recfit's engine serves and recfit's clock measures.

The trained original is given whole, `history int64 [B, L] -> scores float32 [B, n_items]`, item table included, so that a
peer may compress all of it: as a torch module, and as an ONNX file. A bundle holds such a model as an encoder whose output
already is the score of every item.
"""

from __future__ import annotations

import importlib
import shutil
import warnings
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from recfit import bundle
from recfit import pipeline as pipelines
from recfit.export.tracing import OPSET
from recfit.measure import quality
from recfit.models import Encoder, Model
from recfit.runtimes import StageSpec
from recfit.search.build import Workshop
from recfit.techniques import Context
from recfit.topk import best
from recfit.training import Distill
from recfit.types import FloatArray, IntArray, Ragged, Rows

# Histories of the training events that a peer calibrates with, and requests that it may judge itself by.
CALIBRATION, JUDGED = 300, 1000
INPUT, OUTPUT = "history", "scores"


class Scores(nn.Module):
    """The original as one module; the product with the item table is a linear layer, which every peer knows."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        assert isinstance(model, Encoder)
        vectors = model.item_vectors().detach()
        self.model = model
        self.head = nn.Linear(vectors.shape[1], vectors.shape[0], bias=False)
        self.head.weight = nn.Parameter(vectors.clone())

    def forward(self, history: Tensor) -> Tensor:
        scores: Tensor = self.head(self.model.encode(history))
        return scores


@dataclass(frozen=True)
class Judged:
    """A request with a known answer: `tokens` int64 [1, L], the items `seen`, and those that came next."""

    tokens: IntArray
    seen: Rows
    wanted: Rows

    def ndcg(self, scores: FloatArray) -> float:
        """NDCG@10 of the list that `scores` [1, n_items] make."""
        [(rows, _)] = best(scores.copy(), 10, [self.seen])
        return float(quality.per_query(rows[None], Ragged.from_lists([self.wanted]), ["ndcg@10"])["ndcg@10"][0])


@dataclass(frozen=True)
class Given:
    """The data, the original, and a folder to write the result to."""

    workshop: Workshop
    output: Path

    @cached_property
    def context(self) -> Context:
        original = pipelines.load(self.workshop.original)
        return Context(self.workshop.split, original, self.workshop.fit, progress=self.workshop.progress)

    @property
    def model(self) -> Scores:
        """A copy of the original."""
        return Scores(pipelines.load(self.workshop.original).main.model).eval()

    @cached_property
    def graph(self) -> Path:
        """The original as an ONNX file."""
        return export(self.model, self.output.with_suffix(".onnx"))

    @cached_property
    def calibration(self) -> list[IntArray]:
        """Tokens int64 [1, L], each the end of a training user's history."""
        histories = self.workshop.split.train.histories()
        users = np.random.default_rng(0).permutation(np.flatnonzero(histories.sizes > 0))[:CALIBRATION]
        return self._tokens(histories.take(users))

    @cached_property
    def judged(self) -> list[Judged]:
        """Validation requests that a peer may judge itself by; none of them is measured in the end."""
        queries = self.workshop.split.validation
        chosen = queries.take(np.random.default_rng(0).permutation(len(queries))[:JUDGED])
        parts = zip(self._tokens(chosen.history), chosen.history, chosen.targets, strict=True)
        return [Judged(*part) for part in parts]

    def fine_tune(self, model: Model, **changes: Any) -> Model:
        """recfit's own training loop with the study's settings, the original as the teacher."""
        return self.context.train(model, distill=Distill(self.context.original.main.model), **changes)

    def _tokens(self, histories: Iterable[Rows]) -> list[IntArray]:
        length = self.context.original.main.model.max_history
        return [np.asarray(part[-length:], np.int64)[None] + 1 for part in histories]


def export(module: nn.Module, path: Path) -> Path:
    """`module` as ONNX, batch and history of any length."""
    axes = {INPUT: {0: "batch", 1: "length"}, OUTPUT: {0: "batch"}}
    names = {"input_names": [INPUT], "output_names": [OUTPUT]}
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")
        example = torch.ones(2, 4, dtype=torch.long)
        torch.onnx.export(
            module.eval(), (example,), str(path), **names, dynamic_axes=axes, opset_version=OPSET, dynamo=False
        )
    return path


def into_bundle(base: Path, made: Path, name: str, runtime: str) -> Path:
    """A copy of the bundle `base` beside `made`, its stage replaced by the files of the folder `made`."""
    output = made.with_name(f"{made.name}.bundle")
    shutil.copytree(base, output)
    shutil.rmtree(output / "retrieve")
    shutil.copytree(made, output / "retrieve")
    manifest = bundle.read_manifest(base)
    items = manifest["catalogue"]["items"]
    spec = StageSpec(
        kind="encoder",
        runtime=runtime,
        inputs=(INPUT,),
        n_items=items,
        max_history=manifest["pipeline"]["retrieve"]["max_history"],
        table={"format": "identity", "dim": items},
    )
    plan = {**manifest["pipeline"], "retrieve": asdict(spec)}
    bundle.seal(output, {**manifest, "name": name, "recipe": {"id": name, "steps": []}, "pipeline": plan})
    return output


def made_by(name: str, workshop: Workshop, output: Path) -> None:
    """Let the peer `name` work on the original; runs in a child. The original is one thread's work for all of them."""
    torch.set_num_threads(workshop.threads)
    importlib.import_module(f"benchmarks.peers.{name}").make(Given(workshop, output))

"""The original of the *Movie* scenario: a 10-layer, 512-d Transformer on MovieLens-1M, trained in hours on two cores.

    python benchmarks/seeds/movie/original.py ratings/sequences.txt runs/seeds/movie

On labels alone a model this large learns a million events by heart and ends behind one of 2 layers and 128 dimensions. So that
one is trained first, and its answers are learned beside the labels. The model is grown: 2 layers and 50 events, 5 layers and
100, 10 layers and 200. A new layer starts as a copy of the one below it whose outputs are zero, so a grown model answers as the
small one did (Net2DeeperNet: Chen et al., arXiv 1511.05641; stacked in stages: Gong et al., ICML 2019). Run it again to
continue: a finished stage is not repeated, and the long ones write a checkpoint every few minutes.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from recfit import models, pipeline
from recfit.data import load
from recfit.data.splits import split
from recfit.models import Model, as_module, catalogue_of
from recfit.pipeline import Pipeline
from recfit.search.bench import views
from recfit.techniques import Context, make
from recfit.training import Distill, Fit, evaluate, train
from recfit.types import Split

ITEMS = 100  # of each of the teacher's answers
ZEROED = ("out", "down")  # what writes into the hidden space


@dataclass(frozen=True)
class Stage:
    """One size of the growing model and how it is trained."""

    layers: int
    history: int
    dropout: float
    fit: Fit

    def options(self, shape: Mapping[str, int]) -> dict[str, Any]:
        return {**shape, "layers": self.layers, "max_history": self.history, "dropout": self.dropout}


@dataclass(frozen=True)
class Plan:
    """The split, the teacher, what all stages of the original share, and the stages."""

    split: str
    teacher_shape: Mapping[str, int]
    teacher: Stage
    shape: Mapping[str, int]
    stages: Sequence[Stage]


def _fit(epochs: int, rate: float, *, share: float = 1.0, warmup: int = 100, decay: float = 0.05) -> Fit:
    """`epochs` parts of the data, `share` of it each."""
    common = Fit(batch_size=64, patience=epochs, warmup=warmup, weight_decay=decay)
    return replace(common, epochs=epochs, epoch_share=share, learning_rate=rate)


PLAN = Plan(
    "leave_last(n=1)",
    {"embedding_dim": 128, "ffn": 256},
    Stage(2, 200, 0.2, _fit(30, 2e-3)),
    {"embedding_dim": 512, "heads": 8, "ffn": 2048},
    (
        Stage(2, 50, 0.2, _fit(12, 1e-3)),
        Stage(5, 100, 0.2, _fit(5, 5e-4, warmup=20)),
        Stage(10, 200, 0.2, _fit(6, 3e-4, share=0.5, warmup=20)),
    ),
)
QUICK = Plan(
    "leave_last(n=5)",
    {"embedding_dim": 64, "ffn": 64},
    Stage(2, 50, 0.5, _fit(40, 2e-3, decay=1.0)),
    {"embedding_dim": 64, "heads": 2, "ffn": 256},
    (
        Stage(2, 50, 0.5, _fit(20, 2e-3)),
        Stage(5, 50, 0.5, _fit(10, 1e-3)),
        Stage(10, 200, 0.5, _fit(10, 5e-4)),
    ),
)


def taught(teacher: Model, data: Split, stage: Stage, shape: Mapping[str, int], folder: Path) -> Model:
    """The first stage: a model that starts from the teacher's item vectors."""
    lesson = make("distill", {"kind": "sasrec", "options": stage.options(shape)})
    before = Pipeline(pipeline.Stage(teacher))
    return lesson.apply(before, Context(data, before, stage.fit, progress=True, folder=folder)).main.model


def grown(small: Model, data: Split, stage: Stage) -> Model:
    """A model of the size of `stage` that answers as `small` does; events beyond those that `small` reads get the weight of
    its oldest."""
    layers, history = stage.layers, stage.history
    config = replace(small.config, layers=layers, max_history=history, dropout=stage.dropout)
    model = models.build(small.kind, asdict(config), catalogue_of(data))
    weights = as_module(small).state_dict()
    target = {name: value for name, value in weights.items() if not name.startswith("blocks.")}
    for layer in range(layers):
        source = layer * small.config.layers // layers
        fresh = layer > 0 and source == (layer - 1) * small.config.layers // layers
        for name, value in weights.items():
            if name.startswith(f"blocks.{source}."):
                target[name.replace(f".{source}.", f".{layer}.", 1)] = _taken(
                    name.split(".", 2)[2], value, history, fresh
                )
    as_module(model).load_state_dict(target)
    return model


def _taken(name: str, value: Tensor, history: int, fresh: bool) -> Tensor:
    if name == "distance":  # [heads, history]
        missing = history - value.shape[1]
        return torch.cat((value, value[:, -1:].expand(-1, missing)), dim=1)
    return torch.zeros_like(value) if fresh and name.split(".")[0] in ZEROED else value


def original(data: Split, plan: Plan, directory: Path) -> Model:
    """The last stage's model, kept in `directory`; what is there already is not trained again."""
    data, answers = views(data)[0], directory / "answers"
    answers.mkdir(parents=True, exist_ok=True)
    teacher = _kept(directory / "teacher") or _teacher(data, plan, directory)
    lesson = Distill(teacher, cache=ITEMS, folder=answers)
    model = None
    for number, stage in enumerate(plan.stages, 1):
        place = directory / f"stage-{number}"
        if (known := _kept(place)) is not None:
            model = known
            continue
        if model is None:
            model = taught(teacher, data, stage, plan.shape, answers)
        else:
            model = grown(model, data, stage)
            train(model, data, stage.fit, teacher=lesson, checkpoint=directory / f"stage-{number}.safetensors")
        models.save(model, place)
        found = evaluate(model, data.validation)["ndcg@10"]
        print(
            f"{place.name}: {stage.layers} layers, {stage.history} events: validation NDCG@10 {found:.4f}", flush=True
        )
    assert model is not None
    return model


def _kept(place: Path) -> Model | None:
    return models.load(place) if (place / "model.json").is_file() else None


def _teacher(data: Split, plan: Plan, directory: Path) -> Model:
    torch.manual_seed(plan.teacher.fit.seed)
    model = models.build("sasrec", plan.teacher.options(plan.teacher_shape), catalogue_of(data))
    done = train(model, data, plan.teacher.fit, checkpoint=directory / "teacher.safetensors")
    models.save(model, directory / "teacher")
    print(f"teacher: validation NDCG@10 {done.ndcg:.4f} in {done.seconds / 60:.0f} minutes", flush=True)
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="a file or a public set, as `recfit data describe` takes it")
    parser.add_argument("directory", type=Path, help="where stages and checkpoints are kept")
    parser.add_argument("--quick", action="store_true", help="64-d and short, for MovieLens-100K")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    plan = QUICK if given.quick else PLAN
    data = split(load(given.data), plan.split)
    model = original(data, plan, given.directory)
    models.save(model, given.directory / "model")


if __name__ == "__main__":
    main()

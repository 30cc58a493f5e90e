"""The original of the *Movie* scenario: a 10-layer, 512-d Transformer on MovieLens-1M, trained in hours on two cores.

    python benchmarks/seeds/movie/original.py ratings/sequences.txt runs/seeds/movie

A small model is trained and then grown: 2 layers and 50 events, 5 layers and 100, 10 layers and 200. A new layer starts as a
copy of the one below it whose outputs are zero, so a grown model answers as the small one did (Net2DeeperNet: Chen et al.,
arXiv 1511.05641; stacked in stages: Gong et al., ICML 2019). Run it again to continue: a checkpoint is written every few
minutes, a finished stage is not repeated.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from recfit import models
from recfit.data import load
from recfit.data.splits import split
from recfit.models import Model, as_module, catalogue_of
from recfit.search.bench import views
from recfit.training import Fit, Trained, train
from recfit.types import Split

ZEROED = ("out", "down")  # what writes into the hidden space


@dataclass(frozen=True)
class Stage:
    """One size of the growing model and how it is trained."""

    layers: int
    history: int
    dropout: float
    fit: Fit


@dataclass(frozen=True)
class Plan:
    """The split, the options that all stages share, and the stages."""

    split: str
    shape: Mapping[str, float]
    stages: Sequence[Stage]


def _fit(epochs: int, share: float, rate: float, warmup: int = 20) -> Fit:
    """`epochs` parts of the data, `share` of it each."""
    settings = {"batch_size": 64, "weight_decay": 0.05, "warmup": warmup}
    return Fit(epochs=epochs, patience=epochs, epoch_share=share, learning_rate=rate, **settings)


# Windows of 50 events come from anywhere in a history, those of 200 are most of it, the same in every epoch: a model this
# large learns them by heart. So it sees long ones last.
PLAN = Plan(
    "leave_last(n=1)",
    {"embedding_dim": 512, "heads": 8, "ffn": 2048},
    (
        Stage(2, 50, 0.2, _fit(12, 1.0, 1e-3, warmup=100)),
        Stage(2, 50, 0.3, _fit(24, 1.0, 1e-3)),
        Stage(5, 100, 0.3, _fit(5, 1.0, 5e-4)),
        Stage(10, 200, 0.3, _fit(6, 0.5, 3e-4)),
    ),
)
QUICK = Plan(
    "leave_last(n=5)",
    {"embedding_dim": 64, "heads": 2, "ffn": 256},
    (
        Stage(2, 50, 0.5, _fit(40, 1.0, 2e-3)),
        Stage(5, 50, 0.5, _fit(20, 1.0, 1e-3)),
        Stage(10, 200, 0.5, _fit(10, 1.0, 5e-4)),
    ),
)


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
    data = views(data)[0]
    model = None
    for number, stage in enumerate(plan.stages, 1):
        kept = directory / f"stage-{number}"
        if (kept / "model.json").is_file():
            model = models.load(kept)
            continue
        if model is None:
            torch.manual_seed(stage.fit.seed)
            options = {**plan.shape, "layers": stage.layers, "max_history": stage.history, "dropout": stage.dropout}
            model = models.build("sasrec", options, catalogue_of(data))
        else:
            model = grown(model, data, stage)
        done = train(model, data, stage.fit, checkpoint=directory / f"stage-{number}.safetensors")
        models.save(model, kept)
        print(_line(number, stage, done), flush=True)
    assert model is not None
    return model


def _line(number: int, stage: Stage, done: Trained) -> str:
    size = f"{stage.layers} layers, {stage.history} events"
    return f"stage {number}: {size}: validation NDCG@10 {done.ndcg:.4f} in {done.seconds / 60:.0f} minutes"


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

"""A model of the user's own."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from recfit import models
from recfit.models import Catalogue, Encoder, Ranker
from recfit.training import Fit, train
from recfit.types import ConfigError, Split

SOURCE = '''
import torch
from torch import nn

class Mean(nn.Module):
    """The mean of the history's vectors."""
    def __init__(self, items, dim):
        super().__init__()
        self.table = nn.Embedding(items + 1, dim, padding_idx=0)
    def encode(self, history):
        return self.table(history).sum(1) / (history > 0).sum(1, keepdim=True).clamp(min=1)
    def item_vectors(self):
        return self.table.weight[1:]

class Bias(nn.Module):
    """One score an item, the same for everybody."""
    inputs = ("user",)
    max_history = 0
    def __init__(self, items):
        super().__init__()
        self.bias = nn.Embedding(items + 1, 1)
    def score(self, items, user):
        return self.bias(items)[..., 0]

class Half(nn.Module):
    def encode(self, history):
        return history

def mean(options, catalogue):
    return Mean(catalogue.n_items, options.get("dim", 4))

def bias(options, catalogue):
    return Bias(catalogue.n_items)

def half(options, catalogue):
    return Half()

def nothing(options, catalogue):
    return nn.Linear(1, 1)

def text(options, catalogue):
    return "a model"
'''


@pytest.fixture(autouse=True)
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "my_module.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("my_module", None)


def custom(catalogue: Catalogue, name: str, **options: Any) -> models.Model:
    return models.build("custom", {"factory": f"my_module:{name}", "options": options}, catalogue)


def test_an_encoder_is_built_trained_saved_and_loaded(split: Split, catalogue: Catalogue, tmp_path: Path) -> None:
    model = custom(catalogue, "mean", dim=8)
    assert isinstance(model, Encoder)
    assert model.axes() == {}
    assert (model.inputs, model.max_history, model.kind) == (("history",), 50, "custom")
    trained = train(model, split, Fit(epochs=4, batch_size=16, learning_rate=0.05), progress=False)
    assert trained.epochs[-1].loss < trained.epochs[0].loss
    models.save(model, tmp_path / "saved")
    again = models.load(tmp_path / "saved")
    history = {"history": torch.tensor([[0, 1, 2]])}
    assert torch.equal(models.scores(again, history), models.scores(model, history))


def test_a_ranker_is_built_and_trained(split: Split, catalogue: Catalogue) -> None:
    model = custom(catalogue, "bias")
    assert isinstance(model, Ranker)
    assert (model.inputs, model.max_history) == (("user",), 0)
    trained = train(model, split, Fit(epochs=3, batch_size=16, negatives=4, learning_rate=0.05), progress=False)
    assert trained.epochs[-1].loss < trained.epochs[0].loss


def test_no_axis_can_be_shrunk(catalogue: Catalogue) -> None:
    with pytest.raises(ConfigError, match="custom has no axis 'layers'; it has: none"):
        custom(catalogue, "mean").shrink("layers", torch.arange(1))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("half", "Half from my_module:half lacks the method item_vectors; an encoder has"),
        ("nothing", "Linear from my_module:nothing lacks the method encode and item_vectors, or score"),
        ("text", "my_module:text returned a str; it must return a torch.nn.Module"),
        ("missing", "factory = 'my_module:missing' can't be loaded"),
    ],
)
def test_what_is_missing_is_named(catalogue: Catalogue, name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        custom(catalogue, name)


@pytest.mark.parametrize("path", ["no_such_module:build", "my_module", ""])
def test_a_factory_that_is_not_there(catalogue: Catalogue, path: str) -> None:
    options: Mapping[str, Any] = {"factory": path}
    with pytest.raises(ConfigError, match="give `module:function`"):
        models.build("custom", options, catalogue)

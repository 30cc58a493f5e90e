"""Ways of paying for a budget: one file each, the file's name is the technique's name.

A technique's file offers `Technique`, a frozen, JSON-able dataclass of its settings with

* `family`: which of the families of trade-offs it belongs to;
* `order`: where it stands in a recipe that the search composes;
* `trains`: whether applying it costs training, so that its untrained structure is looked at first;
* `works_on`: what of a pipeline it makes anew, in words; of two steps that share one the later would undo or contradict the
  earlier, and the search puts no two such into one chain;
* `apply(pipeline, context) -> Pipeline`, which refuses with `Unsupported` where it does not apply;
* `variants(context) -> list`: the settings worth trying on this original.

Nothing is changed in place: models are copied or built anew.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self

import torch

from recfit.models import Catalogue, Causal, Model, Solved, as_module, build, catalogue_of
from recfit.options import check_choice, from_options
from recfit.pipeline import Pipeline, fingerprint
from recfit.registry import find, names
from recfit.training import Distill, Fit, Hold, train
from recfit.types import ConfigError, Split, Unsupported

FAMILIES = ("simplify", "distill", "prune", "quantize", "reduce", "two_stage", "cache", "runtime")


@dataclass(frozen=True)
class Context:
    """What a technique may use: the data, the original, and how to train.

    With `structure_only` nothing is trained: the pipeline has its final shape and untrained weights, enough to
    measure its size and speed before paying for its quality. `folder` keeps what several trainings share. `tolerance` is
    the share of the original's quality that the budget lets go, where it says so: for what `variants` proposes. `fit` is how
    to train, `afresh` how to train a model that learns from whole histories in the place of one that learned from single
    events, whose batches and rates are of another kind; None: as any other.
    """

    split: Split
    original: Pipeline
    fit: Fit
    structure_only: bool = False
    progress: bool = False
    folder: Path | None = None
    tolerance: float | None = None
    afresh: Fit | None = None

    @property
    def catalogue(self) -> Catalogue:
        return catalogue_of(self.split)

    def build(self, kind: str, options: Mapping[str, Any]) -> Model:
        """A new model, its first weights drawn from the study's seed whatever was drawn before."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.fit.seed)
            model = build(kind, options, self.catalogue)
            if self.structure_only:
                _stir(model)
            return model

    def fit_of(self, model: Model) -> Fit:
        """The settings that `model` is trained with."""
        other = isinstance(model, Causal) and not isinstance(self.original.main.model, Causal | Solved)
        return self.afresh if self.afresh is not None and other else self.fit

    def train(self, model: Model, *, distill: Distill | None = None, hold: Hold | None = None, **changes: Any) -> Model:
        """Train `model` in place with the study's settings and `changes` to them; returns it."""
        if not self.structure_only:
            settings = dataclasses.replace(self.fit_of(model), **changes)
            train(model, self.split, settings, teacher=distill, hold=hold, progress=self.progress)
        elif isinstance(model, Solved):
            _fill(model)
        return model


class Technique(Protocol):
    """One step of a recipe."""

    family: ClassVar[str]
    order: ClassVar[int]
    trains: ClassVar[bool]

    @property
    def works_on(self) -> tuple[str, ...]: ...

    def apply(self, pipeline: Pipeline, context: Context) -> Pipeline: ...

    @classmethod
    def variants(cls, context: Context) -> Sequence[Self]: ...


def name_of(technique: Technique) -> str:
    """The technique's name: the file it lives in."""
    return type(technique).__module__.rsplit(".", 1)[1]


def settings_of(technique: Technique) -> dict[str, Any]:
    """The settings as JSON-able values."""
    settings: dict[str, Any] = dataclasses.asdict(technique)  # type: ignore[call-overload]
    return settings


def make(name: str, settings: Mapping[str, Any]) -> Technique:
    """The technique `name` with `settings`; a wrong one is answered with what is allowed.

    `preset` stands for the settings that the technique's `PRESETS` have under its name; the others go before them.
    """
    module, given = find("techniques", name), dict(settings)
    if (preset := given.pop("preset", None)) is not None:
        presets = getattr(module, "PRESETS", {})
        check_choice(f"technique.{name}.preset", preset, tuple(presets))
        given = {**presets[preset], **given}
    technique: Technique = from_options(module.Technique, given, f"technique.{name}")
    return technique


def available(wanted: Sequence[str] = ()) -> list[Callable[[Context], Sequence[Technique]]]:
    """The `variants` of the wanted techniques (all where none are named), in recipe order."""
    classes = [_declared(name) for name in wanted or names("techniques")]
    return [cls.variants for cls in sorted(classes, key=lambda cls: cls.order)]


def _declared(name: str) -> Any:
    """The class of the technique `name`. Raises `ConfigError` where it does not say what the search has to know."""
    cls = find("techniques", name).Technique
    if missing := [item for item in ("family", "order", "trains", "works_on") if not hasattr(cls, item)]:
        raise ConfigError(f"technique {name!r} does not declare {', '.join(missing)}; docs/extend.md has an example")
    return cls


def applied(technique: Technique, pipeline: Pipeline, context: Context) -> Pipeline:
    """`technique.apply`, with a refusal where it changed nothing (of an untrained structure, training might), or would train
    what no longer knows all items."""
    if technique.trains and any(part.model.catalogue.item_rows is not None for part in pipeline.stages.values()):
        raise Unsupported(
            f"{describe(technique)} trains, and items have left this pipeline; put prune_items behind what trains"
        )
    out = technique.apply(pipeline, context)
    if not (context.structure_only and technique.trains) and fingerprint(out) == fingerprint(pipeline):
        raise Unsupported(f"{describe(technique)} changed nothing here; leave it out of the recipe")
    return out


def describe(technique: Technique) -> str:
    """`prune(layers, keep=0.3)`, `distill(sasrec, 2 x 64)`: what has no default or differs from it."""
    shown = [
        _shown(item.name, value, required=_default(item) is dataclasses.MISSING)
        for item in dataclasses.fields(technique)  # type: ignore[arg-type]
        if (value := getattr(technique, item.name)) != _default(item)
    ]
    return f"{name_of(technique)}({', '.join(shown)})"


def _fill(model: Model) -> None:
    """Small random numbers in the place of a solution. With its zeros every score would tie, which takes longer to
    rank, and a graph would store equal matrices only once."""
    draws = torch.Generator().manual_seed(0)
    for values in as_module(model).buffers():
        if values.is_floating_point():
            values.normal_(0, 0.01, generator=draws)


@torch.no_grad()
def _stir(model: Model) -> None:
    """Small random numbers on what begins as zeros or as a unit matrix: a graph stores these in few bytes, trained ones not."""
    for values in as_module(model).parameters():
        if values.count_nonzero() < 0.5 * values.numel():
            values.add_(0.01 * torch.randn_like(values))


def _default(item: dataclasses.Field[Any]) -> Any:
    if item.default_factory is not dataclasses.MISSING:
        return item.default_factory()
    return item.default


def _shown(name: str, value: Any, *, required: bool) -> str:
    """A setting; of a model's options its depth and width say enough to tell candidates apart."""
    if not isinstance(value, Mapping):
        return str(value) if required else f"{name}={value}"
    sizes = [str(value[key]) for key in ("layers", "embedding_dim") if key in value]
    return " x ".join(sizes) or ", ".join(f"{key}={part}" for key, part in value.items())

"""Bring your own: a factory of yours builds a torch module that follows the `Encoder` or the `Ranker` protocol.

`factory = "my_module:build"` is called as `build(options, catalogue)`. The module may lack `inputs` and `max_history`,
which the config then says, and `axes`, `importance` and `shrink`: it then has no axis.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from torch import Tensor, nn

from recfit.models import Catalogue, Encoder, Model, Ranker
from recfit.models._axes import no_axis
from recfit.options import check_ranges
from recfit.types import ConfigError


@dataclass(frozen=True)
class Config:
    """`factory` is `module:function`; `options` are handed to it as they are."""

    factory: str
    options: Mapping[str, Any] = field(default_factory=dict)
    inputs: tuple[str, ...] = ("history",)
    max_history: int = 50

    def __post_init__(self) -> None:
        check_ranges("model.custom", self, max_history=(0, 1e5))


def build(config: Config, catalogue: Catalogue) -> Model:
    module = factory_of(config.factory)(config.options, catalogue)
    if not isinstance(module, nn.Module):
        raise ConfigError(f"{config.factory} returned a {type(module).__name__}; it must return a torch.nn.Module")
    check_protocol(config.factory, module)
    given: dict[str, Any] = {"kind": "custom", "config": config, "catalogue": catalogue}
    defaults = {"inputs": config.inputs, "max_history": config.max_history, **_without_axes(cast(Model, module))}
    given |= {name: value for name, value in defaults.items() if not hasattr(module, name)}
    for name, value in given.items():
        setattr(module, name, value)
    return cast(Model, module)


def factory_of(path: str) -> Callable[[Mapping[str, Any], Catalogue], object]:
    """The function that `module:function` names."""
    module_name, _, name = path.partition(":")
    try:
        factory = getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(
            f"model.custom.factory = {path!r} can't be loaded ({error}); give `module:function`, importable from here"
        ) from error
    return cast(Callable[[Mapping[str, Any], Catalogue], object], factory)


def check_protocol(factory: str, module: nn.Module) -> None:
    """Raise ConfigError, naming what is missing, unless `module` is an encoder or a ranker."""
    if isinstance(module, Encoder | Ranker):
        return
    half = [name for name in ("encode", "item_vectors") if not hasattr(module, name)]
    missing = "encode and item_vectors, or score" if len(half) == 2 else half[0]
    raise ConfigError(
        f"{type(module).__name__} from {factory} lacks the method {missing}; "
        "an encoder has encode(**inputs) and item_vectors(), a ranker has score(items, **inputs)"
    )


def _without_axes(model: Model) -> dict[str, Any]:
    """The methods of a model that can't be shrunk."""

    def refuse(axis: str, keep: Tensor | None = None) -> Any:
        raise no_axis(model, axis)

    return {"axes": lambda: {}, "importance": refuse, "shrink": refuse}

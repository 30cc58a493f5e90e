"""Quantization-aware training: a short fine-tuning in which linear layers already compute with the int8 weights and
activations that the graph will have (Jacob et al., arXiv 1712.05877, section 3). Rounding has no slope, so gradients pass
it as if it were not there (the straight-through estimator: Bengio et al., arXiv 1308.3432). Weights are rounded by the
settings of the format `int8`: for each channel or all alike, with a zero point or without."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from recfit import graphs
from recfit.graphs import int8
from recfit.models import Model, Solved, as_module, copied
from recfit.options import check_ranges
from recfit.pipeline import Pipeline
from recfit.techniques import Context, quantize
from recfit.techniques._shrink import fine_tuned
from recfit.types import ConfigError, Unsupported

WEIGHT_STEPS = 128  # 7 bits: see `graphs/int8.py`
ACTIVATION_STEPS = 255


@dataclass(frozen=True)
class Technique:
    """Fine-tune with rounded linear layers on `data_fraction` of the users, then store the graph as int8 with
    `graph_options` and the item table in the format `table`."""

    family: ClassVar[str] = "quantize"
    order: ClassVar[int] = 40
    trains: ClassVar[bool] = True
    works_on: ClassVar[tuple[str, ...]] = ("bits", "single weights")  # it fills the zeros of sparsify

    table: str = "int8"
    epochs: int = 5
    data_fraction: float = 1.0
    learning_rate: float = 3e-4
    graph_options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._stored()
        if "skip" in self.graph_options:
            raise ConfigError(
                "technique.qat.graph_options.skip: all linear layers learn; leave it out, or use quantize"
            )
        check_ranges("technique.qat", self, epochs=(1, 1e6), data_fraction=(1e-6, 1))

    def _stored(self) -> quantize.Technique:
        return quantize.Technique(graph="int8", table=self.table, graph_options=self.graph_options)

    def apply(self, pipeline: Pipeline, context: Context) -> Pipeline:
        original = pipeline.main.model
        if isinstance(original, Solved) or not quantize.linears(original):
            raise Unsupported(f"{original.kind} has no linear layers that learn from their rounding; use quantize")
        model = copied(original)
        with rounding(model, graphs.config_of("int8", self.graph_options)):
            trained = fine_tuned(pipeline, model, context, self)
        as_module(model).eval()
        return self._stored().apply(trained, context)

    @classmethod
    def variants(cls, context: Context) -> Sequence[Technique]:
        model = context.original.main.model
        return [cls()] if quantize.linears(model) and not isinstance(model, Solved) else []


@contextmanager
def rounding(model: Model, config: int8.Config) -> Iterator[None]:
    """Until the end of the block the linear layers of `model` compute as those of its int8 graph with the settings `config`."""
    layers = quantize.linears(model)
    for layer in layers:
        layer.forward = partial(_rounded, layer, config)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def _rounded(layer: nn.Linear, config: int8.Config, given: Tensor) -> Tensor:
    return F.linear(_activations(given.float()), _weights(layer.weight, config), layer.bias)


def _weights(weight: Tensor, config: int8.Config) -> Tensor:
    """Each output channel, or all together, in 128 steps: as many on both sides of 0, or from the least to the largest."""
    exact, axes = weight.detach(), (1,) if config.per == "channel" else (0, 1)
    low, high = exact.amin(axes, keepdim=True).clamp(max=0), exact.amax(axes, keepdim=True).clamp(min=0)
    if config.weights == "symmetric":
        high = high.maximum(-low)
        low = -high
    return _stepped(weight, low, high, WEIGHT_STEPS)


def _activations(given: Tensor) -> Tensor:
    """All numbers of a run together in 255 steps from the least to the most, 0 among them."""
    low, high = given.detach().amin().clamp(max=0), given.detach().amax().clamp(min=0)
    return _stepped(given, low, high, ACTIVATION_STEPS)


def _stepped(exact: Tensor, low: Tensor, high: Tensor, steps: int) -> Tensor:
    """The nearest of `steps` + 1 numbers from `low` to `high`, with the gradient of the exact ones."""
    step = ((high - low) / steps).clamp(min=1e-30)
    zero = (-low / step).round()
    codes = ((exact.detach() / step).round() + zero).clamp(0, steps)
    return exact + ((codes - zero) * step - exact).detach()

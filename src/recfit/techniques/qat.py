"""Quantization-aware training: a short fine-tuning in which linear layers already compute with the int8 weights and
activations that the graph will have (Jacob et al., arXiv 1712.05877, section 3). Rounding has no slope, so gradients pass
it as if it were not there (the straight-through estimator: Bengio et al., arXiv 1308.3432)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from recfit.models import Model, Solved, as_module, rebuilt
from recfit.options import check_ranges
from recfit.pipeline import Pipeline
from recfit.techniques import Context, quantize
from recfit.techniques._shrink import fine_tuned
from recfit.types import Unsupported

WEIGHT_STEPS = 64  # 7 bits: see `graphs/int8.py`
ACTIVATION_STEPS = 255


@dataclass(frozen=True)
class Technique:
    """Fine-tune with rounded linear layers on `data_fraction` of the users, then store the graph as int8 and the item
    table in the format `table`."""

    family: ClassVar[str] = "quantize"
    order: ClassVar[int] = 40
    trains: ClassVar[bool] = True

    table: str = "int8"
    epochs: int = 5
    data_fraction: float = 1.0
    learning_rate: float = 3e-4

    def __post_init__(self) -> None:
        self._stored()
        check_ranges("technique.qat", self, epochs=(1, 1e6), data_fraction=(1e-6, 1))

    def _stored(self) -> quantize.Technique:
        return quantize.Technique(graph="int8", table=self.table)

    def apply(self, pipeline: Pipeline, context: Context) -> Pipeline:
        original = pipeline.main.model
        linear = [part for part in as_module(original).modules() if isinstance(part, nn.Linear)]
        if isinstance(original, Solved) or not linear:
            raise Unsupported(f"{original.kind} has no linear layers that learn from their rounding; use quantize")
        model = rebuilt(original, original.config)
        as_module(model).load_state_dict(as_module(original).state_dict())
        with rounding(model):
            trained = fine_tuned(pipeline, model, context, self)
        as_module(model).eval()
        return self._stored().apply(trained, context)

    @classmethod
    def variants(cls, context: Context) -> Sequence[Technique]:
        model = context.original.main.model
        linear = any(isinstance(part, nn.Linear) for part in as_module(model).modules())
        return [cls()] if linear and not isinstance(model, Solved) else []


@contextmanager
def rounding(model: Model) -> Iterator[None]:
    """Until the end of the block the linear layers of `model` compute as those of its int8 graph."""
    layers = [part for part in as_module(model).modules() if isinstance(part, nn.Linear)]
    for layer in layers:
        layer.forward = partial(_rounded, layer)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def _rounded(layer: nn.Linear, given: Tensor) -> Tensor:
    return F.linear(_activations(given.float()), _weights(layer.weight), layer.bias)


def _weights(weight: Tensor) -> Tensor:
    """Each output channel in steps of `max|w| / 64`."""
    step = weight.detach().abs().amax(1, keepdim=True).clamp(min=1e-30) / WEIGHT_STEPS
    return _straight(weight, (weight.detach() / step).round() * step)


def _activations(given: Tensor) -> Tensor:
    """All numbers of a run together in 255 steps from the least to the most, 0 among them."""
    low, high = given.detach().amin().clamp(max=0), given.detach().amax().clamp(min=0)
    step = ((high - low) / ACTIVATION_STEPS).clamp(min=1e-30)
    zero = (-low / step).round()
    codes = ((given.detach() / step).round() + zero).clamp(0, ACTIVATION_STEPS)
    return _straight(given, (codes - zero) * step)


def _straight(exact: Tensor, rounded: Tensor) -> Tensor:
    """The rounded numbers with the gradient of the exact ones."""
    return exact + (rounded - exact).detach()

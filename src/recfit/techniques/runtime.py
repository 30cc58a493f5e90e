"""Another way to run the same graph: runtime, threads and their settings. Nothing is given up, not all of it helps."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from dataclasses import replace as changed
from importlib.util import find_spec
from typing import Any, ClassVar

from recfit.graphs import folded, runnable
from recfit.measure.machine import halves_fast
from recfit.models import Encoder, Foresighted, Tied
from recfit.options import check_choice, check_ranges
from recfit.pipeline import Pipeline, RuntimePlan, Stage
from recfit.registry import find, names
from recfit.runtimes import torch as pytorch
from recfit.runtimes.openvino import PRECISIONS
from recfit.runtimes.ort import LEVELS
from recfit.techniques import Context
from recfit.types import Unsupported

MANY = 200_000  # items, of which keys and values would be more than most budgets have, and scores are worth giving back
OPTIONS = (
    "graph",
    "ahead",
    "arena",
    "spinning",
    "compile",
    "precision",
)  # a bundle holds those that are not as by default


@dataclass(frozen=True)
class Technique:
    """Run on `name` (a file of `runtimes/`) with `threads`, 0 for as many as before.

    `graph` is ONNX Runtime's optimisation level, with `arena` it keeps memory between requests, `spinning` threads wait for
    each other awake. `ahead` works out once, when a `fused` bundle is opened, what the encoder makes of each item alone.
    `compile` is `torch.compile`, when a `torch` bundle is opened: a reference, which takes too long for a search to propose.
    `precision` is that of OpenVINO's products.
    """

    family: ClassVar[str] = "runtime"
    order: ClassVar[int] = 70
    trains: ClassVar[bool] = False
    works_on: ClassVar[tuple[str, ...]] = ("runtime",)

    name: str = "ort"
    threads: int = 0
    graph: str = "all"
    ahead: bool = False
    arena: bool = True
    spinning: bool = False
    compile: bool = False
    precision: str = "float32"

    def __post_init__(self) -> None:
        check_choice("technique.runtime.name", self.name, names("runtimes"))
        check_choice("technique.runtime.graph", self.graph, tuple(LEVELS))
        check_choice("technique.runtime.precision", self.precision, tuple(PRECISIONS))
        check_ranges("technique.runtime", self, threads=(0, 1024))

    def apply(self, pipeline: Pipeline, context: Context) -> Pipeline:
        formats = {stage.graph for stage in pipeline.stages.values()}
        if self.name == "torch" and (formats | {s.table for s in pipeline.stages.values()}) != {"float32"}:
            raise Unsupported("PyTorch runs the float32 model as it is; leave out quantize, or keep name='ort'")
        if unable := sorted(formats - {*runnable(self.name)}):
            raise Unsupported(
                f"{self.name} runs no {', '.join(unable)} graph; leave out quantize's, or keep name='ort'"
            )
        options = self._options()
        if check := getattr(find("runtimes", self.name), "check", None):
            main = pipeline.retrieve
            check(main.kind, main.format, isinstance(main.model, Tied))
        if self.ahead:
            self._check_ahead(pipeline.retrieve)
        threads = self.threads or pipeline.runtime.threads
        if self.spinning and threads == 1:
            raise Unsupported("one thread waits for no other; leave out spinning, or pass threads = 2 or more")
        if self.compile and (missing := pytorch.no_compiler()):
            raise Unsupported(missing)
        return changed(pipeline, runtime=RuntimePlan(self.name, threads, options))

    def _options(self) -> dict[str, Any]:
        """What differs from the defaults. Raises `Unsupported` for what the runtime does not have."""
        asked = {name: value for name in OPTIONS if (value := getattr(self, name)) != getattr(type(self), name)}
        for setting in asked:
            if setting not in _offered(self.name):
                able = " or ".join(repr(name) for name in names("runtimes") if setting in _offered(name))
                raise Unsupported(f"{self.name} has no {setting}; leave it out, or take name={able}")
        return asked

    def _check_ahead(self, stage: Stage) -> None:
        if not isinstance(stage.model, Foresighted):
            raise Unsupported(f"only a Transformer looks at items ahead, not {stage.model.kind}; leave out ahead")
        if not folded(stage.graph):
            raise Unsupported(f"ONNX Runtime does nothing of a graph of format {stage.graph!r} ahead; leave out ahead")
        if self.graph == "none":
            raise Unsupported("ONNX Runtime does nothing ahead with graph='none'; leave out one of them")

    @classmethod
    def variants(cls, context: Context) -> Sequence[Technique]:
        cores = os.cpu_count() or 1
        before = context.original.runtime.threads
        more = [cls(threads=cores)] if cores > before else []
        more += [cls(threads=max(cores, before), spinning=True)] if max(cores, before) > 1 else []
        encoder = isinstance(context.original.retrieve.model, Encoder)
        whole = [cls(name) for name in ("fused", "openvino") if encoder and _installed(name)]
        if encoder and _installed("openvino") and halves_fast():
            whole.append(cls("openvino", precision="bf16"))
        model = context.original.retrieve.model
        if model.catalogue.n_items > MANY:
            whole.append(cls("fused" if encoder else "ort", arena=False))
        elif isinstance(model, Foresighted):
            whole.append(cls("fused", ahead=True))
        return [*whole, *more, cls("numpy"), cls(graph="extended")]


def _offered(name: str) -> Sequence[str]:
    """The settings that the runtime `name` has beside its threads."""
    offered: Sequence[str] = getattr(find("runtimes", name), "OPTIONS", ())
    return offered


def _installed(name: str) -> bool:
    """Whether the package of a runtime that is named after one is there; the others need none of their own."""
    return name != "openvino" or find_spec(name) is not None

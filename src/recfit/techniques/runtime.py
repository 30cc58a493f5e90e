"""Another way to run the same graph: threads and graph optimisation level. Nothing is given up, not all of it helps."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from dataclasses import replace as changed
from typing import ClassVar

from recfit.pipeline import Pipeline, RuntimePlan
from recfit.techniques import Context


@dataclass(frozen=True)
class Technique:
    """Run on `name` (a file of `runtimes/`) with `threads`; `graph` is ONNX Runtime's optimisation level."""

    family: ClassVar[str] = "runtime"
    order: ClassVar[int] = 70
    trains: ClassVar[bool] = False

    name: str = "ort"
    threads: int = 1
    graph: str = "all"

    def apply(self, pipeline: Pipeline, context: Context) -> Pipeline:
        options = {} if self.name == "torch" or self.graph == "all" else {"graph": self.graph}
        return changed(pipeline, runtime=RuntimePlan(self.name, self.threads, options))

    @classmethod
    def variants(cls, context: Context) -> Sequence[Technique]:
        cores = os.cpu_count() or 1
        more = [cls(threads=cores)] if cores > 1 else []
        return [*more, cls(graph="extended")]

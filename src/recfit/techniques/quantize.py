"""int8: weights and activations of the graph, and the rows of the item table (one scale a row)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from recfit.pipeline import Pipeline
from recfit.techniques import Context
from recfit.types import Unsupported


@dataclass(frozen=True)
class Technique:
    """Store the graph's matrix products (`graph`) and the item table (`table`) as int8."""

    family: ClassVar[str] = "quantize"
    order: ClassVar[int] = 40
    trains: ClassVar[bool] = False

    graph: bool = True
    table: bool = True

    def apply(self, pipeline: Pipeline, context: Context) -> Pipeline:
        stage = pipeline.main
        table = self.table and stage.kind == "encoder" and not stage.identity
        if pipeline.runtime.name == "torch":
            raise Unsupported(
                "int8 graphs run on ONNX Runtime, this pipeline runs on PyTorch; change the runtime first"
            )
        if not self.graph and not table:
            raise Unsupported(f"{stage.model.kind} has no item table of its own to store as int8; pass graph=true")
        changed = replace(stage, graph="int8" if self.graph else stage.graph, table="int8" if table else stage.table)
        return pipeline.with_main(changed)

    @classmethod
    def variants(cls, context: Context) -> Sequence[Technique]:
        main = context.original.main
        table = [cls(graph=False)] if main.kind == "encoder" and not main.identity else []
        return [*table, cls()]

"""Fewer bits: int8 weights and activations of the graph, int8 or int4 rows of the item table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from recfit.models._options import check_choice
from recfit.pipeline import Pipeline
from recfit.registry import names
from recfit.techniques import Context
from recfit.types import Unsupported


@dataclass(frozen=True)
class Technique:
    """Store the graph's matrix products as int8 (`graph`) and the item table in another format (a file of `tables/`;
    `float32` leaves it)."""

    family: ClassVar[str] = "quantize"
    order: ClassVar[int] = 40
    trains: ClassVar[bool] = False

    graph: bool = True
    table: str = "int8"

    def __post_init__(self) -> None:
        check_choice(
            "technique.quantize.table", self.table, tuple(name for name in names("tables") if name != "identity")
        )

    def apply(self, pipeline: Pipeline, context: Context) -> Pipeline:
        stage = pipeline.main
        table = self.table != "float32" and stage.kind == "encoder" and not stage.identity
        if pipeline.runtime.name == "torch":
            raise Unsupported(
                "int8 graphs run on ONNX Runtime, this pipeline runs on PyTorch; change the runtime first"
            )
        if not self.graph and not table:
            raise Unsupported(
                f"{stage.model.kind} has no item table of its own to store in fewer bits; pass graph=true"
            )
        changed = replace(
            stage, graph="int8" if self.graph else stage.graph, table=self.table if table else stage.table
        )
        return pipeline.with_main(changed)

    @classmethod
    def variants(cls, context: Context) -> Sequence[Technique]:
        main = context.original.main
        table = [cls(graph=False), cls(graph=False, table="int4")]
        return [*(table if main.kind == "encoder" and not main.identity else []), cls()]

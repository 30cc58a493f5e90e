"""Fewer bits: int8 weights and activations of the graph, and another format of the item table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from recfit.models._options import check_choice, from_options
from recfit.pipeline import Pipeline, Stage
from recfit.registry import find, names
from recfit.techniques import Context
from recfit.types import Unsupported

# Below this many items the codebooks of `pq` outweigh what they save over int4 rows.
CODED_ITEMS = 4000


@dataclass(frozen=True)
class Technique:
    """Store the graph's matrix products as int8 (`graph`) and the item table in another format (a file of `tables/` with
    `table_options` for its settings; `float32` leaves it, and a table of trained codes is left as it is)."""

    family: ClassVar[str] = "quantize"
    order: ClassVar[int] = 40
    trains: ClassVar[bool] = False

    graph: bool = True
    table: str = "int8"
    table_options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_choice(
            "technique.quantize.table", self.table, tuple(name for name in names("tables") if name != "identity")
        )
        options = {**self.table_options, "dim": 1}
        from_options(find("tables", self.table).Config, options, "technique.quantize.table_options")

    def apply(self, pipeline: Pipeline, context: Context) -> Pipeline:
        stage = pipeline.main
        table = self.table != "float32" and _stored_rows(stage)
        if pipeline.runtime.name == "torch":
            raise Unsupported(
                "int8 graphs run on ONNX Runtime, this pipeline runs on PyTorch; change the runtime first"
            )
        if not self.graph and not table:
            if stage.coded:
                raise Unsupported(f"{stage.model.kind} keeps its table of trained codes; pass graph=true")
            raise Unsupported(
                f"{stage.model.kind} has no item table of its own to store in fewer bits; pass graph=true"
            )
        changed = replace(stage, graph="int8") if self.graph else stage
        if table:
            changed = replace(changed, table=self.table, table_options=self.table_options)
        return pipeline.with_main(changed)

    @classmethod
    def variants(cls, context: Context) -> Sequence[Technique]:
        main = context.original.main
        table = [cls(graph=False), cls(graph=False, table="int4")]
        if main.model.catalogue.n_items >= CODED_ITEMS and (dim := getattr(main.model.config, "embedding_dim", 0)) >= 8:
            table += [cls(graph=False, table="pq", table_options={"parts": dim // width}) for width in (4, 8)]
        return [*(table if _stored_rows(main) else []), cls()]


def _stored_rows(stage: Stage) -> bool:
    """Whether the stage has a table of item vectors, which any format may hold."""
    return stage.kind == "encoder" and not (stage.identity or stage.coded)

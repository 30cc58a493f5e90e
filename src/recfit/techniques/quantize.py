"""Fewer bits: the graph in another format (a file of `graphs/`), the item table in another (a file of `tables/`).

Mixed precision by sensitivity: layers are ranked by how far the graph's output moves when each alone is quantized, and
the worst stay float32 (as in HAWQ, Dong et al., arXiv 1905.03696, with the measured output in the place of the Hessian).
"""

from __future__ import annotations

import tempfile
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from recfit import graphs
from recfit.export import Surroundings, export, sensitivities, surroundings
from recfit.measure import lists, quality
from recfit.models import Model, as_module
from recfit.models._layers import ItemTable
from recfit.options import check_choice, check_ranges, from_options
from recfit.pipeline import Pipeline, Stage
from recfit.registry import find, names
from recfit.tables._learning import coded_rotation, random_rotation
from recfit.techniques import Context
from recfit.techniques._inherit import turned
from recfit.types import ConfigError, Queries, Unsupported

AUTO = "auto"
METRIC = "ndcg@10"

# Below this many numbers in its linear layers (0.4 MB of floats) a graph is proposed as int8 alone: there is little left
# that fewer bits would save, or layers left float32 would mend.
LARGE = 100_000
# Below this many items the codebooks of `pq` outweigh what they save over int4 rows.
CODED_ITEMS = 4000


@dataclass(frozen=True)
class Technique:
    """Store the graph in the format `graph` with `graph_options`, and the item table in the format `table`
    with `table_options`; `float32` leaves either, and a table of trained codes is left as it is.

    The `restore` layers that the graph's output is most sensitive to stay float32; "auto" restores as few as lose no more
    than the share `tolerance` of the original's NDCG@10, on the requests that end trainings.
    """

    family: ClassVar[str] = "quantize"
    order: ClassVar[int] = 40
    trains: ClassVar[bool] = False
    works_on: ClassVar[tuple[str, ...]] = ("bits",)

    graph: str = "int8"
    table: str = "int8"
    table_options: Mapping[str, Any] = field(default_factory=dict)
    graph_options: Mapping[str, Any] = field(default_factory=dict)
    restore: int | str = 0
    tolerance: float = 0.01

    def __post_init__(self) -> None:
        tables = tuple(name for name in names("tables") if name != "identity")
        check_choice("technique.quantize.graph", self.graph, names("graphs"))
        check_choice("technique.quantize.table", self.table, tables)
        options = {**self.table_options, "dim": 1}
        from_options(find("tables", self.table).Config, options, "technique.quantize.table_options")
        graphs.config_of(self.graph, self.graph_options)
        if self.restore != AUTO and (isinstance(self.restore, str) or self.restore < 0):
            raise ConfigError(f'technique.quantize.restore = {self.restore!r}; allowed: "auto", or a number from 0')
        check_ranges("technique.quantize", self, tolerance=(0, 1))

    def apply(self, pipeline: Pipeline, context: Context) -> Pipeline:
        stage, runtime = pipeline.main, pipeline.runtime.name
        has_table = self.table != "float32" and _stored_rows(stage)
        if runtime == "torch" or self.graph not in graphs.runnable(runtime):
            raise Unsupported(
                f"{runtime} runs no graph of format {self.graph} and no stage in fewer bits; change the runtime first"
            )
        if self.graph == "float32" and not has_table:
            if stage.coded:
                raise Unsupported(f"{stage.model.kind} keeps its table of trained codes; name a format for its graph")
            raise Unsupported(
                f"{stage.model.kind} has no item table of its own to store in fewer bits; name a format for its graph"
            )
        if has_table:
            model = self._levelled(stage.model, context)
            stage = replace(stage, model=model, table=self.table, table_options=self.table_options)
        if self.graph != "float32":
            stage = replace(stage, graph=self.graph, graph_options=dict(self.graph_options))
            stage = self._restored(stage, context)
        return pipeline.with_main(stage)

    def _levelled(self, model: Model, context: Context) -> Model:
        """`model` with narrow item vectors turned as few bits hold them best, which costs no byte: their numbers come by
        falling size, and one scale for all would be that of the first. By chance for `int4` (as in QuaRot, arXiv
        2404.00456), learned for `pq` (OPQ: Ge et al., CVPR 2013)."""
        items = getattr(model, "items", None)
        if self.table not in ("int4", "pq") or not isinstance(items, ItemTable) or items.basis is None:
            return model
        vectors = items.vectors().detach().float().numpy()
        config = from_options(find("tables", self.table).Config, {**self.table_options, "dim": items.width}, "table")
        if self.table == "pq" and not context.structure_only:
            basis = coded_rotation(vectors, config.parts, config.codes)
        else:
            basis = random_rotation(items.width)
        return turned(model, torch.from_numpy(basis))

    def _restored(self, stage: Stage, context: Context) -> Stage:
        """`stage` with its worst layers left float32. An untrained one has none that are worse than others."""
        if self.restore == 0 or context.structure_only:
            return stage
        around = surroundings(context.split, context.split.train.histories())
        skip = list(stage.graph_options.get("skip", ()))
        worst = [part.layer for part in sensitivities(stage, around) if part.layer not in skip]
        stages = [
            replace(stage, graph_options={**stage.graph_options, "skip": [*skip, *worst[:count]]})
            for count in range(len(worst))
        ]
        if self.restore == AUTO:
            queries = context.split.validation
            floor = (1 - self.tolerance) * _ndcg(context.original.main, around, queries)
            count = bisect_left(stages, True, key=lambda less: _ndcg(less, around, queries) >= floor)
        else:
            count = int(self.restore)
        if count >= len(stages):
            raise Unsupported(
                f"restore={self.restore} leaves none of {len(stages)} layers in {self.graph}; pass less, or more tolerance"
            )
        return stages[count]

    @classmethod
    def variants(cls, context: Context) -> Sequence[Technique]:
        """What usually pays first. What restores layers is given what the budget lets go of quality."""
        main = context.original.main
        rows = _stored_rows(main)
        large = sum(layer.weight.numel() for layer in linears(main.model)) >= LARGE
        found = [cls(), cls(graph="float32") if rows else cls(graph="codebook")]
        if large:
            careful = cls(restore=AUTO) if context.tolerance is None else cls(restore=AUTO, tolerance=context.tolerance)
            found += [cls(graph="int4"), careful, replace(careful, graph="int4")]
        if rows:
            found.append(cls(table="int4"))
            dim = getattr(main.model.config, "embedding_dim", 0)
            if main.model.catalogue.n_items >= CODED_ITEMS and dim >= 8:
                found.append(cls(table="pq", table_options={"parts": dim // 4}))
        return [*found, cls(graph="int8_static")] if large else found


def linears(model: Model) -> list[nn.Linear]:
    """The linear layers of `model`."""
    return [part for part in as_module(model).modules() if isinstance(part, nn.Linear)]


def _stored_rows(stage: Stage) -> bool:
    """Whether the stage has a table of item vectors, which any format may hold."""
    return stage.kind == "encoder" and not (stage.identity or stage.coded)


def _ndcg(stage: Stage, around: Surroundings, queries: Queries) -> float:
    """NDCG@10 of a bundle of `stage` alone."""
    with tempfile.TemporaryDirectory() as folder:
        bundle = export(Pipeline(stage), around, Path(folder) / "bundle", name="quantize", recipe={})
        found, _ = lists(bundle, queries)
    values = quality.by_user(quality.per_query(found, queries.targets, [METRIC]), queries.user)
    return float(values[METRIC].mean())

"""A cheap retriever proposes, the deciding model re-scores only what was proposed (Covington et al., RecSys 2016)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from recfit.models import Encoder, is_identity
from recfit.options import check_choice, check_ranges, from_options
from recfit.pipeline import Pipeline, Stage
from recfit.registry import find, names
from recfit.tables._faiss import ROWS
from recfit.techniques import Context
from recfit.techniques._lessons import kept
from recfit.techniques._students import two_tower
from recfit.techniques.distill import Technique as Distill
from recfit.types import Unsupported

ITSELF = "itself"
LIST = 10  # items of a list; an index is asked for so many times `k_factor`
# From here on a scan of all items takes longer than a small encoder, and an index can pay off.
MANY_ITEMS = 50_000


@dataclass(frozen=True)
class Technique:
    """Retrieve `candidates` items with a model `retriever`, rank them with the pipeline's deciding model.

    The retriever's items are stored as `table` says. With `distilled` it learns the original's scores rather than the
    events alone. `itself` is the deciding model: an index over its own item vectors proposes, its exact rows decide.
    """

    family: ClassVar[str] = "two_stage"
    order: ClassVar[int] = 50
    trains: ClassVar[bool] = True
    works_on: ClassVar[tuple[str, ...]] = ("stages",)

    retriever: str
    options: Mapping[str, Any] = field(default_factory=dict)
    candidates: int = 100
    table: str = "float32"
    table_options: Mapping[str, Any] = field(default_factory=dict)
    distilled: bool = False

    def __post_init__(self) -> None:
        check_ranges("technique.two_stage", self, candidates=(1, 1e9))
        formats = tuple(name for name in names("tables") if name != "identity")
        check_choice("technique.two_stage.table", self.table, formats)
        config = find("tables", self.table).Config
        from_options(config, {"dim": 1, **self.table_options}, "technique.two_stage.table_options")

    def apply(self, pipeline: Pipeline, context: Context) -> Pipeline:
        if pipeline.rank is not None:
            raise Unsupported("this pipeline already has two stages")
        if self.candidates >= context.split.n_items:
            raise Unsupported(
                f"candidates={self.candidates} is the whole catalogue of {context.split.n_items} items; pass fewer"
            )
        if self.retriever == ITSELF:
            return replace(pipeline, retrieve=self._indexed(pipeline.main))
        retrieve = self._stored(self._trained(context))
        return replace(pipeline, retrieve=retrieve, rank=pipeline.main, candidates=self.candidates)

    def _indexed(self, stage: Stage) -> Stage:
        """`stage` with an index in front of its rows: one encoding serves both, where two stages would encode twice."""
        if stage.kind != "encoder" or stage.identity:
            raise Unsupported(f"{stage.model.kind} has no item vectors to search; name another retriever")
        if stage.coded:
            raise Unsupported(f"{stage.model.kind} keeps its table of trained codes, which has no index")
        if not getattr(find("tables", self.table), "APPROXIMATE", False):
            raise Unsupported(f"table {self.table!r} scores every item exactly already; pass an index such as 'ivf'")
        if self.options or self.distilled:
            raise Unsupported("the retriever 'itself' is not trained; leave out options and distilled")
        if stage.table not in ROWS:
            raise Unsupported(
                f"an index keeps rows as {' or '.join(ROWS)}, these are {stage.table}; leave out quantize"
            )
        settings = {"rows": stage.table, "k_factor": max(1, round(self.candidates / LIST)), **self.table_options}
        return replace(stage, table=self.table, table_options=settings)

    def _trained(self, context: Context) -> Stage:
        if self.distilled:
            taught = Distill(self.retriever, self.options, cache=kept(context))
            return taught.apply(Pipeline(context.original.main), context).main
        return Stage(context.train(context.build(self.retriever, self.options)))

    def _stored(self, stage: Stage) -> Stage:
        if (self.table, self.table_options) == ("float32", {}):
            return stage
        if not isinstance(stage.model, Encoder) or is_identity(stage.model):
            raise Unsupported(f"{stage.model.kind} has no item table to store as {self.table!r}; leave out table")
        return replace(stage, table=self.table, table_options=self.table_options)

    @classmethod
    def variants(cls, context: Context) -> Sequence[Technique]:
        """Retrievers that cost little, with few and with many candidates; a ranker, which gains most, is offered two
        towers beside them. Indexes for an encoder of a large catalogue."""
        main, n_items = context.original.main, context.split.n_items
        towers = [two_tower(main.model)] if main.kind == "ranker" else []
        if n_items >= MANY_ITEMS:
            if main.kind == "encoder" and not main.identity:
                return [cls(ITSELF, table=table) for table in ("ivf", "hnsw", "pq_scan")]
            found = [cls("als", candidates=count, table="int8") for count in (200, 1000)]
            return [*found, *(cls(kind, options, candidates=200, table="int8") for kind, options in towers)]
        few, many = (max(20, round(n_items * share)) for share in (0.05, 0.15))
        small = [cls("als", candidates=few)] if few < many else []
        learned = [cls(kind, options, candidates=few) for kind, options in towers]
        return [*small, cls("als", candidates=many), cls("itemknn", candidates=many), *learned]

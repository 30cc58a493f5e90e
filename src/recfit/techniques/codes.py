"""Trained codes: items share the vectors of sub-ids, which are fine-tuned with the rest of the model and stored as they
are (RecJPQ: Petrov and Macdonald, WSDM 2024, arXiv 2312.06165). Sub-ids come from a product quantization of the trained
vectors in the space turned as suits it (`kmeans`; OPQ: Ge et al., CVPR 2013), from the user-item matrix (`svd`), the row
number (`quotient_remainder`) or chance (`random`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch

from recfit.models import Codable, Model, Rotatable, as_module, item_codes, rebuilt
from recfit.models._layers import ItemTable
from recfit.options import check_choice, check_ranges
from recfit.pipeline import Pipeline
from recfit.tables._learning import coded_rotation
from recfit.techniques import Context
from recfit.techniques._inherit import turned
from recfit.techniques._shrink import fine_tuned
from recfit.techniques._subids import ASSIGN, item_weights, means
from recfit.types import FloatArray, Unsupported


@dataclass(frozen=True)
class Technique:
    """Make the item table of `parts` sub-ids out of `codes` each, chosen by `assign`, then fine-tune. A model that reads
    items from a second table gets codes for that too."""

    family: ClassVar[str] = "reduce"
    order: ClassVar[int] = 35
    trains: ClassVar[bool] = True
    works_on: ClassVar[tuple[str, ...]] = ("item table",)

    parts: int = 8
    codes: int = 256
    assign: str = "kmeans"
    epochs: int = 20
    data_fraction: float = 1.0
    learning_rate: float = 1e-3

    def __post_init__(self) -> None:
        check_choice("technique.codes.assign", self.assign, tuple(ASSIGN))
        check_ranges("technique.codes", self, parts=(1, 8192), codes=(2, 256), epochs=(0, 1e6), data_fraction=(1e-6, 1))

    def apply(self, pipeline: Pipeline, context: Context) -> Pipeline:
        self._check(pipeline.main.model)
        return fine_tuned(pipeline, self._coded(pipeline.main.model, context), context, self)

    def _check(self, model: Model) -> None:
        if not isinstance(model, Codable):
            raise Unsupported(f"{model.kind} has no item table that could be made of codes; leave codes out")
        if item_codes(model) is not None:
            raise Unsupported(f"the item table of {model.kind} already is trained codes; leave codes out")
        whole = model.config.table_dim or model.config.embedding_dim
        if whole % self.parts:
            name = "table_dim" if model.config.table_dim else "embedding_dim"
            raise Unsupported(f"parts={self.parts} does not divide {name}={whole}")
        if self.codes >= model.catalogue.n_items:
            raise Unsupported(f"codes={self.codes} for {model.catalogue.n_items} items share nothing; pass fewer")

    def _coded(self, model: Any, context: Context) -> Any:
        """`model` with the tables of codes that are nearest to its own."""
        weights, kind = item_weights(context.split), "random" if context.structure_only else self.assign
        narrow = bool(model.config.table_dim)
        if kind == "kmeans" and (narrow or ("embedding_dim" in model.axes() and isinstance(model, Rotatable))):
            turn = torch.from_numpy(coded_rotation(_vectors(model.items), self.parts, self.codes, weights))
            model = turned(model, turn) if narrow else model.rotated(turn)
        # Items' features become part of the vectors; those of users, which the same setting adds, stay.
        described = {} if "user_features" in model.inputs else {"features": False, "without": ()}
        config = replace(model.config, parts=self.parts, codes=self.codes, widths=(), **described)
        coded: Any = rebuilt(model, config)
        state, module = coded.state_dict(), as_module(model)
        state |= {name: part for name, part in module.state_dict().items() if name in state}
        for path, table in module.named_modules():
            if isinstance(table, ItemTable):
                sub_ids = ASSIGN[kind](_vectors(table), context.split, self.parts, self.codes)
                state[f"{path}.sub_ids"] = torch.from_numpy(sub_ids)
                state[f"{path}.weight"] = torch.from_numpy(means(_vectors(table), sub_ids, self.codes, weights))
        coded.load_state_dict(state)
        return coded.eval()

    @classmethod
    def variants(cls, context: Context) -> Sequence[Technique]:
        """A code for every eight and every four numbers; fewer codes where the items are few, lest the codebooks weigh
        more than the rows."""
        model = context.original.main.model
        if not isinstance(model, Codable) or item_codes(model) is not None:
            return []
        codes = int(np.clip(2 ** round(np.log2(max(1, model.catalogue.n_items / 16))), 16, 256))
        whole = model.config.table_dim or model.config.embedding_dim
        widths = [width for width in (8, 4) if whole % width == 0]
        return [cls(whole // width, codes) for width in widths if codes < model.catalogue.n_items]


def _vectors(table: ItemTable) -> FloatArray:
    vectors: FloatArray = table.vectors().detach().float().numpy()
    return vectors

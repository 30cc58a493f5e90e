"""What a bundle carries beside its models."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from recfit import bundle
from recfit.texts import write_texts
from recfit.types import Features, Ragged, Rows, Split


@dataclass(frozen=True)
class Surroundings:
    """What a bundle carries beside its models: id maps, titles, the histories of the snapshot, and all items, the most
    popular first. `item_rows` tells which rows of the data the items are, where some have left. Histories that requests
    bring themselves (`keep_histories` false) calibrate and precompute, and are not written; nor are the users, unless a
    model or a list depends on who asks."""

    user_ids: tuple[str, ...]
    item_ids: tuple[str, ...]
    titles: tuple[str, ...] | None
    user_features: Features | None
    histories: Ragged
    fallback: Rows
    item_rows: Rows | None = None
    keep_histories: bool = True

    def only(self, rows: Rows) -> Surroundings:
        """What is left when only the items at `rows`, ascending, are."""
        numbers = np.full(len(self.item_ids), -1, dtype=np.int32)
        numbers[rows] = np.arange(len(rows))
        kept = rows.tolist()
        fallback = numbers[self.fallback]
        return replace(
            self,
            item_ids=tuple(self.item_ids[row] for row in kept),
            titles=None if self.titles is None else tuple(self.titles[row] for row in kept),
            histories=self.histories.renumbered(numbers),
            fallback=fallback[fallback >= 0],
            item_rows=rows,
        )


def surroundings(split: Split, histories: Ragged, keep_histories: bool = True) -> Surroundings:
    """What bundles of `split` carry, with `histories` as the users' known past."""
    counts = np.bincount(split.train.item, minlength=split.n_items)
    popular = np.argsort(-counts, kind="stable").astype(np.int32)
    train = split.train
    known = train.user_ids, train.item_ids, train.titles, train.user_features
    return Surroundings(*known, histories, popular, keep_histories=keep_histories)


def write_surroundings(around: Surroundings, directory: Path) -> None:
    for name, texts in (
        (bundle.USERS, around.user_ids),
        (bundle.ITEMS, around.item_ids),
        (bundle.TITLES, around.titles),
    ):
        if texts is not None:
            write_texts(texts, directory / name)
    if around.keep_histories:
        np.save(directory / bundle.HISTORIES[0], around.histories.indptr)
        np.save(directory / bundle.HISTORIES[1], _narrow(around.histories.values, len(around.item_ids)))
    np.save(directory / "fallback.npy", _narrow(around.fallback, len(around.item_ids)))
    if around.item_rows is not None:
        np.save(directory / bundle.ITEM_ROWS, around.item_rows)
    if (features := around.user_features) is not None:
        np.save(directory / f"{bundle.FEATURES}.npy", features.codes)
        told = json.dumps(_columns(features), ensure_ascii=False, separators=(",", ":"))
        (directory / f"{bundle.FEATURES}.json").write_text(told, encoding="utf-8")


def _columns(features: Features) -> dict[str, Any]:
    known = {"names": features.names, "sizes": features.sizes}
    return known if features.values is None else {**known, "values": features.values}


def _narrow(rows: Rows, n_items: int) -> Any:
    """Item rows in two bytes each where these hold a token too."""
    return rows.astype(np.uint16) if n_items < 2**16 else rows

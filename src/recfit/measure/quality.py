"""The only quality metrics: full-catalogue ranking, one value for each query, averaged first within users, then over them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from recfit.types import ConfigError, IntArray, Ragged, Rows

Values = npt.NDArray[np.float64]
METRICS = ("ndcg@5", "ndcg@10", "recall@5", "recall@10", "mrr@10")


def parse(metric: str) -> tuple[str, int]:
    """`ndcg@10` -> (`ndcg`, 10); other names are refused."""
    found = re.fullmatch(r"(ndcg|recall|mrr)@([1-9]\d*)", metric)
    if found is None:
        raise ConfigError(
            f"unknown quality metric {metric!r}; allowed: ndcg@K, recall@K, mrr@K with K from 1, such as {METRICS[1]!r}"
        )
    return found[1], int(found[2])


def per_query(found: IntArray, targets: Ragged, metrics: Sequence[str] = METRICS) -> dict[str, Values]:
    """Metric values [q] of recommended rows `found` [q, K] (best first, -1 pads) against `targets`.

    With binary gains and R targets: NDCG@k = sum over hits of 1/log2(rank + 1), divided by the same sum for an
    ideal list of min(k, R) hits (Jarvelin & Kekalainen 2002); Recall@k = hits / R, with R = 1 the hit rate;
    MRR@k = 1 / rank of the first hit.
    """
    width = found.shape[1]
    hits = _hits(found, targets)
    sizes = np.maximum(targets.sizes, 1)
    gains = 1 / np.log2(np.arange(2, width + 2))
    values = {}
    for metric in metrics:
        name, k = parse(metric)
        if k > width:
            raise ConfigError(f"{metric} needs lists of {k} items, these have {width}")
        top = hits[:, :k]
        if name == "ndcg":
            ideal = np.concatenate(([0.0], np.cumsum(gains[:k])))[np.minimum(sizes, k)]
            values[metric] = top @ gains[:k] / ideal
        elif name == "recall":
            values[metric] = top.sum(axis=1) / sizes
        else:
            values[metric] = (top / np.arange(1, k + 1)).max(axis=1, initial=0.0)
    return values


def _hits(found: IntArray, targets: Ragged) -> Values:
    """1.0 where a recommended row is a target of its query, [q, K]."""
    # Each query has numbers of its own, and one more than there are rows: the padding of the next query meets nothing.
    span = int(max(found.max(initial=0), targets.values.max(initial=0))) + 2
    query = np.repeat(np.arange(len(targets)), targets.sizes)
    wanted = query * span + targets.values
    asked = np.arange(len(found))[:, None] * span + found
    return np.isin(asked, wanted).astype(np.float64)


def by_user(values: Mapping[str, Values], users: Rows) -> dict[str, Values]:
    """Per-query values [q] averaged within each user, ascending by user row: the independent units of an interval."""
    _, line = np.unique(users, return_inverse=True)
    counts = np.bincount(line)
    return {metric: np.bincount(line, weights=value) / counts for metric, value in values.items()}


def share_found(found: Iterable[IntArray | Rows], wanted: Iterable[IntArray | Rows]) -> float:
    """The mean share of `wanted` rows that are in `found`, over the requests for which both have any; -1 is no row."""
    shares = []
    for rows, goal in zip(found, wanted, strict=True):
        real = goal[goal >= 0]
        if len(real) and (rows >= 0).any():
            shares.append(np.isin(real, rows).mean())
    return float(np.mean(shares)) if shares else 0.0


def beyond_accuracy(found: IntArray, n_items: int, popularity: IntArray, k: int = 10) -> dict[str, float]:
    """`coverage@k`, the share of the catalogue that is ever recommended, and `popularity@k`, the mean share of
    all training events that a recommended item has, in percent; that one only where there are events."""
    shown = found[:, :k]
    shown = shown[shown >= 0]
    shares = {f"coverage@{k}": len(np.unique(shown)) / n_items}
    if popularity.any():
        shares[f"popularity@{k}"] = float(popularity[shown].mean() / popularity.sum() * 100) if len(shown) else 0.0
    return shares

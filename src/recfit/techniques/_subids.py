"""Which sub-ids an item gets before they are trained: functions (vectors [n, d], data, parts, codes) -> uint8 [n, parts].

Errors of items count by the root of their events: rare items have long vectors, which would take most of the codes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from scipy.sparse import csr_matrix
from scipy.sparse.linalg import svds

from recfit.tables._learning import SEED, Codes, codebooks, in_parts
from recfit.types import FloatArray, Split, Unsupported

Assigned = Callable[[FloatArray, Split, int, int], Codes]


def kmeans(vectors: FloatArray, split: Split, parts: int, codes: int) -> Codes:
    """Items whose trained vectors lie near each other in a part share its sub-id (PQ: Jégou et al., TPAMI 2011)."""
    return codebooks(in_parts(vectors, parts, vectors.shape[1] // parts), codes, item_weights(split))[0]


def svd(vectors: FloatArray, split: Split, parts: int, codes: int) -> Codes:
    """The quantile of an item in each of the leading components of the user-item matrix (RecJPQ, arXiv 2312.06165)."""
    shape = (split.n_users, split.n_items)
    if parts >= min(shape):
        raise Unsupported(f"assign='svd' of {shape[0]} users and {shape[1]} items has too few components for {parts=}")
    matrix = csr_matrix((np.ones(len(split.train)), (split.train.user, split.train.item)), shape)
    matrix.data = np.ones_like(matrix.data)
    components = svds(matrix, parts, v0=np.ones(min(shape)))[2][::-1]
    ranks = components.argsort(axis=1, kind="stable").argsort(axis=1)
    quantiles: Codes = (ranks * codes // shape[1]).astype(np.uint8).T
    return quantiles


def random(vectors: FloatArray, split: Split, parts: int, codes: int) -> Codes:
    """By chance: the control."""
    return np.random.default_rng(SEED).integers(codes, size=(len(vectors), parts), dtype=np.uint8)


def quotient_remainder(vectors: FloatArray, split: Split, parts: int, codes: int) -> Codes:
    """The item row's remainder and quotient by `codes` in turn, so that no two items share all (Shi et al., KDD 2020,
    arXiv 1909.02107)."""
    if parts < 2 or len(vectors) > codes**2:
        raise Unsupported(
            f"assign='quotient_remainder' tells {codes**2} items apart by 2 parts, not {len(vectors)} by {parts}; "
            "pass more codes, parts >= 2"
        )
    rows = np.arange(len(vectors))[:, None]
    digits: Codes = np.where(np.arange(parts) % 2 == 0, rows % codes, rows // codes).astype(np.uint8)
    return digits


ASSIGN: Mapping[str, Assigned] = {
    "kmeans": kmeans,
    "svd": svd,
    "random": random,
    "quotient_remainder": quotient_remainder,
}


def item_weights(split: Split) -> FloatArray:
    """How much an item's vector matters, float32 [n]."""
    counts = np.bincount(split.train.item, minlength=split.n_items)
    weights: FloatArray = np.sqrt(counts + 1.0, dtype=np.float32)
    return weights


def means(vectors: FloatArray, sub_ids: Codes, codes: int, weights: FloatArray) -> FloatArray:
    """The vectors of the sub-ids that are nearest to the items': the mean of a part over the items that share it by
    their `weights` [n], zeros where none does, float32 [parts, codes, width]."""
    count, parts = sub_ids.shape
    found = np.zeros((parts, codes, vectors.shape[1] // parts), np.float32)
    for part, values in enumerate(in_parts(vectors, *found.shape[::2]).swapaxes(0, 1)):
        sharing = csr_matrix((weights, (sub_ids[:, part], np.arange(count))), (codes, count))
        found[part] = (sharing @ values) / np.maximum(sharing.sum(axis=1), 1e-12)
    return found

"""What `write` of the coded formats learns: codebooks by k-means in sub-spaces (Jégou et al., TPAMI 2011) and the
rotation of the space that a code holds best (OPQ: Ge et al., CVPR 2013; ITQ: Gong and Lazebnik, CVPR 2011)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from recfit.types import FloatArray, IntArray

Codes = npt.NDArray[np.uint8]

SEED = 0
STEPS, ROUGH = 25, 6  # of k-means, to the end and between rotations
ROUNDS = 10  # of code and rotation in turn
SAMPLE = 1 << 16  # vectors that are learned from


def in_parts(vectors: FloatArray, parts: int, width: int) -> FloatArray:
    """[n, d] -> [n, parts, width], zeros behind the last number."""
    padded = np.zeros((len(vectors), parts * width), np.float32)
    padded[:, : vectors.shape[1]] = vectors
    return padded.reshape(-1, parts, width)


def codebooks(
    vectors: FloatArray, count: int, weights: FloatArray | None = None, steps: int = STEPS
) -> tuple[Codes, FloatArray]:
    """`count` centroids for each part of `vectors` [n, parts, width], and the nearest of each: uint8 [n, parts],
    float32 [parts, count, width]. The errors of vectors count by their `weights` [n]. No more vectors than centroids are
    their own centroids."""
    n, parts, _ = vectors.shape
    if n <= count:
        codes = np.arange(n, dtype=np.uint8)[:, None].repeat(parts, axis=1)
        return codes, np.ascontiguousarray(vectors.transpose(1, 0, 2))
    learned = [_centroids(vectors[:, part], count, weights, steps) for part in range(parts)]
    return np.stack([codes for codes, _ in learned], axis=1), np.stack([centroids for _, centroids in learned])


def _centroids(vectors: FloatArray, count: int, weights: FloatArray | None, steps: int) -> tuple[Codes, FloatArray]:
    """k-means: the nearest centroid of each of `vectors` [n, width], centroids [count, width]."""
    import faiss

    points = np.ascontiguousarray(vectors)
    settings = {"niter": steps, "seed": SEED, "min_points_per_centroid": 1, "max_points_per_centroid": SAMPLE // count}
    found = faiss.Kmeans(points.shape[1], count, **settings)
    found.train(points, weights=weights)
    centroids: FloatArray = np.asarray(found.centroids, np.float32)
    return found.assign(points)[1].astype(np.uint8), centroids


def decoded(codes: Codes, centroids: FloatArray) -> FloatArray:
    """The vectors that `codes` [..., parts] of `centroids` [parts, count, width] stand for: [..., parts * width]."""
    width = centroids.shape[2]
    places = codes + starts(codes.shape[-1], centroids)
    return centroids.reshape(-1, width).take(places, axis=0).reshape(*codes.shape[:-1], -1)


def starts(parts: int, centroids: FloatArray) -> IntArray:
    """Where each part's centroids begin when they lie one after another; all parts may share those of the first."""
    first: IntArray = np.arange(parts) % len(centroids) * centroids.shape[1]
    return first


def rotation(
    vectors: FloatArray, approximated: Callable[[FloatArray], FloatArray], weights: FloatArray | None = None
) -> FloatArray:
    """An orthogonal R [d, d] for which `approximated(vectors @ R)` is near `vectors @ R`: the code and the rotation
    (orthogonal Procrustes) improve in turn, from a random start that spreads what is large over all coordinates."""
    weighed = vectors if weights is None else vectors * weights[:, None]
    basis = random_rotation(vectors.shape[1])
    for _ in range(ROUNDS):
        left, _, right = np.linalg.svd(weighed.T @ approximated(vectors @ basis))
        basis = (left @ right).astype(np.float32)
    return basis


def random_rotation(dim: int) -> FloatArray:
    """An orthogonal matrix [dim, dim] that spreads what is large over all coordinates; always the same one."""
    draws = np.random.default_rng(SEED).standard_normal((dim, dim))
    basis: FloatArray = np.linalg.qr(draws)[0].astype(np.float32)
    return basis


def coded_rotation(vectors: FloatArray, parts: int, count: int, weights: FloatArray | None = None) -> FloatArray:
    """The rotation for `codebooks` of `count` centroids, learned from a sample."""
    width = -(-vectors.shape[1] // parts)
    step = -(-len(vectors) // SAMPLE)
    sample, counted = vectors[::step], None if weights is None else weights[::step]

    def approximated(turned: FloatArray) -> FloatArray:
        found = codebooks(in_parts(turned, parts, width), count, counted, ROUGH)
        return decoded(*found)[:, : vectors.shape[1]]

    return rotation(sample, approximated, counted)

"""How inverted lists are made and chosen, by distance or by inner product, and what a search finds. Results are dated JSON.

    python -m benchmarks.probes runs/scan      # the folder of benchmarks.scan; what is missing there is made first

Of the items of `benchmarks.scan` the first 30,000, the same lists in number and the same probes; the rows are float32 and
all of a list is scored, so that what is not found was in a list that was not probed.
"""

from __future__ import annotations

import argparse
from math import isqrt
from pathlib import Path

import numpy as np
from benchmarks.record import save
from benchmarks.scan import DIM, K, prepared

from recfit.tables.ivf import MOST
from recfit.topk import best
from recfit.types import FloatArray, IntArray

ITEMS, PROBES = 30_000, 32


def found(vectors: FloatArray, queries: FloatArray, made: str, chosen: str) -> IntArray:
    """What a search finds in lists that are `made` and probes that are `chosen` by "distance" or by "product"."""
    import faiss

    kinds = {"distance": faiss.IndexFlatL2, "product": faiss.IndexFlatIP}
    centroids, lists = kinds[made](DIM), 4 * isqrt(len(vectors))
    index = faiss.IndexIVFFlat(centroids, DIM, lists, faiss.METRIC_INNER_PRODUCT)
    index.cp.max_points_per_centroid, index.cp.spherical = MOST, made == "product"
    index.train(vectors)
    index.add(vectors)
    probes = kinds[chosen](DIM)
    probes.add(centroids.reconstruct_n(0, lists))
    index.quantizer, index.nprobe = probes, PROBES
    rows: IntArray = index.search(queries, K)[1]
    return rows


def recall(listed: IntArray, exact: IntArray) -> float:
    return float(np.mean([np.isin(wanted, rows).mean() for wanted, rows in zip(exact, listed, strict=True)]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    queries = prepared(folder, [])
    vectors = np.load(folder / "items.npy")[:ITEMS]
    gone = [np.empty(0, np.int32)] * len(queries)
    exact = np.stack([rows for rows, _ in best(queries @ vectors.T, K, gone)])
    rows = [
        {"made by": made, "chosen by": chosen, "recall": recall(found(vectors, queries, made, chosen), exact)}
        for made, chosen in (("distance", "product"), ("product", "product"), ("distance", "distance"))
    ]
    for row in rows:
        print(row)
    sizes = {"items": ITEMS, "dim": DIM, "k": K, "queries": len(queries), "lists": 4 * isqrt(ITEMS), "probes": PROBES}
    print(save("probes", "", {**sizes, "rows": rows}))


if __name__ == "__main__":
    main()

"""What every format makes of one graph: its bytes, and how far the output moves. Results are dated JSON.

    python -m benchmarks.graph_errors BUNDLE      # of a tied encoder, with a float32 graph

The error is |y - y_q| / |y| over made-up histories of random items; formats with fixed scales see others of the kind. Of
`int8` it says what each layer does alone.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.record import save

from recfit import bundle as bundles
from recfit import graphs
from recfit.graphs import Inputs
from recfit.runtimes import ort
from recfit.tables import opened
from recfit.types import FloatArray

FORMATS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("float32", {}),
    ("int8", {}),
    ("int8", {"per": "tensor"}),
    ("int8_static", {}),
    ("int8_static", {"calibration": "entropy"}),
    ("int4", {}),
    ("codebook", {}),
    ("codebook", {"bits": 8}),
    ("codebook", {"bits": 2}),
    ("power_of_two", {}),
    ("power_of_two", {"bits": 2}),
)
ASKED, SEEN = 100, 16  # histories that are compared, and those that fixed scales are made of


def histories(bundle: Path) -> list[Inputs]:
    """Requests of as many random items as the encoder reads."""
    spec = bundles.open_files(bundle).stages["retrieve"]
    table = opened(bundle / "retrieve" / "table", spec.table, 1)
    items = np.random.default_rng(0).integers(0, spec.n_items, (ASKED + SEEN, 1, spec.max_history))
    return [{"history": rows + 1, "vectors": table.rows(rows)} for rows in items]


def outputs(path: Path, requests: list[Inputs]) -> FloatArray:
    session = ort.session(path)
    takes = {given.name for given in session.get_inputs()}
    asked = [{name: values for name, values in one.items() if name in takes} for one in requests]
    found: FloatArray = np.concatenate([session.run(None, one)[0] for one in asked])
    return found


def measured(bundle: Path, folder: Path) -> Iterator[dict[str, Any]]:
    source, every = bundle / "retrieve" / ort.GRAPH, histories(bundle)
    asked, seen = every[:ASKED], every[ASKED:]
    exact = outputs(source, asked)

    def feed() -> Iterator[Inputs]:
        return iter(seen)

    for at, (name, settings) in enumerate(FORMATS):
        path = Path(shutil.copy(source, folder / f"{at}.onnx"))
        graphs.convert(path, name, settings, feed)
        apart = np.linalg.norm(outputs(path, asked) - exact, axis=1) / np.linalg.norm(exact, axis=1)
        yield {"graph": name, **settings, "mb": path.stat().st_size / 1e6, "error": float(apart.mean())}


def layers(bundle: Path) -> list[dict[str, Any]]:
    """What `int8` does to each layer, asked with the histories that the bundle holds; what moves the output most first."""
    files = bundles.open_files(bundle)
    given = (files.stages["retrieve"], files.histories, None, files.fallback)
    found = graphs.report(
        bundle / "retrieve" / ort.GRAPH, "int8", {}, lambda: graphs.calibration(bundle / "retrieve", *given)
    )
    return [asdict(layer) for layer in found]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    bundle = parser.parse_args().bundle
    with tempfile.TemporaryDirectory() as folder:
        rows = list(measured(bundle, Path(folder)))
    found = {"histories": ASKED, "calibration": SEEN, "rows": rows, "layers of int8": layers(bundle)}
    for row in (*rows, *found["layers of int8"]):
        print(row)
    print(save("graph_errors", "", found))


if __name__ == "__main__":
    main()

"""What a zero point is worth and costs: item tables and products of a graph, symmetric and asymmetric. Results are dated JSON.

    python -m benchmarks.zero_points

Made-up numbers, one thread. `even` ones are normal, `leaning` ones are those without what is below 0, as behind a ReLU. The
error is the root mean square of what rounding moves, as a share of that of the numbers. Times are of one query, or of one
product with 50 rows, of `even` numbers; blocks of the two alternate.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from benchmarks.record import save
from onnx import TensorProto, helper, numpy_helper

from recfit import graphs
from recfit.registry import find
from recfit.runtimes import ort
from recfit.types import FloatArray

ITEMS, DIM = 100_000, 64
TAKEN, GIVEN, ROWS = 512, 2048, 50
BLOCKS, CALLS = 40, 20
CHOICES = ("symmetric", "asymmetric")


def drawn(*shape: int) -> FloatArray:
    found: FloatArray = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    return found


def numbers(*shape: int) -> dict[str, FloatArray]:
    even = drawn(*shape)
    return {"even": even, "leaning": np.maximum(even, 0)}


def tables(folder: Path) -> Iterator[dict[str, Any]]:
    for name in ("int8", "int4"):
        module, calls, rows = find("tables", name), {}, []
        for choice in CHOICES:
            config = module.Config(DIM, asymmetric=choice == "asymmetric")
            row: dict[str, Any] = {"table": name, "rows": choice}
            for kind, vectors in numbers(ITEMS, DIM).items():
                path = folder / name / choice / kind
                module.write(vectors, path, config)
                table = module.open_table(path, config, 1)
                row[f"error {kind}"] = error(vectors, table.matrix())
                row["bytes an item"] = sum(part.stat().st_size for part in path.glob("*.bin")) / ITEMS
                calls.setdefault(choice, table.scores)
            rows.append(row)
        yield from timed(rows, calls, drawn(1, DIM))


def products(folder: Path) -> Iterator[dict[str, Any]]:
    x = drawn(ROWS, TAKEN)
    for name in ("int8", "int8_static"):
        calls, rows = {}, []
        for choice in CHOICES:
            row: dict[str, Any] = {"graph": name, "weights": choice}
            for kind, weights in numbers(TAKEN, GIVEN).items():
                path = product(weights, folder / f"{name}-{choice}-{kind}.onnx")
                [layer] = graphs.layers(onnx.load(path).graph)
                graphs.convert(path, name, {"weights": choice}, lambda: iter([{"x": x}]))
                row[f"error {kind}"] = error(weights, find("graphs", name).weights(onnx.load(path).graph, layer))
                calls.setdefault(choice, called(ort.session(path)))
            rows.append(row)
        yield from timed(rows, calls, x)


def product(weights: FloatArray, path: Path) -> Path:
    value = helper.make_tensor_value_info
    ends = [value("x", TensorProto.FLOAT, ["n", TAKEN])], [value("y", TensorProto.FLOAT, ["n", GIVEN])]
    node = helper.make_node("MatMul", ["x", "w"], ["y"], "product")
    graph = helper.make_graph([node], "product", *ends, [numpy_helper.from_array(weights, "w")])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def called(session: Any) -> Callable[[FloatArray], Any]:
    return lambda x: session.run(None, {"x": x})


def error(exact: FloatArray, rounded: FloatArray) -> float:
    return float(np.sqrt(np.square(exact - rounded).mean() / np.square(exact).mean()))


def timed(
    rows: Sequence[dict[str, Any]], calls: Mapping[str, Callable[[FloatArray], Any]], given: FloatArray
) -> Sequence[dict[str, Any]]:
    """`rows`, one for each of `calls`, with the median of their times."""
    spans: dict[str, list[float]] = {choice: [] for choice in calls}
    for block in range(BLOCKS + 1):
        for choice, call in calls.items():
            for _ in range(CALLS):
                begin = time.perf_counter()
                call(given)
                if block:  # the first warms
                    spans[choice].append(time.perf_counter() - begin)
    for row, found in zip(rows, spans.values(), strict=True):
        row["p50 us"] = float(np.median(found)) * 1e6
    return rows


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        found = [*tables(Path(folder)), *products(Path(folder))]
    for row in found:
        print(row)
    sizes = {"items": ITEMS, "dim": DIM, "matrix": [TAKEN, GIVEN], "rows": ROWS, "calls": BLOCKS * CALLS}
    print(save("zero_points", "", {**sizes, "found": found}))


if __name__ == "__main__":
    main()

"""One dense layer's product against the sparse kernels a CPU has here: SciPy and PyTorch CSR. Results are dated JSON.

    python -m benchmarks.sparse

`x W`, x [rows, inputs], W [inputs, outputs] of which a share is zero, chosen by chance, float32, one thread. The sparse
kernels multiply the transposed matrix from the left, as CSR wants it. NumPy and ONNX Runtime multiply the zeros too: their
times are what a sparse kernel has to beat. Blocks of all kernels are interleaved; a time is the median of batches of calls, in
microseconds of processor time, which other programs on the machine move less than the clock.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnxruntime
import scipy
import torch
from benchmarks.record import save
from onnx import TensorProto, helper, numpy_helper
from threadpoolctl import threadpool_limits

from recfit.types import FloatArray

SHAPES = ((128, 128), (128, 512), (512, 2048))
ROWS = (1, 32)
SPARSITIES = (0.0, 0.5, 0.8, 0.9, 0.95, 0.99)
SHOWN = (0.5, 0.8, 0.95)
BLOCKS, BLOCK_S, BATCH_S = 9, 4e-3, 2e-4
FASTER = 0.95  # of the dense time; what is closer is a tie

Product = Callable[[], Any]


def numpy_dense(x: FloatArray, weight: FloatArray) -> Product:
    return lambda: x @ weight


def onnx_runtime(x: FloatArray, weight: FloatArray) -> Product:
    """A graph of one MatMul, as a bundle has for every linear layer."""
    tensors = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, size])
        for name, size in zip("xy", weight.shape, strict=True)
    ]
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    graph = helper.make_graph([node], "layer", tensors[:1], tensors[1:], [numpy_helper.from_array(weight, "w")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, {"x": x})[0]


def scipy_csr(x: FloatArray, weight: FloatArray) -> Product:
    matrix, columns = scipy.sparse.csr_array(weight.T), np.ascontiguousarray(x.T)
    return lambda: (matrix @ columns).T


def torch_csr(x: FloatArray, weight: FloatArray) -> Product:
    matrix, columns = torch.from_numpy(weight.T.copy()).to_sparse_csr(), torch.from_numpy(x.T.copy())
    return lambda: (matrix @ columns).T


DENSE = {"ONNX Runtime": onnx_runtime, "NumPy": numpy_dense}
SPARSE = {"SciPy CSR": scipy_csr, "torch CSR": torch_csr}


def cell(shape: tuple[int, int], rows: int, sparsity: float) -> dict[str, Any]:
    """The times of every kernel for one matrix."""
    draws = np.random.default_rng(0)
    x = draws.standard_normal((rows, shape[0]), np.float32)
    weight = draws.standard_normal(shape, np.float32) * (draws.random(shape) >= sparsity)
    weight = weight.astype(np.float32)
    kernels = {name: make(x, weight) for name, make in (DENSE | SPARSE).items()}
    for name, product in kernels.items():
        np.testing.assert_allclose(np.asarray(product()), x @ weight, rtol=1e-3, atol=1e-3, err_msg=name)
    spans: dict[str, list[float]] = {name: [] for name in kernels}
    for _ in range(BLOCKS):
        for name, product in kernels.items():
            spans[name] += block(product)
    us = {name: float(np.median(taken)) * 1e6 for name, taken in spans.items()}
    return {"shape": list(shape), "rows": rows, "sparsity": sparsity, "us": us}


def block(product: Product) -> Iterator[float]:
    """Seconds of processor time of a call, of batches of calls for `BLOCK_S` together; the first call, which finds the caches
    as the kernel before left them, doesn't count."""
    product()
    calls, left = 1, BLOCK_S
    while left > 0:
        begin = time.thread_time()
        for _ in range(calls):
            product()
        taken = time.thread_time() - begin
        yield taken / calls
        left -= taken
        calls = max(1, round(BATCH_S * calls / taken))


def beaten(cells: Sequence[Mapping[str, Any]], sparse: str, dense: str) -> float | None:
    """The least sparsity measured from which on the sparse kernel is the faster one; None where there is none."""
    found = None
    for one in reversed(cells):
        if one["us"][sparse] > FASTER * one["us"][dense]:
            break
        found = one["sparsity"]
    return found


def lines(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """A row for every layer; of the sparse kernels the times at the sparsities `SHOWN`, and from where they beat the dense."""
    shown = " / ".join(f"{100 * share:g}" for share in SHOWN)
    heads = ["layer", "rows", *DENSE]
    for name in SPARSE:
        heads += [f"{name} at {shown} %", f"beats {' / '.join(DENSE)} from"]
    yield f"| {' | '.join(heads)} |"
    yield "| --- " + "| ---: " * (len(heads) - 1) + "|"
    for start in range(0, len(rows), len(SPARSITIES)):
        cells = rows[start : start + len(SPARSITIES)]
        parts = [" x ".join(map(str, cells[0]["shape"])), str(cells[0]["rows"])]
        parts += [_us(float(np.median([one["us"][name] for one in cells]))) for name in DENSE]
        for name in SPARSE:
            parts.append(" / ".join(_us(one["us"][name]) for one in cells if one["sparsity"] in SHOWN))
            points = [beaten(cells, name, dense) for dense in DENSE]
            parts.append(" / ".join("never" if at is None else f"{100 * at:g} %" for at in points))
        yield f"| {' | '.join(parts)} |"


def _us(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}"


def main() -> None:
    torch.set_num_threads(1)
    with threadpool_limits(1), torch.inference_mode():
        rows = [cell(shape, count, share) for shape in SHAPES for count in ROWS for share in SPARSITIES]
    found = {
        "protocol": f"x W in float32, 1 thread, zeros by chance; {BLOCKS} interleaved blocks of {1e3 * BLOCK_S:g} ms a kernel; "
        f"us: microseconds of processor time a call, median of batches of {1e3 * BATCH_S:g} ms",
        "scipy": scipy.__version__,
        "rows": rows,
    }
    print(*lines(rows), save("sparse", "", found), sep="\n")


if __name__ == "__main__":
    main()

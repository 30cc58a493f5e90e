"""The ONNX operators that recfit's graphs use, in NumPy: name -> (settings of the node -> function of its inputs).

Semantics: https://onnx.ai/onnx/operators and, for those of ONNX Runtime's own, its ContribOperators.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Function = Callable[..., Array]


def _plain(function: Callable[..., Any]) -> Callable[..., Function]:
    """An operator without settings that matter."""
    return lambda **settings: function


def _erf(x: Array) -> Array:
    """Abramowitz and Stegun 7.1.26, off by 1.5e-7 at most."""
    size = np.abs(x)
    t = 1.0 / (1.0 + np.float32(0.3275911) * size)
    series = t * (
        0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * np.float32(1.061405429))))
    )
    found: Array = np.copysign(1.0 - series * np.exp(-size * size), x)
    return found


def _gelu(**settings: Any) -> Function:
    return lambda x: x * (0.5 * (1.0 + _erf(x * np.float32(0.5**0.5))))


def _softmax(axis: int = -1, **settings: Any) -> Function:
    def softmax(x: Array) -> Array:
        powers: Array = np.exp(x - x.max(axis=axis, keepdims=True))
        powers /= powers.sum(axis=axis, keepdims=True)
        return powers

    return softmax


def _rms_norm(epsilon: float = 1e-5, **settings: Any) -> Function:
    def rms_norm(x: Array, gain: Array) -> Array:
        squares = np.einsum("...i,...i->...", x, x)[..., None]
        normed: Array = x * (gain / np.sqrt(squares / np.float32(x.shape[-1]) + np.float32(epsilon)))
        return normed

    return rms_norm


def _attention(num_heads: int, mask_filter_value: float = -1e4, **settings: Any) -> Function:
    softmax = _softmax()

    def split(x: Array) -> Array:
        return x.reshape(*x.shape[:2], num_heads, -1).transpose(0, 2, 1, 3)

    def attention(query: Array, key: Array, value: Array, _: None, real: Array, bias: Array) -> Array:
        query, key, value = split(query), split(key), split(value)
        scores = query @ key.swapaxes(2, 3) * np.float32(query.shape[-1] ** -0.5) + bias
        if not real.all():
            scores = scores + np.where(real, 0.0, mask_filter_value).astype(np.float32)[:, None, None]
        mixed = (softmax(scores) @ value).transpose(0, 2, 1, 3)
        return mixed.reshape(*mixed.shape[:2], -1)

    return attention


def _matmul(alpha: float = 1.0, transA: int = 0, transB: int = 0, **settings: Any) -> Function:
    def matmul(a: Array, b: Array) -> Array:
        product = (a.swapaxes(-1, -2) if transA else a) @ (b.swapaxes(-1, -2) if transB else b)
        return product if alpha == 1.0 else product * np.float32(alpha)

    return matmul


def _gemm(alpha: float = 1.0, beta: float = 1.0, transA: int = 0, transB: int = 0, **settings: Any) -> Function:
    product = _matmul(alpha, transA, transB)

    def gemm(a: Array, b: Array, c: Array | None = None) -> Array:
        return product(a, b) if c is None else product(a, b) + (c if beta == 1.0 else c * np.float32(beta))

    return gemm


def _reduce(function: Callable[..., Any]) -> Callable[..., Function]:
    def made(axes: list[int] | None = None, keepdims: int = 1, **settings: Any) -> Function:
        def reduced(x: Array, along: Array | None = None) -> Array:
            chosen = axes if along is None else along.tolist()
            axis = None if chosen is None else tuple(chosen)
            return np.asarray(function(x, axis=axis, keepdims=bool(keepdims)))

        return reduced

    return made


def _slice(x: Array, starts: Array, ends: Array, axes: Array | None = None, steps: Array | None = None) -> Array:
    chosen = [slice(None)] * x.ndim
    along = range(len(starts)) if axes is None else axes.tolist()
    by = [1] * len(starts) if steps is None else steps.tolist()
    for axis, start, end, step in zip(along, starts.tolist(), ends.tolist(), by, strict=True):
        # Backwards to the very beginning has no number in Python: -1 would be the last.
        chosen[axis] = slice(start, None if step < 0 and end < -x.shape[axis] else end, step)
    return x[tuple(chosen)]


def _split(axis: int = 0, num_outputs: int = 0, **settings: Any) -> Callable[..., list[Array]]:
    def split(x: Array, sizes: Array | None = None) -> list[Array]:
        # Equal parts of ceil(size / num_outputs), the last one smaller, as ONNX has it.
        step = -(-x.shape[axis] // max(1, num_outputs))
        ends = np.arange(step, x.shape[axis], step) if sizes is None else np.cumsum(sizes)[:-1]
        return np.split(x, ends, axis)

    return split


def _reshape(x: Array, shape: Array) -> Array:
    return x.reshape([x.shape[axis] if size == 0 else size for axis, size in enumerate(shape.tolist())])


def _scatter(axis: int = 0, reduction: str = "none", **settings: Any) -> Function:
    def scatter(x: Array, rows: Array, updates: Array) -> Array:
        out = x.copy()
        if reduction == "add":
            where = np.indices(rows.shape, sparse=True)
            np.add.at(out, tuple(rows if at == axis % x.ndim else where[at] for at in range(x.ndim)), updates)
        else:
            np.put_along_axis(out, rows, updates, axis)
        return out

    return scatter


def _clip(x: Array, low: Array | None = None, high: Array | None = None) -> Array:
    return np.clip(x, low, high)


def _expand(x: Array, shape: Array) -> Array:
    return np.broadcast_to(x, np.broadcast_shapes(x.shape, tuple(shape.tolist())))


def _squeeze(x: Array, axes: Array | None = None) -> Array:
    return x.squeeze(None if axes is None else tuple(axes.tolist()))


def _range(start: Array, limit: Array, delta: Array) -> Array:
    return np.arange(start.item(), limit.item(), delta.item(), dtype=start.dtype)


def _divide(a: Array, b: Array) -> Array:
    return a // b if a.dtype.kind == "i" else a / b


def _shape(start: int = 0, end: int | None = None, **settings: Any) -> Function:
    return lambda x: np.array(x.shape[start:end], np.int64)


def _constant_of_shape(value: list[Any] | None = None, **settings: Any) -> Function:
    number = (value or [0.0])[0]
    kind = np.float32 if isinstance(number, float) else np.int64
    return lambda shape: np.full(shape.tolist(), number, kind)


OPERATORS: Mapping[str, Callable[..., Callable[..., Any]]] = {
    "Abs": _plain(np.abs),
    "Add": _plain(np.add),
    "And": _plain(np.logical_and),
    "Cast": lambda to, **settings: lambda x: x.astype(to),
    "Clip": _plain(_clip),
    "Concat": lambda axis, **settings: lambda *parts: np.concatenate(parts, axis),
    "ConstantOfShape": _constant_of_shape,
    "Div": _plain(_divide),
    "Equal": _plain(np.equal),
    "Erf": _plain(_erf),
    "Exp": _plain(np.exp),
    "Expand": _plain(_expand),
    "Flatten": lambda axis=1, **settings: lambda x: x.reshape(int(np.prod(x.shape[:axis])), -1),
    "FusedMatMul": _matmul,
    "Gather": lambda axis=0, **settings: lambda x, rows: x.take(rows, axis),
    "GatherElements": lambda axis=0, **settings: lambda x, rows: np.take_along_axis(x, rows, axis),
    "Gelu": _gelu,
    "Gemm": _gemm,
    "Greater": _plain(np.greater),
    "GreaterOrEqual": _plain(np.greater_equal),
    "Identity": _plain(lambda x: x),
    "Less": _plain(np.less),
    "LessOrEqual": _plain(np.less_equal),
    "MatMul": _matmul,
    "Max": _plain(np.maximum),
    "Min": _plain(np.minimum),
    "Mul": _plain(np.multiply),
    "MultiHeadAttention": _attention,
    "Neg": _plain(np.negative),
    "Not": _plain(np.logical_not),
    "Or": _plain(np.logical_or),
    "Pow": _plain(np.power),
    "Range": _plain(_range),
    "ReduceMax": _reduce(np.max),
    "ReduceMean": _reduce(np.mean),
    "ReduceSum": _reduce(np.sum),
    "Relu": _plain(lambda x: np.maximum(x, np.float32(0))),
    "Reshape": _plain(_reshape),
    "ScatterElements": _scatter,
    "Shape": _shape,
    "SimplifiedLayerNormalization": _rms_norm,
    "Slice": _plain(_slice),
    "Softmax": _softmax,
    "Split": _split,
    "Sqrt": _plain(np.sqrt),
    "Squeeze": _plain(_squeeze),
    "Sub": _plain(np.subtract),
    "Transpose": lambda perm=None, **settings: lambda x: x.transpose(perm),
    "Unsqueeze": _plain(lambda x, axes: np.expand_dims(x, tuple(axes.tolist()))),
    "Where": _plain(np.where),
}

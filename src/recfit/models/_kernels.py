"""Operators that ONNX Runtime has as one kernel: PyTorch computes their formula, an exported graph names the kernel.

The time of a small model's graph goes by the number of its nodes, and each of these kernels stands for a dozen.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

EPSILON = 1e-6
MASKED = -3e4  # finite, so that a row of padding gives numbers and not NaN; fits float16


def rms_norm(hidden: Tensor, gain: Tensor | float = 1.0) -> Tensor:
    """`x / rms(x)` along the last axis, times one number (the linear layer that follows holds other gains), so that it
    commutes with every orthogonal map of that axis (Zhang and Sennrich, arXiv 1910.07467; Ashkboos et al., arXiv
    2401.15024)."""
    if torch.onnx.is_in_onnx_export():
        gains = torch.full((int(hidden.shape[-1]),), float(gain))
        normed: Tensor = _RmsNorm.apply(hidden, gains)  # type: ignore[no-untyped-call]
        return normed
    return hidden * torch.rsqrt(hidden.square().mean(-1, keepdim=True) + EPSILON) * gain


def attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor, real: Tensor, heads: int) -> Tensor:
    """Softmax attention of `heads` heads: query [B, Lq, H w], key, value [B, L, H w] -> [B, Lq, H w].

    `bias` [1, H, Lq, L] joins every request's scores, positions that are not `real` (bool [B, L]) are not seen.
    """
    if torch.onnx.is_in_onnx_export():
        mixed: Tensor = _Attend.apply(query, key, value, bias, real.int(), heads)  # type: ignore[no-untyped-call]
        return mixed
    query, key, value = (part.view(*part.shape[:2], heads, -1).transpose(1, 2) for part in (query, key, value))
    unseen = torch.where(real, 0.0, MASKED)[:, None, None]
    weights = (query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5 + (bias + unseen)).softmax(-1)
    joined: Tensor = (weights @ value).transpose(1, 2).flatten(2)
    return joined


def shifted(line: Tensor, count: int, width: int) -> Tensor:
    """All `count` windows of `width` numbers of a line, the last one first: [H, count + width - 1] -> [H, count, width].

    A graph's line is a constant, so ONNX Runtime makes the windows once, when it opens the graph.
    """
    if torch.onnx.is_in_onnx_export():
        made: Tensor = _Shifted.apply(line, count, width)  # type: ignore[no-untyped-call]
        return made
    if torch.compiler.is_compiling():  # with `unfold`, which takes no free sizes, anew for every length
        return line[:, torch.arange(count - 1, -1, -1)[:, None] + torch.arange(width)]
    return line.unfold(1, width, 1).flip(1)


def trailing(table: Tensor, *sizes: Tensor) -> Tensor:
    """The last entries of `table` along its last axes, along each as many as one of `sizes`, [B, n, ...], has positions."""
    if torch.onnx.is_in_onnx_export():
        kept: Tensor = _Trailing.apply(table, *sizes)  # type: ignore[no-untyped-call]
        return kept
    return _last(table, sizes)


def _last(table: Tensor, sizes: tuple[Tensor, ...]) -> Tensor:
    for axis, size in enumerate(sizes, table.ndim - len(sizes)):
        table = table.narrow(axis, table.shape[axis] - size.shape[1], size.shape[1])
    return table


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, gain: Tensor) -> Tensor:
        return torch.empty_like(hidden)

    @staticmethod
    def symbolic(graph: Any, hidden: Any, gain: Any) -> Any:
        settings = {"axis_i": -1, "epsilon_f": EPSILON, "stash_type_i": 1}
        return graph.op("SimplifiedLayerNormalization", hidden, gain, **settings).setType(hidden.type())


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, bias: Tensor, real: Tensor, heads: int) -> Tensor:
        return torch.empty_like(query)

    @staticmethod
    def symbolic(graph: Any, query: Any, key: Any, value: Any, bias: Any, real: Any, heads: int) -> Any:
        nothing = graph.op("prim::Constant")
        nothing.setType(torch._C.OptionalType.ofTensor())
        given = (query, key, value, nothing, real, bias)
        settings = {"num_heads_i": heads, "mask_filter_value_f": MASKED}
        return graph.op("com.microsoft::MultiHeadAttention", *given, **settings).setType(query.type())


class _Shifted(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, line: Tensor, count: int, width: int) -> Tensor:
        return line.unfold(1, width, 1).flip(1)

    @staticmethod
    def symbolic(graph: Any, line: Any, count: int, width: int) -> Any:
        def number(value: int) -> Any:
            return graph.op("Constant", value_t=torch.tensor(value))

        # The exporter would fold all of this, and the file hold the place of every number, but for `Abs`.
        last, first = graph.op("Abs", number(count - 1)), graph.op("Abs", number(0))
        starts, places = (
            graph.op("Range", last, number(-1), number(-1)),
            graph.op("Range", first, number(width), number(1)),
        )
        rows = graph.op("Unsqueeze", starts, graph.op("Constant", value_t=torch.tensor([1])))
        windows = graph.op("Gather", line, graph.op("Add", rows, places), axis_i=1)
        return windows.setType(line.type().with_sizes([None, count, width]))


class _Trailing(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, table: Tensor, *sizes: Tensor) -> Tensor:
        return _last(table, sizes)

    @staticmethod
    def symbolic(graph: Any, table: Any, *sizes: Any) -> Any:
        lengths = [graph.op("Shape", size, start_i=1, end_i=2) for size in sizes]
        starts = graph.op("Neg", graph.op("Concat", *lengths, axis_i=0) if len(lengths) > 1 else lengths[0])
        ends = graph.op("Constant", value_t=torch.full((len(sizes),), torch.iinfo(torch.int64).max))
        axes = graph.op("Constant", value_t=torch.arange(-len(sizes), 0))
        return graph.op("Slice", table, starts, ends, axes).setType(table.type().with_sizes(None))

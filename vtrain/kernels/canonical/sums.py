"""Sums over dimensions."""

from __future__ import annotations

import math

import torch

from vtrain.kernels import launch
from vtrain.kernels.canonical.checks import F32, F64, Tensor, checked, same_shape, sized

_TERMS = {"value": 0, "wide": 1, "square": 2, "centred_square": 3, "product": 4, "centred_product": 5, "normalised": 6}


def _layout(x: Tensor, dims: list[int]) -> tuple[list[int], list[int]] | None:
    """(batch, outer, rows, cols) of x and strides, summing over outer and cols; None if x must be copied first."""
    kept = [d for d in range(x.dim()) if d not in dims]

    def merged(group: list[int]) -> tuple[int, int] | None:
        group = [d for d in group if x.shape[d] != 1]
        if not group:
            return 1, 0
        for left, right in zip(group, group[1:], strict=False):
            if x.stride(left) != x.stride(right) * x.shape[right]:
                return None
        size = 1
        for d in group:
            size *= x.shape[d]
        return size, x.stride(group[-1])

    def split(group: list[int]) -> list[tuple[int, int]] | None:
        """One or two stretches of dimensions that are one dimension each."""
        whole = merged(group)
        if whole is not None:
            return [(1, 0), whole]
        for cut in range(1, len(group)):
            parts = merged(group[:cut]), merged(group[cut:])
            if parts[0] is not None and parts[1] is not None:
                return [parts[0], parts[1]]
        return None

    rows, terms = split(kept), split(dims)
    if rows is None or terms is None:
        return None
    sizes = [rows[0][0], terms[0][0], rows[1][0], terms[1][0]]
    strides = [rows[0][1], terms[0][1], rows[1][1], terms[1][1]]
    return sizes, strides


def sum_terms(kind: str, dims: list[int], x: Tensor, *others: Tensor) -> Tensor:
    """Sums over dims in float64, in the order of sum.hpp; the kept dimensions in order.

    Args:
        kind: the terms: ``value`` x; ``square`` x^2; ``centred_square`` (x - mean)^2; ``product`` x * b;
            ``centred_product`` x * (b - mean); ``normalised`` x * ((b - mean) * rstd). Differences and products are
            rounded to float32, squares are exact.
        dims: ascending.
        others: b of x's shape; then mean, one a result, contiguous (``normalised``: mean and rstd, one a term).
    """
    for i, other in enumerate(others):
        checked("sum", x, (F32,), **{f"operand {i + 1}": other})
    checked("sum", x, (F32, F64) if kind == "value" else (F32,), x=x)
    pair = others[:1] if kind in ("product", "centred_product", "normalised") else ()
    rest = others[len(pair) :]
    for b in pair:
        same_shape("sum", x, b=b)
    layout = _layout(x, dims) if not pair or pair[0].stride() == x.stride() else None
    if layout is None or (kind in ("centred_square", "centred_product") and layout[0][0] != 1):
        kept = [d for d in range(x.dim()) if d not in dims]
        x, *pair_ = (t.permute(*kept, *dims).contiguous() for t in (x, *pair))
        pair, dims = tuple(pair_), list(range(len(kept), x.dim()))
        layout = _layout(x, dims)
        assert layout is not None
    shape = [x.shape[d] for d in range(x.dim()) if d not in dims]
    for i, vector in enumerate(rest):
        terms = math.prod(x.shape[d] for d in dims)
        sized("sum", terms if kind == "normalised" else math.prod(shape), **{f"operand {i + 1 + len(pair)}": vector})
    y = torch.empty(shape, dtype=F64, device=x.device)
    if y.numel():
        operands = [x, *pair, *(t.contiguous() for t in rest)]
        operands += [None] * (4 - len(operands))  # type: ignore[list-item]
        if kind == "value" and x.dtype is F64:
            kind = "wide"
        launch.launch("sum", *operands, y, _TERMS[kind], *layout[0], *layout[1])
    return y

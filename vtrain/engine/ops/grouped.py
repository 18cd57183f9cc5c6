"""Products by group, as mixtures of experts have them (numerics §2, class 3)."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from vtrain.engine.core import F32, F64, Engine
from vtrain.engine.definition import dtype_name
from vtrain.engine.ops.matmul import chain, integer_sum, product, row_norms
from vtrain.engine.optable import OpClass, register
from vtrain.rounding.bounds import sum_kappa
from vtrain.rounding.scale import Scale

Tensor = torch.Tensor
Part = tuple[Tensor, Tensor, Tensor]  # left and right factor of a group, and where its product goes


def _parts(a: Tensor, b: Tensor, y: Tensor, ends: list[int]) -> Iterator[Part]:
    """The groups: rows of a (2-D by 3-D), columns of b (3-D by 2-D), or a share of the sum (2-D by 2-D)."""
    start = 0
    for g, end in enumerate(ends):
        at = slice(start, end)
        if a.dim() == 3:
            yield a[g], b[:, at], y[:, at]
        elif b.dim() == 3:
            yield a[at], b[g], y[at]
        else:
            yield a[:, at], b[at], y[g]
        start = end


def _shape(a: Tensor, b: Tensor, groups: int) -> tuple[int, ...]:
    both_flat = a.dim() == b.dim() == 2
    return (groups, a.shape[0], b.shape[1]) if both_flat else (a.shape[-2], b.shape[-1])


@register("_grouped_mm.default", cls=OpClass.VARYING, version=2)
def grouped_mm(
    engine: Engine,
    a: Tensor,
    b: Tensor,
    offs: Tensor | None = None,
    bias: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """The groups' products, whose ends are ``offs``; settled as one result, so that its shape is not the routing's."""
    if bias is not None or (out_dtype is not None and out_dtype is not a.dtype):
        engine.refuse("a bias, or a result of another dtype")
    if offs is None:
        return product(engine, a, b)
    ends = offs.tolist()
    if engine.chain or engine.integer:
        y = torch.zeros(_shape(a, b, len(ends)), dtype=F32 if engine.chain else F64, device=a.device)
        for left, right, out in _parts(a, b, y, ends):
            out.copy_(chain(engine, left, right) if engine.chain else integer_sum(engine, left, right))
        return engine.fixed("", y, engine.format(a.dtype), signed=True)
    c = engine.product_dtype_of(a.shape[-1], a, b)
    wide_a, wide_b = engine.workspace.widen("a", a, c), engine.workspace.widen("b", b, c)
    shape = _shape(a, b, len(ends))

    def compute(backwards: bool) -> Tensor:
        y = torch.zeros(shape, dtype=c, device=a.device)
        for left, right, out in _parts(wide_a, wide_b, y, ends):
            out.copy_(left.flip(1) @ right.flip(0) if backwards else left @ right)
        return y

    def scale() -> Scale:
        s = torch.zeros(shape, dtype=F64, device=a.device)
        for left, right, out in _parts(a, b, s, ends):
            out.copy_(row_norms(left).unsqueeze(1) * row_norms(right.mT).unsqueeze(0))
        k = a.shape[-1]  # of each sum, or (2-D by 2-D) of all groups' sums together
        kappa = sum_kappa(k, dtype_name(c), 1)
        return Scale("mm", k, kappa, (1, 1, s.numel()), full=s, compute=dtype_name(c))

    return engine.settle("", compute(False), scale, engine.format(a.dtype), lambda: compute(True))

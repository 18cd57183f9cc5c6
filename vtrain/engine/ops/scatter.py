"""Additions at indices: several terms may meet in one element (numerics §2, class 3)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch

from vtrain.engine.core import F32, F64, Engine
from vtrain.engine.ops.writes import cannot_repeat, write
from vtrain.engine.optable import OpClass, register
from vtrain.kernels import canonical
from vtrain.rounding.bounds import sum_kappa
from vtrain.rounding.scale import Scale

Tensor = torch.Tensor
_FRACTION_BITS = {torch.float32: 23, torch.float16: 10, torch.bfloat16: 7}
aten = torch.ops.aten


def settle_linear(
    engine: Engine,
    f: Callable[[Tensor], Tensor],
    x: Tensor,
    terms: int,
    dtype: torch.dtype,
    part: str = "",
    extra: int = 1,
) -> Tensor:
    """f(x) for an f that adds up elements of x with weights >= 0, in float64; s = f(|x|).

    Args:
        terms: most elements that meet in one result.
        extra: roundings of each term (a weight, a division).
    """
    wide = x.to(F64)
    y = f(wide)

    def scale() -> Scale:
        kappa = sum_kappa(max(1, terms), "float64", extra)
        s = f(wide.abs()).abs().contiguous()  # a divisor may be negative
        if extra == 0:
            s.masked_fill_(s < exact_below(wide, x.dtype), 0.0)
        return Scale("scatter", max(2, terms), kappa, (1, 1, y.numel()), full=s)

    return engine.settle(part, y, scale, engine.format(dtype))


def exact_below(wide: Tensor, dtype: torch.dtype) -> float:
    """Sums of magnitudes below this mean that every partial sum of elements of x is a float64: every order is exact.

    All elements are multiples of the quantum of the least one; 2^52 quanta, half of what fits, leave room for the sum
    of magnitudes to be rounded itself.

    Args:
        wide: x in float64.
        dtype: of x.
    """
    magnitudes = wide.abs()
    least = torch.where(magnitudes > 0, magnitudes, float("inf")).min() if wide.numel() else None
    if least is None or not bool(least.isfinite()):
        return float("inf")
    return math.ldexp(1.0, math.frexp(float(least))[1] - 1 - _FRACTION_BITS[dtype] + 52)


@register("embedding_dense_backward.default", cls=OpClass.VARYING)
def embedding_backward(
    engine: Engine, grad: Tensor, indices: Tensor, rows: int, padding_idx: int, scale_by_freq: bool
) -> Tensor:
    """Sum of the gradients of each row's uses. At most as many rows as indices are settled; the others are 0."""
    if scale_by_freq:
        engine.refuse("scale_grad_by_freq")
    flat, g = indices.reshape(-1), grad.reshape(-1, grad.shape[-1])
    if padding_idx >= 0:
        keep = flat != padding_idx
        flat, g = flat[keep], g[keep]
    used, inverse = torch.unique(flat, return_inverse=True)
    # Not the number of rows in use: the sequence of sites must not depend on the data.
    shape = (min(rows, indices.numel()), grad.shape[-1])
    if engine.canonical:
        sums = engine.fixed("", canonical.scatter(g.to(F32), inverse, shape[0]), engine.format(grad.dtype))
    else:
        most = int(torch.bincount(inverse).max()) if used.numel() else 1
        add = lambda v: v.new_zeros(shape).index_add_(0, inverse, v)  # noqa: E731
        sums = settle_linear(engine, add, g, most, grad.dtype, extra=0)
    out = torch.zeros(rows, grad.shape[-1], dtype=grad.dtype, device=grad.device)
    return out.index_copy_(0, used, sums[: used.numel()])


def _accumulate(
    engine: Engine, x: Tensor, values: Tensor, add: Callable[[Tensor, Tensor], Tensor], alpha: float = 1, terms: int = 0
) -> Tensor:
    """x plus values at indices, rounded once; s likewise from magnitudes.

    Args:
        terms: values added up in all, where that may be more than ``values`` has elements: they are broadcast.
    """
    engine.check_factor(alpha)
    terms = max(terms, values.numel()) + 1
    y = add(x.to(F64), values.to(F64) * alpha)

    def scale() -> Scale:
        s = add(x.to(F64).abs(), values.to(F64).abs() * abs(alpha)).contiguous()
        if alpha == 1:
            exact = min(exact_below(x.to(F64), x.dtype), exact_below(values.to(F64), values.dtype))
            s.masked_fill_(s < exact, 0.0)
        kappa = sum_kappa(terms, "float64", 1)
        return Scale("scatter", terms, kappa, (1, 1, y.numel()), full=s.contiguous())

    return engine.settle("", y, scale, engine.format(x.dtype))


def _flat_positions(x: Tensor) -> Tensor:
    return torch.arange(x.numel(), device=x.device).view(x.shape)


def _fixed_scatter(engine: Engine, x: Tensor, index: Tensor, values: Tensor, alpha: float = 1) -> Tensor:
    """x plus alpha * values at flat positions, in ascending order of the values' own; rounded once."""
    base = x.to(F32).reshape(-1, 1)
    y = canonical.scatter(values.to(F32).reshape(-1, 1), index.reshape(-1), x.numel(), base, float(alpha))
    return engine.fixed("", y.view(x.shape), engine.format(x.dtype))


def _integers(*args: object, **kwargs: object) -> bool:
    return isinstance(args[0], Tensor) and not args[0].is_floating_point()


def _free_of_order(
    x: Tensor, indices: Sequence[Tensor | None], values: Tensor, accumulate: bool = False, unsafe: bool = False
) -> bool:
    return not x.is_floating_point() if accumulate else cannot_repeat(indices, values)


def _put_in_place(
    engine: Engine, x: Tensor, indices: Sequence[Tensor | None], values: Tensor, accumulate: bool = False
) -> None:
    if accumulate:
        x.copy_(index_put(engine, x, indices, values, True))
    else:
        write(x, indices, values)


@register("index_add.default", cls=OpClass.VARYING, native_when=_integers)
def index_add(engine: Engine, x: Tensor, dim: int, index: Tensor, source: Tensor, alpha: float = 1) -> Tensor:
    """x[index] += alpha * source along dim."""
    if engine.canonical and x.dim():
        moved, values = x.movedim(dim, 0), source.movedim(dim, 0)
        base = moved.to(F32).reshape(x.shape[dim], -1)
        y = canonical.scatter(
            values.to(F32).reshape(values.shape[0], -1), index.reshape(-1), x.shape[dim], base, float(alpha)
        )
        return engine.fixed("", y.view(moved.shape).movedim(0, dim).contiguous(), engine.format(x.dtype))
    return _accumulate(engine, x, source, lambda a, v: a.index_add(dim, index, v), alpha)


@register("scatter_add.default", cls=OpClass.VARYING, native_when=_integers)
def scatter_add(engine: Engine, x: Tensor, dim: int, index: Tensor, source: Tensor) -> Tensor:
    """x.scatter_add(dim, index, source)."""
    if engine.canonical and x.dim():
        within = source[tuple(slice(0, n) for n in index.shape)]
        rows = _flat_positions(x).select(dim, 0).unsqueeze(dim)
        rows = rows[tuple(slice(0, 1 if d == dim % x.dim() else n) for d, n in enumerate(index.shape))]
        return _fixed_scatter(engine, x, rows + index * _flat_positions(x).stride(dim), within)
    return _accumulate(engine, x, source, lambda a, v: a.scatter_add(dim, index, v))


@register(
    "index_put.default", "_unsafe_index_put.default", cls=OpClass.VARYING, native_when=_free_of_order,
    inplace=_put_in_place, version=2,
)  # fmt: skip
def index_put(
    engine: Engine, x: Tensor, indices: Sequence[Tensor | None], values: Tensor, accumulate: bool = False
) -> Tensor:
    """x[indices] += values; or x[indices] = values, where the last position that writes an element wins."""
    if not accumulate:
        return write(x.clone(), indices, values)
    if engine.canonical:
        at = aten.index.Tensor(_flat_positions(x), list(indices))
        return _fixed_scatter(engine, x, at, values.expand(at.shape))
    terms = aten.index.Tensor(x, list(indices)).numel()
    return _accumulate(engine, x, values, lambda a, v: aten.index_put.default(a, list(indices), v, True), terms=terms)


@register("_index_put_impl_.default", cls=OpClass.VARYING, native_when=_free_of_order, version=2)
def index_put_impl(
    engine: Engine,
    x: Tensor,
    indices: Sequence[Tensor | None],
    values: Tensor,
    accumulate: bool = False,
    unsafe: bool = False,
) -> Tensor:
    """x[indices] += values, or = values, in place."""
    _put_in_place(engine, x, indices, values, accumulate)
    return x

"""Additions at indices: several terms may meet in one element (numerics §2, class 3)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch

from vtrain.engine.core import F32, F64, Engine, over
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
    most = int(torch.bincount(inverse).max()) if used.numel() else 1
    if engine.canonical:
        sums = engine.fixed("", canonical.scatter(g.to(F32), inverse, shape[0]), engine.format(grad.dtype))
    else:
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


def _fixed_planes(engine: Engine, grad: Tensor, index: Tensor, shape: Sequence[int]) -> Tensor:
    """Each gradient of ``(..., positions)`` to one element of its plane, the same for all planes; rounded once.

    Args:
        index: flat position in the plane for each of the gradient's last dimensions.
        shape: of the result.
    """
    area = math.prod(shape[-2:])
    columns = grad.to(F32).reshape(-1, index.numel()).t()
    y = canonical.scatter(columns, index.reshape(-1), area).t()
    return engine.fixed("", y.reshape(shape), engine.format(grad.dtype))


def _fixed_pool_backward(engine: Engine, grad: Tensor, shape: Sequence[int], indices: Tensor) -> Tensor:
    """Each gradient to its window's maximum, whose position in the plane is ``indices``."""
    planes, area = grad.numel() // max(1, math.prod(grad.shape[-2:])), math.prod(shape[-2:])
    offset = torch.arange(planes, device=grad.device).view(-1, 1) * area
    flat = (indices.reshape(planes, -1) + offset).reshape(-1)
    y = canonical.scatter(grad.to(F32).reshape(-1, 1), flat, planes * area)
    return engine.fixed("", y.view(list(shape)), engine.format(grad.dtype))


def _integers(*args: object, **kwargs: object) -> bool:
    return isinstance(args[0], Tensor) and not args[0].is_floating_point()


def _no_add(x: Tensor, indices: object, values: Tensor, accumulate: bool = False, unsafe: bool = False) -> bool:
    return not accumulate or not x.is_floating_point()


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


@register("index_put.default", "_unsafe_index_put.default", cls=OpClass.VARYING, native_when=_no_add)
def index_put(
    engine: Engine, x: Tensor, indices: Sequence[Tensor | None], values: Tensor, accumulate: bool = False
) -> Tensor:
    """x[indices] += values."""
    if engine.canonical:
        at = aten.index.Tensor(_flat_positions(x), list(indices))
        return _fixed_scatter(engine, x, at, values.expand(at.shape))
    terms = aten.index.Tensor(x, list(indices)).numel()
    return _accumulate(engine, x, values, lambda a, v: aten.index_put.default(a, list(indices), v, True), terms=terms)


@register("_index_put_impl_.default", cls=OpClass.VARYING, native_when=_no_add)
def index_put_impl(
    engine: Engine,
    x: Tensor,
    indices: Sequence[Tensor | None],
    values: Tensor,
    accumulate: bool = False,
    unsafe: bool = False,
) -> Tensor:
    """x[indices] += values, in place."""
    return x.copy_(index_put(engine, x, indices, values, True))


@register("max_pool2d_with_indices_backward.default", cls=OpClass.VARYING)
def max_pool_backward(
    engine: Engine,
    grad: Tensor,
    x: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    ceil_mode: bool,
    indices: Tensor,
) -> Tensor:
    """Each gradient to its window's maximum; overlapping windows add up."""
    args = (kernel, stride, padding, dilation, ceil_mode, indices)
    if engine.canonical:
        return _fixed_pool_backward(engine, grad, x.shape, indices)
    area = kernel[0] * kernel[-1]
    wide = x.to(F64)
    f = lambda g: aten.max_pool2d_with_indices_backward(g, wide, *args)  # noqa: E731
    return settle_linear(engine, f, grad, area, grad.dtype, extra=0)


@register("avg_pool2d.default", cls=OpClass.VARYING)
def avg_pool2d(
    engine: Engine,
    x: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] = (0,),
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor: int | None = None,
) -> Tensor:
    """Mean of each window."""
    f = lambda v: aten.avg_pool2d(v, kernel, stride, padding, ceil_mode, count_include_pad, divisor)  # noqa: E731
    return settle_linear(engine, f, x, kernel[0] * kernel[-1], x.dtype)


@register("avg_pool2d_backward.default", cls=OpClass.VARYING)
def avg_pool2d_backward(
    engine: Engine,
    grad: Tensor,
    x: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    ceil_mode: bool,
    count_include_pad: bool,
    divisor: int | None,
) -> Tensor:
    """Each window's share of its gradient."""
    wide = x.to(F64)
    args = (kernel, stride, padding, ceil_mode, count_include_pad, divisor)
    f = lambda g: aten.avg_pool2d_backward(g, wide, *args)  # noqa: E731
    return settle_linear(engine, f, grad, kernel[0] * kernel[-1], grad.dtype)


@register("_adaptive_avg_pool2d.default", cls=OpClass.VARYING)
def adaptive_avg_pool2d(engine: Engine, x: Tensor, size: Sequence[int]) -> Tensor:
    """Mean of each of size windows."""
    if engine.canonical and all(n % s == 0 for n, s in zip(x.shape[-2:], size, strict=True)) and x.numel():
        (h, w), (oh, ow) = x.shape[-2:], size
        windows = x.reshape(*x.shape[:-2], oh, h // oh, ow, w // ow).to(F32)
        y = canonical.sum_terms("value", [windows.dim() - 3, windows.dim() - 1], windows)
        return engine.fixed("", over(y, (h // oh) * (w // ow)), engine.format(x.dtype))
    f = lambda v: aten._adaptive_avg_pool2d(v, size)  # noqa: E731
    return settle_linear(engine, f, x, x.shape[-1] * x.shape[-2], x.dtype)


@register("_adaptive_avg_pool2d_backward.default", cls=OpClass.VARYING, version=2)
def adaptive_avg_pool2d_backward(engine: Engine, grad: Tensor, x: Tensor) -> Tensor:
    """Each window's share of its gradient."""
    (h, w), (oh, ow) = x.shape[-2:], grad.shape[-2:]
    if grad.numel() and h % oh == 0 and w % ow == 0:  # every input is in one window: one division, no sum
        share = over(engine.lift(grad), (h // oh) * (w // ow))
        spread = share.repeat_interleave(h // oh, -2).repeat_interleave(w // ow, -1)
        return engine.finish(spread.contiguous(), grad.dtype)
    wide = x.to(F64)
    f = lambda g: aten._adaptive_avg_pool2d_backward(g, wide)  # noqa: E731
    return settle_linear(engine, f, grad, grad.shape[-1] * grad.shape[-2], grad.dtype)


@register("upsample_nearest2d_backward.default", cls=OpClass.VARYING)
def upsample_nearest2d_backward(
    engine: Engine,
    grad: Tensor,
    out: Sequence[int],
    size: Sequence[int],
    h: float | None = None,
    w: float | None = None,
) -> Tensor:
    """Sum over the positions that read each input."""
    if engine.canonical:
        plane = _flat_positions(grad.new_empty(size[-2:])).to(F64).view(1, 1, *size[-2:])
        index = aten.upsample_nearest2d(plane, out, h, w).to(torch.int64)
        return _fixed_planes(engine, grad, index, size)
    f = lambda g: aten.upsample_nearest2d_backward(g, out, size, h, w)  # noqa: E731
    return settle_linear(engine, f, grad, grad.shape[-1] * grad.shape[-2], grad.dtype, extra=0)


def _bilinear_backward(engine: Engine, grad: Tensor, *args: object) -> Tensor:
    """Each input's share of the outputs that read it, weights from one multiplication and one subtraction each."""
    f = lambda g: aten.upsample_bilinear2d_backward(g, *args)  # noqa: E731
    return settle_linear(engine, f, grad, grad.shape[-1] * grad.shape[-2], grad.dtype, extra=8)


register("upsample_bilinear2d_backward.default", cls=OpClass.VARYING)(_bilinear_backward)


@register("adaptive_max_pool2d_backward.default", cls=OpClass.VARYING)
def adaptive_max_pool_backward(engine: Engine, grad: Tensor, x: Tensor, indices: Tensor) -> Tensor:
    """Each gradient to its window's maximum; overlapping windows add up."""
    if engine.canonical:
        return _fixed_pool_backward(engine, grad, x.shape, indices)
    wide = x.to(F64)
    f = lambda g: aten.adaptive_max_pool2d_backward(g, wide, indices)  # noqa: E731
    return settle_linear(engine, f, grad, grad.shape[-1] * grad.shape[-2], grad.dtype, extra=0)


@register("replication_pad2d_backward.default", "replication_pad1d_backward.default", cls=OpClass.VARYING)
def replication_pad_backward(engine: Engine, grad: Tensor, x: Tensor, padding: Sequence[int]) -> Tensor:
    """Sum over the positions that repeat each input."""
    wide = x.to(F64)
    backward = aten.replication_pad2d_backward if len(padding) == 4 else aten.replication_pad1d_backward
    f = lambda g: backward(g, wide, padding)  # noqa: E731
    return settle_linear(engine, f, grad, math.prod(grad.shape[-(len(padding) // 2) :]), grad.dtype, extra=0)

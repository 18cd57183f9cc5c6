"""Sums and what is made of them, accumulated in float64 (numerics §2, class 3)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch

from vtrain import kernels
from vtrain.engine.core import F32, F64, Engine, over
from vtrain.engine.definition import Definition, DefinitionFn
from vtrain.engine.ops.functions import exp32, log32, power, settle_function, settle_power
from vtrain.engine.optable import OpClass, register
from vtrain.kernels import canonical
from vtrain.rounding.bounds import settled_sum_kappa, sum_kappa
from vtrain.rounding.formats import FLOAT32, Format
from vtrain.rounding.scale import Scale

Tensor = torch.Tensor
_MOST_FACTORS = 1000  # 2^-1000 is a normal float64


def normal_dims(x: Tensor, dim: int | Sequence[int] | None) -> list[int]:
    """Dimensions to reduce, ascending; None and an empty list mean all. A number has one to name, and none to reduce.

    Raises:
        IndexError, RuntimeError: torch's, for one that x does not have, or has been named before.
    """
    if dim is None or (isinstance(dim, Sequence) and not dim):
        return list(range(x.dim()))
    n = max(1, x.dim())
    dims = [dim] if isinstance(dim, int) else list(dim)
    for d in dims:
        if not -n <= d < n:
            raise IndexError(f"Dimension out of range (expected to be in range of [{-n}, {n - 1}], but got {d})")
    found = sorted(d % n for d in dims)
    for d, following in itertools.pairwise(found):
        if d == following:
            raise RuntimeError(f"dim {d} appears multiple times in the list of dims")
    return found if x.dim() else []


def _rows(x: Tensor, dims: Sequence[int]) -> tuple[Tensor, list[int]]:
    """x as ``(rows, n)``, the reduced dimensions last, without a copy where its layout allows; and the kept shape."""
    kept = [d for d in range(x.dim()) if d not in dims]
    shape = [x.shape[d] for d in kept]
    n = math.prod(x.shape[d] for d in dims)
    rows = math.prod(shape)
    if x.is_contiguous() and dims and kept and max(dims) < min(kept):
        return x.view(n, rows).t(), shape
    return x.permute([*kept, *dims]).reshape(rows, n), shape


def sum_and_scale(x: Tensor, dims: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Sum of x over dims and its error scale (0 where every order is exact), float64, the kept dimensions in order.

    Dimensions that straddle a kept one (batch norm) are summed in one pass: no copy of x is made.
    """
    if x.dtype is torch.float16:
        x = x.to(F32)
    if x.device.type != "cpu":
        wide = x.to(F64)
        return wide.sum(list(dims)), wide.abs().sum(list(dims))
    if list(dims) == [0, *range(2, x.dim())] and x.dim() > 2 and x.is_contiguous():
        return kernels.channel_sums(x.view(*x.shape[:2], math.prod(x.shape[2:])))
    rows, shape = _rows(x, dims)
    y, s = kernels.sums(rows)
    return y.view(shape), s.view(shape)


def settled_sum(
    engine: Engine, x: Tensor, dims: Sequence[int], fmt: Format = FLOAT32, part: str = "", divisor: float = 1.0
) -> Tensor:
    """sum(x, dims) / divisor, rounded once; the reduced dimensions are dropped."""
    n = math.prod(x.shape[d] for d in dims)
    if engine.canonical:
        return _fixed_sum(engine, "value", x.to(F32), dims, (), divisor, fmt, part)
    y, s = sum_and_scale(x, dims)
    if divisor != 1.0:
        # by a tensor: an IEEE division on every device, so that an exact sum stays exact
        y, s = over(y, divisor), s / abs(divisor)
    kappa = settled_sum_kappa(n)
    full = lambda: Scale("sum", n, kappa, (1, 1, y.numel()), full=s.contiguous())  # noqa: E731
    return engine.settle(part, y, full, fmt, definition=_sum_definition(x, dims, divisor, False))


def _sum_definition(x: Tensor, dims: Sequence[int], divisor: float, square: bool) -> DefinitionFn:
    params = {"dims": list(dims), "divisor": float(divisor).hex(), "square": square}
    return lambda: Definition("sum", params, {"x": x})


def _fixed_sum(
    engine: Engine, kind: str, x: Tensor, dims: Sequence[int], others: Sequence[Tensor], divisor: float, fmt: Format,
    part: str,
) -> Tensor:  # fmt: skip
    """A canonical sum of terms (see ``canonical.sum_terms``) over divisor, rounded once."""
    y = canonical.sum_terms(kind, list(dims), x, *others)
    return engine.fixed(part, y if divisor == 1.0 else over(y, divisor), fmt)


def _keep(y: Tensor, x: Tensor, dims: Sequence[int], keepdim: bool) -> Tensor:
    return y.view([1 if d in dims else x.shape[d] for d in range(x.dim())]) if keepdim else y


def _no_floats(*args: object, dtype: torch.dtype | None = None, **kwargs: object) -> bool:
    """Whether only integers are added: with a dtype, torch converts the terms before it adds them."""
    x = args[0]
    return isinstance(x, Tensor) and not (x.dtype if dtype is None else dtype).is_floating_point


@register("sum.default", "sum.dim_IntList", cls=OpClass.VARYING, native_when=_no_floats)
def sum_(
    engine: Engine, x: Tensor, dim: Sequence[int] | None = None, keepdim: bool = False, dtype: torch.dtype | None = None
) -> Tensor:
    """Sum over dim."""
    dims = normal_dims(x, dim)
    target = engine.format(dtype or x.dtype)
    return _keep(settled_sum(engine, x if x.is_floating_point() else x.to(F32), dims, target), x, dims, keepdim)


@register("mean.default", "mean.dim", cls=OpClass.VARYING)
def mean(
    engine: Engine, x: Tensor, dim: Sequence[int] | None = None, keepdim: bool = False, dtype: torch.dtype | None = None
) -> Tensor:
    """Sum over dim divided by its length, rounded once."""
    dims = normal_dims(x, dim)
    n = math.prod(x.shape[d] for d in dims)
    return _keep(settled_sum(engine, x, dims, engine.format(dtype or x.dtype), divisor=n), x, dims, keepdim)


def moments(engine: Engine, x: Tensor, dims: Sequence[int], correction: float = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, centred values and variance of float32 x, each rounded to float32.

    The variance is the sum of the squares of the *rounded* centred values: products of float32 values are exact in
    float64, so only the sum varies.

    Returns:
        mean and var with the reduced dimensions kept as 1; x - mean of x's shape.
    """
    n = math.prod(x.shape[d] for d in dims)
    mean_ = _keep(settled_sum(engine, x, dims, part="mean", divisor=n), x, dims, True)
    centred = torch.sub(x, mean_)
    return mean_, centred, _keep(mean_square(engine, centred, dims, max(0.0, n - correction), "var"), x, dims, True)


def mean_square(engine: Engine, x: Tensor, dims: Sequence[int], divisor: float, part: str) -> Tensor:
    """sum(x^2, dims) / divisor of float32 x, rounded to float32; the sum is its own scale."""
    n = math.prod(x.shape[d] for d in dims)
    if engine.canonical:
        return _fixed_sum(engine, "square", x, dims, (), divisor, FLOAT32, part)
    y = squares(x, dims) / divisor
    scale = Scale("sum", n, settled_sum_kappa(n), (1, 1, y.numel()), relative=True)
    return engine.settle(part, y, lambda: scale, FLOAT32, definition=_sum_definition(x, dims, divisor, True))


def squares(x: Tensor, dims: Sequence[int]) -> Tensor:
    """sum(x^2, dims) in float64."""
    if x.device.type != "cpu":
        return x.to(F64).square().sum(list(dims))
    if list(dims) == [0, *range(2, x.dim())] and x.dim() > 2 and x.is_contiguous():
        return kernels.channel_squares(x.view(*x.shape[:2], math.prod(x.shape[2:])))
    rows, shape = _rows(x, dims)
    return kernels.squares(rows).view(shape)


def product_sum(engine: Engine, a: Tensor, b: Tensor, dims: Sequence[int], part: str) -> Tensor:
    """sum(a * b, dims): the products rounded to float32 first, as the unfused sequence would."""
    if engine.canonical:
        return _fixed_sum(engine, "product", a, dims, (b,), 1.0, FLOAT32, part)
    return settled_sum(engine, torch.mul(a, b), dims, part=part)


@register("var.correction", "std.correction", cls=OpClass.COMPOSITE)
def var(
    engine: Engine, x: Tensor, dim: Sequence[int] | None = None, *, correction: float | None = 1, keepdim: bool = False
) -> Tensor:
    """Variance (or its square root) over dim."""
    dims = normal_dims(x, dim)
    v = moments(engine, engine.lift(x), dims, 1 if correction is None else correction)[2]
    if engine.op.startswith("aten.std"):
        v = settle_function(engine, "sqrt", v, part="sqrt")
    v = engine.finish(v, x.dtype)
    return v if keepdim else v.view([x.shape[d] for d in range(x.dim()) if d not in dims])


@register("var_mean.correction", cls=OpClass.COMPOSITE)
def var_mean(
    engine: Engine, x: Tensor, dim: Sequence[int] | None = None, *, correction: float | None = 1, keepdim: bool = False
) -> tuple[Tensor, Tensor]:
    """Variance and mean over dim."""
    dims = normal_dims(x, dim)
    m, _, v = moments(engine, engine.lift(x), dims, 1 if correction is None else correction)
    if not keepdim:
        shape = [x.shape[d] for d in range(x.dim()) if d not in dims]
        m, v = m.view(shape), v.view(shape)
    return engine.finish(v, x.dtype), engine.finish(m, x.dtype)


@register("linalg_vector_norm.default", cls=OpClass.COMPOSITE)
def vector_norm(
    engine: Engine,
    x: Tensor,
    ord: float = 2,
    dim: Sequence[int] | None = None,
    keepdim: bool = False,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """ord-norm over dim: 1, 2, infinity, or sum(|x|^p)^(1/p)."""
    dims = normal_dims(x, dim)
    out = dtype or x.dtype
    magnitude = engine.lift(x).abs()
    if math.isinf(ord):
        y = magnitude.amax(dims) if ord > 0 else magnitude.amin(dims)
    elif ord == 0:
        y = (magnitude != 0).sum(dims).to(F32)
    elif ord == 1:
        y = settled_sum(engine, magnitude, dims)
    elif ord == 2:
        y = settle_function(engine, "sqrt", mean_square(engine, magnitude, dims, 1.0, "squares"), part="sqrt")
    else:
        total = settled_sum(engine, power(engine, magnitude, ord, F32), dims, part="sum")
        y = settle_power(engine, total, 1.0 / ord, part="root")
    return _keep(engine.finish(y, out), x, dims, keepdim)


@register("norm.Scalar", "norm.ScalarOpt_dim", cls=OpClass.COMPOSITE)
def norm(
    engine: Engine, x: Tensor, p: float | None = 2, dim: Sequence[int] | None = None, keepdim: bool = False
) -> Tensor:
    """p-norm over dim."""
    return vector_norm(engine, x, 2 if p is None else p, dim, keepdim)


@register("cumsum.default", cls=OpClass.VARYING, native_when=_no_floats)
def cumsum(engine: Engine, x: Tensor, dim: int, dtype: torch.dtype | None = None) -> Tensor:
    """Running sums along dim."""
    normal_dims(x, dim)
    if engine.canonical:
        return engine.fixed("", canonical.running_sum(x.to(F32), dim), engine.format(dtype or x.dtype))
    wide = x.to(F64)
    y, s = wide.cumsum(dim), wide.abs().cumsum(dim)
    kappa = sum_kappa(x.shape[dim] if x.dim() else 1, "float64")
    scale = Scale("sum", max(2, x.numel()), kappa, (1, 1, y.numel()), full=s.contiguous())
    return engine.settle("", y, lambda: scale, engine.format(dtype or x.dtype))


def _factors(engine: Engine, x: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Mantissas in [1/2, 1) and exponents of n factors: products of mantissas stay in range in every order."""
    if n > _MOST_FACTORS:
        engine.refuse(f"a product of {n} factors; at most {_MOST_FACTORS} are covered")
    mantissa, exponent = torch.frexp(x.to(F64))
    return mantissa, exponent.to(F64)


def _joined(mantissa: Tensor, exponent: Tensor) -> Tensor:
    """mantissa * 2^exponent, in two steps so that neither factor overflows before the product does (8 u in all)."""
    half = (exponent / 2).floor()
    return mantissa * torch.exp2(half.clamp(-1000, 1000)) * torch.exp2((exponent - half).clamp(-1000, 1000))


@register("cumprod.default", cls=OpClass.VARYING, native_when=_no_floats)
def cumprod(engine: Engine, x: Tensor, dim: int, dtype: torch.dtype | None = None) -> Tensor:
    """Running products along dim in float64: up to n - 1 roundings, each relative."""
    n = math.prod(x.shape[d] for d in normal_dims(x, dim))
    mantissa, exponent = _factors(engine, x, n)
    y = _joined(mantissa.cumprod(dim), exponent.cumsum(dim))
    return engine.function(y, engine.format(dtype or x.dtype), kappa=sum_kappa(n, "float64", 8))


@register("_trilinear.default")
def trilinear(
    engine: Engine,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    expand_a: Sequence[int],
    expand_b: Sequence[int],
    expand_c: Sequence[int],
    sumdim: Sequence[int],
    unroll_dim: int = 1,
) -> Tensor:
    """sum((a * b) * c, sumdim) of the three with dimensions of size 1 put in, the products rounded to float32."""
    parts = []
    for x, dims in ((a, expand_a), (b, expand_b), (c, expand_c)):
        wide = engine.lift(x)
        for d in sorted(dims):
            wide = wide.unsqueeze(d)
        parts.append(wide)
    products = torch.mul(torch.mul(parts[0], parts[1]), parts[2])
    total = settled_sum(engine, products, normal_dims(products, list(sumdim))) if sumdim else products
    return engine.finish(total, a.dtype)


@register("prod.default", "prod.dim_int", cls=OpClass.VARYING, native_when=_no_floats)
def prod(
    engine: Engine, x: Tensor, dim: int | None = None, keepdim: bool = False, dtype: torch.dtype | None = None
) -> Tensor:
    """Product over dim in float64: n - 1 roundings, each relative."""
    n = math.prod(x.shape[d] for d in normal_dims(x, dim))
    mantissa, exponent = _factors(engine, x, n)
    if dim is None:
        y = _joined(mantissa.prod(), exponent.sum())
    else:
        y = _joined(mantissa.prod(dim, keepdim=keepdim), exponent.sum(dim, keepdim=keepdim))
    return engine.function(y, engine.format(dtype or x.dtype), kappa=sum_kappa(n, "float64", 8))


@register("logsumexp.default", cls=OpClass.COMPOSITE)
def logsumexp(engine: Engine, x: Tensor, dim: Sequence[int], keepdim: bool = False) -> Tensor:
    """log(sum(exp(x - max))) + max."""
    dims = normal_dims(x, dim)
    wide = engine.lift(x)
    if not x.numel():  # a sum of nothing
        kept = [n for d, n in enumerate(x.shape) if d not in dims]
        return _keep(torch.full(kept, float("-inf"), dtype=x.dtype, device=x.device), x, dims, keepdim)
    top = wide.amax(dims, keepdim=True)
    top = torch.where(top.isinf(), 0.0, top)
    total = settled_sum(engine, exp32(engine, torch.sub(wide, top), "exp"), dims, part="sum")
    y = torch.add(log32(engine, total, "log"), top.view(total.shape))
    return _keep(engine.finish(y, x.dtype), x, dims, keepdim)

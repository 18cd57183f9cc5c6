"""Elementwise functions: float64 from the library, settled (numerics §2, class 3)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from vtrain.engine.core import F64, Engine
from vtrain.engine.definition import Definition, DefinitionFn
from vtrain.engine.listener import round_result
from vtrain.engine.optable import OpClass, register
from vtrain.kernels import canonical
from vtrain.rounding.formats import FLOAT32, Format
from vtrain.rounding.functions import ROUNDED

Tensor = torch.Tensor


def settle_function(engine: Engine, name: str, x: Tensor, fmt: Format = FLOAT32, part: str = "") -> Tensor:
    """torch's function ``name`` of x in ``fmt``: correctly rounded where canonical, or the library's, s = |f(x)|."""
    if engine.canonical:
        y = canonical.function(name, _operand(x), _c_of(fmt))
        return engine.fixed(part, y, fmt, signed=True, definition=_rounded(name, x))
    wide = engine.wide("x", x.contiguous())
    y = getattr(torch, name)(wide, out=engine.workspace.get("y", x.shape, torch.float64, x.device))
    return engine.function(y, fmt, part, definition=lambda: Definition("function", {"name": name}, {"x": x}))


def _rounded(name: str, x: Tensor) -> DefinitionFn | None:
    """The definition of a canonical function; none of numbers that float32 may not hold, such as integers."""
    if not (x.is_floating_point() and x.element_size() <= 4):
        return None
    return lambda: Definition("function", {"name": name, "c": ROUNDED}, {"x": x})


def settle_power(engine: Engine, x: Tensor, exponent: float, fmt: Format = FLOAT32, part: str = "") -> Tensor:
    """x ** exponent in float64, rounded to ``fmt``."""
    if engine.canonical:
        y = canonical.function("pow", _operand(x), _c_of(fmt), float(exponent))
        return engine.fixed(part, y, fmt, signed=True)
    # pow of a float64 base: glibc and CUDA document at most 2 ulp for any exponent
    wide = engine.wide("x", x.contiguous())
    y = torch.pow(wide, exponent, out=engine.workspace.get("y", x.shape, torch.float64, x.device))
    params = {"name": "pow", "exponent": float(exponent).hex()}
    return engine.function(y, fmt, part, definition=lambda: Definition("function", params, {"x": x}))


def _operand(x: Tensor) -> Tensor:
    """x as a canonical kernel takes it: floats of up to 32 bits in float32, all else in float64."""
    return x.to(torch.float32 if x.is_floating_point() and x.element_size() <= 4 else torch.float64)


def _c_of(fmt: Format) -> torch.dtype:
    """What a function's result comes in: float32 where that is the target, else float64, to be rounded once."""
    return torch.float32 if fmt == FLOAT32 else torch.float64


def _result_dtype(x: Tensor) -> torch.dtype:
    return x.dtype if x.is_floating_point() else torch.get_default_dtype()


def _register(name: str, version: int) -> None:
    def handler(engine: Engine, x: Tensor) -> Tensor:
        return settle_function(engine, name, x, engine.format(_result_dtype(x)))

    handler.__doc__ = f"{name} of each element."
    register(f"{name}.default", cls=OpClass.VARYING, version=version)(handler)


@register("sqrt.default", cls=OpClass.VARYING, version=2)
def sqrt(engine: Engine, x: Tensor) -> Tensor:
    """sqrt of each element; that of a float64 is one IEEE operation."""
    if x.dtype is not F64:
        return settle_function(engine, "sqrt", x, engine.format(_result_dtype(x)))
    if x.device.type != "cpu":
        return torch.sqrt(x)
    with np.errstate(invalid="ignore"):
        return torch.from_numpy(np.asarray(np.sqrt(x.detach().numpy())))


for _version, _names in (
    (1, "exp2 log log2 log10 rsqrt cos erf erfc"),
    (2, "exp expm1 log1p tanh sigmoid sin"),  # a few results of some formats were not correctly rounded before
    (2, "tan asin acos atan sinh cosh asinh acosh atanh"),  # logged under every policy before
):
    for _name in _names.split():
        _register(_name, _version)


@register("erfinv.default", cls=OpClass.VARYING, version=2)
def erfinv(engine: Engine, x: Tensor) -> Tensor:
    """The x with erf(x) = y, canonical under every policy.

    Libraries have no bound in common: PyTorch's own code, which runs where it is built without MKL, takes the residual
    erf(x) - y, and loses half of its digits where erf is near 1 (2e5 u at 1 - 2^-24).
    """
    return engine.fixed("", canonical_erfinv(x.to(F64)), engine.format(_result_dtype(x)), signed=True)


def canonical_erfinv(y: Tensor) -> Tensor:
    """erfinv of float64 values of up to 24 bits: IEEE operations in the order written, and canonical functions.

    A rational approximation to 2^-21 or so (PyTorch's), and two of Newton's steps, each of which squares the error. Its
    residual is erf(x) - y up to 1/2, and (1 - y) - erfc(x) above, where 1 - y is exact; so it has as many digits as erf
    and erfc have. Within 2 ulps: an ulp of erfc moves x by less than one, as erfc(x) exp(x^2) < 1 / (x sqrt(pi)).
    """
    a = y.abs()
    z, tail, far = a * a, 1.0 - a, a > 0.5
    root = canonical_function("sqrt", -canonical_function("log", tail * 0.5))
    small = _horner(z, _CENTRE) * a / (_horner(z, _CENTRE_BELOW) * z + 1.0)
    large = _horner(root, _TAIL) / (_horner(root, _TAIL_BELOW) * root + 1.0)
    x = torch.where(a <= 0.7, small, large)
    for _ in range(2):
        slope = canonical_function("exp", -(x * x)) * 1.1283791670955126  # 2 / sqrt(pi)
        residual = canonical_function("erf", x) - a
        residual[far] = tail[far] - canonical_function("erfc", x[far])
        x = x - residual / slope
    x = torch.where(a < 1, x, torch.where(a == 1, float("inf"), float("nan")))
    return torch.copysign(torch.where(a == 0, 0.0, x), y)


# Coefficients of PyTorch's calc_erfinv, highest power first.
_CENTRE = (-0.140543331, 0.914624893, -1.645349621, 0.886226899)
_CENTRE_BELOW = (0.012229801, -0.329097515, 1.442710462, -2.118377725)
_TAIL = (1.641345311, 3.429567803, -1.624906493, -1.970840454)
_TAIL_BELOW = (1.637067800, 3.543889200)


def _horner(x: Tensor, coefficients: Sequence[float]) -> Tensor:
    y = torch.full_like(x, coefficients[0])
    for c in coefficients[1:]:
        y = torch.add(torch.mul(y, x), c)
    return y


def canonical_function(name: str, x: Tensor) -> Tensor:
    """A function that has a kernel, of float64 in float64: the same bits everywhere, under every policy."""
    return canonical.function(name, x, F64)


def power(engine: Engine, x: Tensor, exponent: float, dtype: torch.dtype) -> Tensor:
    """x ** exponent: small integer powers as products (class 2), the rest in float64 (class 3)."""
    if exponent == 0:
        return torch.ones_like(x, dtype=dtype)
    if exponent == 1:
        return x.to(dtype, copy=True)
    if exponent in (2, 3):
        if dtype is F64:
            return torch.mul(x.to(F64), x) if exponent == 2 else torch.mul(torch.mul(x.to(F64), x), x)
        x = engine.lift(x)
        square = torch.mul(x, x)
        return engine.finish(square if exponent == 2 else square.mul_(x), dtype)
    if exponent == 0.5:
        if dtype is F64:
            return sqrt(engine, x.to(F64))
        return settle_function(engine, "sqrt", x, engine.format(dtype))
    return settle_power(engine, x, exponent, engine.format(dtype))


def _integral(*args: object, **kwargs: object) -> bool:
    return not any(isinstance(a, float) or (isinstance(a, Tensor) and a.is_floating_point()) for a in args)


@register("pow.Tensor_Scalar", cls=OpClass.VARYING, native_when=_integral)
def pow_scalar(engine: Engine, x: Tensor, exponent: float) -> Tensor:
    """x ** exponent."""
    return power(engine, x, exponent, torch.result_type(x, exponent))


@register("pow.Tensor_Tensor", "pow.Scalar", cls=OpClass.VARYING, native_when=_integral)
def pow_tensor(engine: Engine, x: Tensor | float, exponent: Tensor) -> Tensor:
    """x ** exponent, exponents elementwise."""
    dtype = torch.result_type(x, exponent)
    if engine.canonical:
        base = x if isinstance(x, Tensor) else torch.full((), float(x), device=exponent.device)
        wide = [t.contiguous() for t in torch.broadcast_tensors(base.double(), exponent.double())]
        return engine.fixed("", canonical.power(wide[0], wide[1], F64), engine.format(dtype), signed=True)
    y = torch.pow(x.double() if isinstance(x, Tensor) else x, exponent.double())
    return engine.function(y, engine.format(dtype))


@register("atan2.default", cls=OpClass.VARYING)
def atan2(engine: Engine, y: Tensor, x: Tensor) -> Tensor:
    """Angle of (x, y)."""
    return engine.function(torch.atan2(y.double(), x.double()), engine.format(torch.result_type(y, x)))


@register("hypot.default", cls=OpClass.VARYING)
def hypot(engine: Engine, a: Tensor, b: Tensor) -> Tensor:
    """sqrt(a^2 + b^2)."""
    return engine.function(torch.hypot(a.double(), b.double()), engine.format(torch.result_type(a, b)))


def exp32(engine: Engine, x: Tensor, part: str) -> Tensor:
    """exp of float32 values to float32, a step of a composite."""
    return settle_function(engine, "exp", x, part=part)


def log32(engine: Engine, x: Tensor, part: str) -> Tensor:
    """log of float32 values to float32, a step of a composite."""
    return settle_function(engine, "log", x, part=part)


@register("arange.default", "arange.start", "arange.start_step", cls=OpClass.VARYING)
def arange(engine: Engine, *args: float, dtype: torch.dtype | None = None, **kwargs: object) -> Tensor:
    """Integers natively; floats as start + i * step, two IEEE operations in float64, then rounded."""
    floating = any(isinstance(a, float) for a in args)
    dtype = dtype or (torch.get_default_dtype() if floating else torch.int64)
    if not dtype.is_floating_point:
        return torch.arange(*args, dtype=dtype, **kwargs)  # type: ignore[call-overload]
    start, step = (args[0] if len(args) > 1 else 0), (args[2] if len(args) > 2 else 1)
    count = torch.arange(*args, dtype=torch.float64, **kwargs).numel()  # type: ignore[call-overload]
    i = torch.arange(count, dtype=torch.float64, device=kwargs.get("device"))  # type: ignore[call-overload]
    y = i * step + start
    return round_result(y, engine.format(dtype))


@register("linspace.default", cls=OpClass.VARYING)
def linspace(
    engine: Engine, start: float, end: float, steps: int, dtype: torch.dtype | None = None, **kwargs: object
) -> Tensor:
    """start + i * ((end - start) / (steps - 1)) in IEEE float64 operations, the last one being end; rounded."""
    kwargs.pop("layout", None)
    kwargs.pop("pin_memory", None)
    i = torch.arange(steps, dtype=torch.float64, **kwargs)  # type: ignore[call-overload]
    y = i * ((end - start) / max(1, steps - 1)) + start
    if steps > 1:
        y[-1] = end
    return round_result(y, engine.format(dtype or torch.get_default_dtype()))

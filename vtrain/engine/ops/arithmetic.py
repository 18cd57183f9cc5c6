"""One IEEE operation an element (numerics §2, class 2).

An operand is a tensor or a Python number, which is rounded to float32 first. The operation is done in C and its result
rounded once; that is what torch's own kernels do on tensors of one type, so those run natively. In float64 the number
stays as it is, and the operation is its own rounding.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from vtrain.engine.core import F32, F64, Engine
from vtrain.engine.ops.conversions import SIXTEEN
from vtrain.engine.ops.functions import pow_tensor
from vtrain.engine.optable import OpClass, register

Tensor = torch.Tensor
Operand = Tensor | float
ROUNDED = OpClass.ROUNDED


def _width(engine: Engine, dtype: torch.dtype) -> torch.dtype:
    """C of one operation whose result has ``dtype``: at least 2 p + 2 bits, or a native operation."""
    return F64 if dtype is F32 and engine.restricted and engine.format(dtype).p > 11 else F32


def _operand(x: Operand, c: torch.dtype, device: torch.device, number: torch.dtype = F32) -> Tensor:
    """An operand in C, on the device: there a scalar may be treated otherwise (a divisor becomes its inverse).

    Args:
        number: what a Python number is rounded to first.
    """
    if isinstance(x, Tensor):
        return x.to(device, c) if x.is_cpu and not x.dim() else x.to(c)  # torch moves such a one, and no other
    return torch.full((), x, dtype=number, device=device).to(c)


def _device(*operands: Operand) -> torch.device:
    tensors = [x for x in operands if isinstance(x, Tensor)]
    return max(tensors, key=lambda t: t.device.type != "cpu").device


def _floating(x: Operand, other: Operand) -> torch.dtype:
    dtype = torch.result_type(x, other)
    return dtype if dtype.is_floating_point or dtype.is_complex else torch.get_default_dtype()


def once(
    engine: Engine, op: Callable[[Tensor, Tensor], Tensor], x: Operand, other: Operand, dtype: torch.dtype
) -> Tensor:
    """op(x, other) in C, rounded once to the target of ``dtype``."""
    device = _device(x, other)
    if dtype is F64:
        return op(_operand(x, F64, device, F64), _operand(other, F64, device, F64))
    engine.format(dtype)
    c = _width(engine, dtype)
    return engine.finish(op(_operand(x, c, device), _operand(other, c, device)), dtype)


def _alike(x: Operand, other: Operand) -> bool:
    """Whether torch's kernels do what ``once`` does: no operand is rounded to another's 16 bits."""
    if isinstance(x, Tensor) and isinstance(other, Tensor):
        return x.dtype is other.dtype or (x.dtype not in SIXTEEN and other.dtype not in SIXTEEN)
    return (x if isinstance(x, Tensor) else other).dtype not in SIXTEEN  # type: ignore[union-attr]


def _number_or_alike(x: Operand, other: Operand) -> bool:
    """As ``_alike``, for products, whose kernels take a number in float32 whatever the tensor's type."""
    return not isinstance(other, Tensor) or _alike(x, other)


def _plain(x: Operand, other: Operand, alpha: float = 1) -> bool:
    return alpha == 1 and _alike(x, other)


def _divides(x: Operand, other: Operand) -> bool:
    device = x.device if isinstance(x, Tensor) else None
    return _alike(x, other) and (
        device is None or device.type == "cpu" or (isinstance(other, Tensor) and other.device == device)
    )


@register("mul.Tensor", "mul.Scalar", cls=ROUNDED, native_when=_number_or_alike, version=2)
def mul(engine: Engine, x: Operand, other: Operand) -> Tensor:
    """x * other."""
    dtype = torch.result_type(x, other)
    return torch.mul(x, other) if not dtype.is_floating_point else once(engine, torch.mul, x, other, dtype)


@register("div.Tensor", "div.Scalar", cls=ROUNDED, native_when=_divides, version=2)
def div(engine: Engine, x: Operand, other: Operand) -> Tensor:
    """x / other; integers are made floats first."""
    return once(engine, torch.div, x, other, _floating(x, other))


def _scaled(engine: Engine, x: Operand, alpha: float, dtype: torch.dtype) -> Operand:
    """alpha * x, rounded to float32 or float64: a multiply-add must not be fused (numerics §2)."""
    if dtype is F64 and isinstance(x, Tensor):
        return torch.mul(x.to(F64), alpha)
    return torch.mul(engine.lift(x), alpha) if isinstance(x, Tensor) else x * alpha


def _add_in_place(engine: Engine, x: Tensor, other: Operand, alpha: float = 1) -> None:
    """x += alpha * other as an optimizer has it: the product goes through scratch memory."""
    if not isinstance(other, Tensor) or x.dtype is not F32 or other.dtype is F64 or engine.restricted:
        x.copy_(add(engine, x, other, alpha))
        return
    wide = engine.lift(other)
    x.add_(torch.mul(wide, alpha, out=engine.workspace.get("scaled", wide.shape, F32, wide.device)))


def _sum(engine: Engine, op: Callable[..., Tensor], x: Operand, other: Operand, alpha: float) -> Tensor:
    dtype = torch.result_type(x, other)
    if not dtype.is_floating_point:
        return op(x, other * alpha)
    return once(engine, op, x, other if alpha == 1 else _scaled(engine, other, alpha, dtype), dtype)


@register("add.Tensor", "add.Scalar", cls=ROUNDED, native_when=_plain, inplace=_add_in_place, version=2)
def add(engine: Engine, x: Operand, other: Operand, alpha: float = 1) -> Tensor:
    """x + alpha * other: the product is rounded before the sum."""
    return _sum(engine, torch.add, x, other, alpha)


@register("sub.Tensor", "sub.Scalar", cls=ROUNDED, native_when=_plain, version=2)
def sub(engine: Engine, x: Operand, other: Operand, alpha: float = 1) -> Tensor:
    """x - alpha * other: the product is rounded before the difference."""
    return _sum(engine, torch.sub, x, other, alpha)


@register("rsub.Tensor", "rsub.Scalar", cls=ROUNDED, native_when=_plain, version=2)
def rsub(engine: Engine, x: Tensor, other: Operand, alpha: float = 1) -> Tensor:
    """other - alpha * x: the product is rounded before the difference."""
    if not torch.result_type(x, other).is_floating_point:
        return torch.rsub(x * alpha, other)
    return sub(engine, other, x, alpha)


@register("reciprocal.default", cls=ROUNDED, version=2)
def reciprocal(engine: Engine, x: Tensor) -> Tensor:
    """1 / x as one division; vector units also have approximate reciprocals."""
    return once(engine, torch.div, 1.0, x, x.dtype if x.is_floating_point() else F32)


_SIGNED = frozenset((torch.int8, torch.int16, torch.int32, torch.int64))


def _divisors(name: str) -> None:
    native = getattr(torch, name)

    def handler(engine: Engine, x: Tensor, other: Tensor) -> Tensor:
        for t in (x, other):
            if t.dtype in _SIGNED and bool((t == torch.iinfo(t.dtype).min).any()):
                engine.refuse(f"the lowest number of {t.dtype}, whose magnitude it does not have")
        return native(x, other)

    handler.__doc__ = f"{name} of integers."
    register(f"{name}.default", cls=OpClass.EXACT)(handler)


for _name in ("gcd", "lcm"):
    _divisors(_name)


# ---- remainders -----------------------------------------------------------------------------------------------------
def _exact_fmod(x: Tensor, y: Tensor) -> Tensor:
    """The remainder of x / y with x's sign, which a float holds exactly.

    The C library's and CUDA's are exact; vector libraries' give NaN where the quotient is large.
    """
    if x.device.type != "cpu":
        return torch.fmod(x, y)
    with np.errstate(invalid="ignore"):
        return torch.from_numpy(np.asarray(np.fmod(x.detach().numpy(), y.detach().numpy())))


def _floor_mod(x: Tensor, y: Tensor) -> Tensor:
    r = _exact_fmod(x, y)
    return torch.where((r != 0) & ((r < 0) != (y < 0)), torch.add(r, y), r)


def _integers(x: Operand, other: Operand, **kwargs: object) -> bool:
    return not torch.result_type(x, other).is_floating_point


def _whole(engine: Engine, op: Callable[..., Tensor], x: Operand, other: Operand, **kwargs: object) -> Tensor:
    """An operation on integers. Division by zero is an error on the CPU, and anything elsewhere."""
    if isinstance(other, Tensor) and other.device.type != "cpu" and bool((other == 0).any()):
        engine.refuse("an integer division by zero")
    return op(x, other, **kwargs)


@register("fmod.Tensor", "fmod.Scalar", cls=ROUNDED, version=2)
def fmod(engine: Engine, x: Tensor, other: Operand) -> Tensor:
    """x - trunc(x / other) * other, exact before it is rounded."""
    if _integers(x, other):
        return _whole(engine, torch.fmod, x, other)
    return once(engine, _exact_fmod, x, other, torch.result_type(x, other))


@register("remainder.Tensor", "remainder.Scalar", "remainder.Scalar_Tensor", cls=ROUNDED, version=2)
def remainder(engine: Engine, x: Operand, other: Operand) -> Tensor:
    """fmod, plus other where their signs differ: one rounding. As Python's % on floats."""
    if _integers(x, other):
        return _whole(engine, torch.remainder, x, other)
    return once(engine, _floor_mod, x, other, torch.result_type(x, other))


def _floor_quotient(x: Tensor, y: Tensor) -> Tensor:
    """As Python's // on floats: ((x - fmod) / y, less 1 where the signs differ), to the nearest integer.

    Three roundings in C, in this order. x / y where y is zero.
    """
    r = _exact_fmod(x, y)
    q = torch.div(torch.sub(x, r), y)
    q = torch.where((r != 0) & ((y < 0) != (r < 0)), torch.sub(q, 1.0), q)
    down = torch.floor(q)
    whole = torch.where(torch.sub(q, down) > 0.5, torch.add(down, 1.0), down)
    quotient = torch.div(x, y)
    whole = torch.where(q != 0, whole, torch.copysign(torch.zeros((), dtype=q.dtype, device=q.device), quotient))
    return torch.where(y == 0, quotient, whole)


def _truncated(x: Tensor, y: Tensor) -> Tensor:
    return torch.div(x, y).trunc_()


_QUOTIENTS = {"floor": _floor_quotient, "trunc": _truncated}


@register("div.Tensor_mode", "div.Scalar_mode", cls=ROUNDED, version=2)
def div_mode(engine: Engine, x: Operand, other: Operand, *, rounding_mode: str | None) -> Tensor:
    """x / other; then down to an integer ("floor") or towards zero ("trunc"), in C; rounded once."""
    if rounding_mode is None:
        return div(engine, x, other)
    if _integers(x, other):
        return _whole(engine, torch.div, x, other, rounding_mode=rounding_mode)
    return once(engine, _QUOTIENTS[rounding_mode], x, other, torch.result_type(x, other))


@register("floor_divide.default", "floor_divide.Scalar", cls=ROUNDED, version=2)
def floor_divide(engine: Engine, x: Operand, other: Operand) -> Tensor:
    """x / other, down to an integer."""
    return div_mode(engine, x, other, rounding_mode="floor")


@register("ldexp.Tensor", cls=OpClass.COMPOSITE, version=2)
def ldexp(engine: Engine, x: Tensor, other: Tensor) -> Tensor:
    """x * 2 ** other; the power is rounded to float32 first."""
    power = pow_tensor(engine, 2.0, other.to(F32) if not other.is_floating_point() else other)
    return mul(engine, x, power)

"""Maxima, minima, clamps and what else chooses between zeros of different sign (numerics §2, class 1).

Instruction sets and devices disagree on which zero is larger, and vector code disagrees with its own tail. So a zero
that such an operation gives is +0: adding +0 makes it so and changes nothing else. Operations that tell by an index or
by a comparison which element they take keep its sign.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

from vtrain.engine.core import Engine
from vtrain.engine.ops.conversions import as_number, convert
from vtrain.engine.optable import OpClass, register

Tensor = torch.Tensor
aten = torch.ops.aten
EXACT = OpClass.EXACT


def plus_zero(x: Tensor) -> Tensor:
    """x with every zero +0, in place."""
    return x.add_(0.0) if x.is_floating_point() else x


def _no_float(x: Tensor, *args: object, **kwargs: object) -> bool:
    return not x.is_floating_point()


# ---- extrema --------------------------------------------------------------------------------------------------------
def _reduced(name: str) -> None:
    native = getattr(aten, name).default

    def handler(engine: Engine, *args: Any, **kwargs: Any) -> Tensor | tuple[Tensor, ...]:
        found = native(*args, **kwargs)
        return plus_zero(found) if isinstance(found, Tensor) else tuple(plus_zero(t) for t in found)

    handler.__doc__ = f"{name}; a zero is +0, NaN where there is one."
    register(f"{name}.default", cls=EXACT, native_when=_no_float, version=2)(handler)


for _name in ("max", "min", "amax", "amin", "aminmax"):
    _reduced(_name)


def _both_whole(x: Tensor, other: Tensor) -> bool:
    return not (x.is_floating_point() or other.is_floating_point())


def _paired(name: str, nan: str, **settings: Any) -> None:
    native = getattr(torch, name)

    def handler(engine: Engine, x: Tensor, other: Tensor) -> Tensor:
        dtype = torch.result_type(x, other)
        return plus_zero(native(convert(engine, x, dtype), convert(engine, other, dtype)))

    handler.__doc__ = f"{name} of each pair; a zero is +0, {nan}."
    register(f"{name}.default", cls=EXACT, **settings)(handler)


for _name in ("maximum", "minimum"):
    _paired(_name, "NaN where either is", native_when=_both_whole, version=2)
for _name in ("fmax", "fmin"):
    _paired(_name, "the number where one is NaN")


# ---- clamps ---------------------------------------------------------------------------------------------------------
def _no_zero_bound(x: Tensor, *bounds: float | None, **named: float | None) -> bool:
    """Whether a zero can't meet a bound that is zero."""
    return not any(b == 0 and (x.is_floating_point() or isinstance(b, float)) for b in (*bounds, *named.values()))


@register("relu.default", cls=EXACT, inplace=lambda engine, x: aten.threshold_(x, 0, 0), version=2)
def relu(engine: Engine, x: Tensor) -> Tensor:
    """x where it is above 0 or NaN, else +0: a comparison and a choice, alike in every lane."""
    return aten.threshold.default(x, 0, 0)


@register("clamp_min.default", cls=EXACT, native_when=_no_zero_bound, version=2)
def clamp_min(engine: Engine, x: Tensor, min: float) -> Tensor:
    """x, or the bound where it is less; a zero is +0 where the bound is zero."""
    return aten.threshold.default(x, 0, 0) if x.is_floating_point() else plus_zero(aten.clamp_min.default(x, min))


def _clamp_in_place(name: str) -> Callable[..., None]:
    native = getattr(aten, f"{name}_").default

    def inplace(engine: Engine, x: Tensor, *bounds: float | None, **named: float | None) -> None:
        plus_zero(native(x, *bounds, **named))

    return inplace


def _bounded(name: str) -> None:
    native = getattr(aten, name).default

    def handler(engine: Engine, x: Tensor, *bounds: float | None, **named: float | None) -> Tensor:
        return plus_zero(native(x, *bounds, **named))

    handler.__doc__ = f"{name}; zeros are +0 where a bound is zero."
    register(f"{name}.default", cls=EXACT, native_when=_no_zero_bound, inplace=_clamp_in_place(name), version=2)(
        handler
    )


for _name in ("clamp", "clamp_max", "hardtanh"):
    _bounded(_name)


def _bounded_by_tensors(name: str) -> None:
    native = getattr(aten, name).Tensor

    def handler(engine: Engine, x: Tensor, *bounds: Tensor | None, **named: Tensor | None) -> Tensor:
        found = [torch.result_type(x, b) for b in (*bounds, *named.values()) if b is not None]
        dtype = functools.reduce(torch.promote_types, found)
        made = [None if b is None else convert(engine, b, dtype) for b in bounds]
        words = {k: None if b is None else convert(engine, b, dtype) for k, b in named.items()}
        return plus_zero(native(convert(engine, x, dtype), *made, **words))

    handler.__doc__ = f"{name} with bounds for each element; a zero is +0, NaN where x or a bound is."
    register(f"{name}.Tensor", cls=EXACT, version=2)(handler)


for _name in ("clamp", "clamp_min", "clamp_max"):
    _bounded_by_tensors(_name)


# ---- choices by comparison ------------------------------------------------------------------------------------------
@register("threshold.default", cls=EXACT, version=2)
def threshold(engine: Engine, x: Tensor, limit: float, value: float) -> Tensor:
    """x where it is above the limit or NaN, else the value; both as numbers of x's type."""
    return aten.threshold.default(x, as_number(limit, x.dtype), as_number(value, x.dtype))


@register("threshold_backward.default", cls=EXACT, native_when=lambda grad, x, limit: limit == 0, version=2)
def threshold_backward(engine: Engine, grad: Tensor, x: Tensor, limit: float) -> Tensor:
    """grad where x is above the limit or NaN, else +0."""
    return aten.threshold_backward.default(grad, x, as_number(limit, x.dtype))


@register("hardtanh_backward.default", cls=EXACT, version=2)
def hardtanh_backward(engine: Engine, grad: Tensor, x: Tensor, low: float, high: float) -> Tensor:
    """grad where low < x < high or x is NaN, else +0."""
    outside = (x <= as_number(low, x.dtype)) | (x >= as_number(high, x.dtype))
    return grad.masked_fill(outside, 0.0)


@register("hardshrink_backward.default", "softshrink_backward.default", cls=EXACT, version=2)
def shrink_backward(engine: Engine, grad: Tensor, x: Tensor, limit: float) -> Tensor:
    """grad where x < -limit, x > limit or x is NaN, else +0."""
    bound = as_number(limit, x.dtype)
    return grad.masked_fill((x >= -bound) & (x <= bound), 0.0)

"""Parts of floats: signs, mantissas and exponents, neighbours (numerics §2, class 1).

The sign of a NaN is none: processors disagree about it. So it counts as positive.
"""

from __future__ import annotations

import numpy as np
import torch

from vtrain.engine.core import F32, Engine
from vtrain.engine.ops.conversions import convert
from vtrain.engine.optable import OpClass, register

Tensor = torch.Tensor
aten = torch.ops.aten
EXACT = OpClass.EXACT


def _positive_nan(x: Tensor) -> Tensor:
    return x.masked_fill(x.isnan(), float("nan")) if x.is_floating_point() else x


@register("signbit.default", cls=EXACT)
def signbit(engine: Engine, x: Tensor) -> Tensor:
    """Whether x is negative or -0; no NaN is."""
    return torch.signbit(_positive_nan(x))


@register("copysign.Tensor", "copysign.Scalar", cls=EXACT)
def copysign(engine: Engine, x: Tensor, other: Tensor | float) -> Tensor:
    """x's magnitude with other's sign; a NaN's is +."""
    dtype = torch.result_type(x, other)
    dtype = dtype if dtype.is_floating_point else torch.get_default_dtype()
    sign = other if isinstance(other, Tensor) else torch.full((), other, dtype=F32, device=x.device)
    return torch.copysign(convert(engine, x, dtype), _positive_nan(convert(engine, sign, dtype)))


@register("frexp.Tensor", cls=EXACT)
def frexp(engine: Engine, x: Tensor) -> tuple[Tensor, Tensor]:
    """Mantissa in [1/2, 1) and exponent, which is 0 for a zero, a NaN or an infinity, as C leaves it open."""
    mantissa, exponent = torch.frexp(x)
    return mantissa, exponent.masked_fill(~x.isfinite(), 0)


@register("nextafter.default", cls=EXACT)
def nextafter(engine: Engine, x: Tensor, other: Tensor) -> Tensor:
    """The next number from x towards other."""
    if x.dtype is torch.bfloat16 or x.dtype is not other.dtype or x.device.type != "cpu":
        engine.refuse(f"{x.dtype} and {other.dtype} on {x.device}; float32, float16 and float64 on a CPU are covered")
    with np.errstate(all="ignore"):
        return torch.from_numpy(np.asarray(np.nextafter(x.detach().numpy(), other.detach().numpy())))

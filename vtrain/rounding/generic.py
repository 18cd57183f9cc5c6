"""Settling with tensor operations, for devices that have no kernel: the same bits as the kernels (numerics §3).

float64 add, subtract and multiply are IEEE operations on every device that the backend check admits, so the values
below do not depend on it.
"""

from __future__ import annotations

import torch

from vtrain.rounding.formats import Format
from vtrain.rounding.scale import Scale

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def container(fmt: Format) -> torch.dtype:
    """dtype of tensors that hold values of ``fmt``."""
    return _DTYPES[fmt.container]


def round_double(y: torch.Tensor, fmt: Format) -> torch.Tensor:
    """Round float64 to ``fmt``, ties to even; the result is still float64.

    (|y| + m) - m with m = 1.5 * 2^52 quanta rounds to a multiple of the quantum; see kernels/math/rounding.hpp.
    """
    bits = y.view(torch.int64)
    exponent = ((bits >> 52) & 0x7FF).clamp(fmt.emin + 1023, fmt.emax + 1024)
    magic = (((exponent - fmt.p + 53) << 52) | 0x8000000000000).view(torch.float64)
    a = y.abs()
    limit = 2.0 ** (fmt.emax + 1)
    r = (a + magic) - magic
    r = torch.where(a >= 2.0 * limit, a, r)
    r = torch.where(r >= limit, torch.full_like(r, float("inf")), r)
    return torch.where(y.isnan(), y, torch.copysign(r, y))


def round_to(y: torch.Tensor, fmt: Format, signed: bool = True) -> torch.Tensor:
    """Round y (float32 or float64) to ``fmt``; a new tensor in the format's container.

    Args:
        signed: whether a zero keeps its sign; otherwise all zeros become +0.
    """
    wide = y.to(torch.float64) + (-0.0 if signed else 0.0)
    if fmt.container == "float32" and fmt.native:
        return wide.to(torch.float32)
    return round_double(wide, fmt).to(container(fmt))


def in_doubt(
    y: torch.Tensor, scale: Scale, tau: float, eta: float, fmt: Format, signed: bool = True
) -> tuple[torch.Tensor, ...]:
    """Elements whose rounding other hardware could decide otherwise.

    Returns:
        ``(index, y, w)``: flat indices (int64, ascending), values and half-widths (float64), on y's device.
    """
    wide = y.to(torch.float64).reshape(-1) + (-0.0 if signed else 0.0)
    w = scale.width(y, tau, eta).reshape(-1)
    low, high = round_double(wide - w, fmt), round_double(wide + w, fmt)
    index = ((low.view(torch.int64) != high.view(torch.int64)) & (w != 0)).nonzero().view(-1)
    return index, wide[index], w[index]

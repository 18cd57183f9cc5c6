"""Chains of fused multiply-adds in whole numbers, and products made of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from naive.bits import F32, Array, quietly


class Binary(NamedTuple):
    """A format: significant bits, exponent of the least number, exponent from which on numbers overflow."""

    bits: int
    least: int
    top: int


FLOAT, DOUBLE = Binary(24, -149, 128), Binary(53, -1074, 1024)
_UNIT = 298  # a float32 is a whole multiple of 2^-149, a product of two of them one of 2^-298


def whole(x: float, unit: int) -> int:
    """x in units of 2^-unit, which is a whole number."""
    y = math.ldexp(x, unit)
    assert y == int(y)
    return int(y)


def nearest_whole(x: int, bits: int, coarse: int) -> int:
    """x >= 0 to the nearest multiple of 2^coarse that has so many significant bits, ties to even."""
    drop = max(x.bit_length() - bits, coarse, 0)
    quotient, rest = divmod(x, 1 << drop)
    if 2 * rest > 1 << drop or (2 * rest == 1 << drop and quotient % 2):
        quotient += 1
    return quotient << drop


def fused(a: float, b: float, c: float, to: Binary) -> float:
    """a * b + c rounded once, for a and b of float32; c is of the format."""
    if not (math.isfinite(a) and math.isfinite(b) and math.isfinite(c)):
        return a * b + c  # infinite or NaN: IEEE says which, and float64 does not overflow on the way
    exact = whole(a, 149) * whole(b, 149) + whole(c, _UNIT)
    if exact == 0:
        return a * b + c  # an exact zero, and float64 gives its sign
    y = nearest_whole(abs(exact), to.bits, to.least + _UNIT)
    magnitude = math.inf if y >= 1 << (to.top + _UNIT) else math.ldexp(float(y), -_UNIT)
    return math.copysign(magnitude, exact)


def chain(a: Sequence[float], b: Sequence[float], to: Binary) -> float:
    """The chain of fused multiply-adds over the terms, ascending, from +0."""
    total = 0.0
    for x, y in zip(a, b, strict=True):
        total = fused(x, y, total, to)
    return total


def kind(wide: bool) -> Binary:
    """Of a chain's links."""
    return DOUBLE if wide else FLOAT


@quietly
def product(a: Array, b: Array, bias: Array | None, alpha: float, beta: float, wide: bool) -> Array:
    """alpha * chain + beta * bias, each operation rounded to float32; bias of the result's shape."""
    batch, m, _ = a.shape
    y = np.empty((batch, m, b.shape[2]), F32)
    for e, i, j in np.ndindex(*y.shape):
        total = F32(chain(a[e, i].tolist(), b[e, :, j].tolist(), kind(wide)))
        scaled = F32(alpha) * total
        y[e, i, j] = scaled if bias is None else scaled + F32(beta) * bias[e, i, j]
    return y

"""The exact integer product, defined for two vectors of numbers (numerics §10). Imports no torch.

Whoever has an element's two vectors computes the element from this file alone; ``vtrain.engine.integers`` does the same
with whole tensors.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from vtrain.rounding.formats import Format

DIGIT_BITS = 8
LONGEST = 1 << 29  # terms; sums of so many fit two words of the engine's


def digits_for(fmt: Format) -> int:
    """Signed bytes that a fixed-point number has, for results of a format: 2 below 12 significant bits, else 3."""
    return 2 if fmt.p <= 11 else 3


def limit(digits: int) -> int:
    """The largest magnitude that signed bytes hold on both sides of zero: 127 (1 + 256 + 256^2 + ...)."""
    return int(127 * (256**digits - 1) // 255)


def shift_of(largest: float, digits: int) -> int:
    """The largest e for which ``largest`` * 2^e, rounded to an integer (ties to even), is at most ``limit``; 0 of 0.

    Args:
        largest: finite, not negative.
    """
    if largest == 0:
        return 0
    e = DIGIT_BITS * digits - 1 - math.frexp(largest)[1]
    return e if round(Fraction(largest) * Fraction(2) ** e) <= limit(digits) else e - 1


def fixed(values: np.ndarray, shift: int) -> np.ndarray:
    """values * 2^shift, rounded to integers, ties to even: int64.

    Args:
        values: float64 numbers whose products with 2^shift are below 2^31; multiples of 2^-149, as all targets' are.
    """
    return np.rint(np.ldexp(values, shift)).astype(np.int64)


def dot(u: np.ndarray, v: np.ndarray, digits: int, largest: Sequence[float] = (0.0, 0.0)) -> Fraction | float:
    """The sum of products of two vectors' fixed-point numbers: what an element is before its one rounding.

    Args:
        u, v: float64, of one length.
        largest: magnitudes of elements of each vector that are not passed as the other's are zero there.

    Returns:
        An exact number; NaN or an infinity where a product of two elements is none (``special``).
    """
    if not (np.isfinite(u).all() and np.isfinite(v).all()):
        return special(u, v)
    tops = [max(float(np.abs(x).max(initial=0.0)), more) for x, more in zip((u, v), largest, strict=True)]
    shifts = [shift_of(top, digits) for top in tops]
    a, b = fixed(u, shifts[0]), fixed(v, shifts[1])
    # in two halves of at most 2^23 * 2^12, so that int64 holds the sums of up to 2^28 terms
    high, low = b >> 12, b & 4095
    total = (int((a * high).sum()) << 12) + int((a * low).sum())
    return Fraction(total) * Fraction(2) ** -(shifts[0] + shifts[1])


def special(u: np.ndarray, v: np.ndarray) -> float:
    """NaN if any product of two elements is NaN, or two are infinities of unlike signs; else the infinity."""
    with np.errstate(invalid="ignore", over="ignore"):
        products = u * np.where(np.isfinite(v), np.sign(v), v)
        return float(products[~np.isfinite(products)].sum())

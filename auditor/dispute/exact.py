"""Exact values of disputed elements, and the certified bound around them (numerics §3). Imports no torch.

All numbers of a target format are multiples of powers of two, so sums of products are computed as Python integers,
without any rounding; functions with mpmath, to 400 bits (``vtrain.rounding.functions``). The bound is numerics §3's,
with the constants of ``vtrain.rounding.bounds`` and the engine's own scales: a product of norms for sums of products,
the sum of magnitudes for plain sums, the value itself for functions:

    |y - exact| <= kappa * u * s + kappa * (half the least number of C)                 for every faithful y.

It is 0 for exact integers and for correctly rounded functions, which have one value.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from auditor.dispute.terms import INTEGERS, Index, Terms
from vtrain.errors import ProofError
from vtrain.rounding.bounds import INFLATE, UNDERFLOW, U
from vtrain.rounding.fixed import dot
from vtrain.rounding.formats import FLOAT32, Format
from vtrain.rounding.functions import value
from vtrain.rounding.naive import ordered, round_fraction

Read = Callable[[str, Index], np.ndarray]  # operand's name, flat indices -> values as float64
_SQRT_UNIT = 1 << 400  # norms are rounded up to multiples of its inverse: below 2^-298, the least product


@dataclass(frozen=True)
class Exact:
    """An element's exact value with its bound.

    Attributes:
        value: exact, or to 400 bits for a function; a float where it is NaN, infinite or a signed zero.
        bound: what a faithful evaluation may be off by.
    """

    value: Fraction | float
    bound: Fraction


def evaluate(kind: str, params: Mapping[str, Any], found: Terms, read: Read) -> Exact:
    """The exact value of an element.

    Raises:
        ProofError: ``read`` can't give what it depends on.
    """
    if kind == "function":
        return _function_value(params, float(read(*found.left)[0]), found.kappa)
    if found.c in INTEGERS:
        return _integer_value(found, read)
    left = read(*found.left)
    with np.errstate(invalid="ignore"):
        values = left if found.right is None else left * read(*found.right)  # exact: at most 48 bits, above 2^-300
    bias = float(read(*found.bias)[0]) if found.bias is not None else 0.0
    if not (np.isfinite(values).all() and math.isfinite(bias)):
        return Exact(_special(values, bias, found), Fraction(0))
    factor = found.alpha / found.divisor
    value = factor * exact_sum(values) + found.beta * Fraction(bias)
    scale = abs(factor) * _scale(kind, found, values, left, read) + abs(found.beta * Fraction(bias))
    return Exact(value, _bound(found.kappa, found.c, scale))


def _integer_value(found: Terms, read: Read) -> Exact:
    """An element of ``matmul="integer"``, which has one value and no bound (numerics §10)."""
    assert found.right is not None
    left, right = read(*found.left), read(*found.right)
    row = right if found.row is None else read(*found.row)
    largest = float(np.abs(row[np.isfinite(row)]).max(initial=0.0))
    y: Fraction | float = dot(left, right, INTEGERS[found.c], (0.0, largest))
    if np.isfinite(row).sum() - np.isfinite(right).sum() < row.size - right.size:
        y = math.nan  # an infinity or NaN that meets a zero
    if found.alpha == 1 and found.bias is None:
        return Exact(y, Fraction(0))
    with np.errstate(all="ignore"):
        single = np.float32(round_fraction(y, FLOAT32)) * np.float32(float(found.alpha))
        if found.bias is not None:
            single = single + np.float32(read(*found.bias)[0]) * np.float32(float(found.beta))
    return Exact(float(single), Fraction(0))


def _scale(kind: str, found: Terms, values: np.ndarray, left: np.ndarray, read: Read) -> Fraction:
    """s: the product of the two factors' norms, rounded up; the sum of magnitudes where there is one factor."""
    if found.right is None:
        return exact_sum(np.abs(values))
    row = read(*(found.row or found.right))
    if kind == "input_gradient":
        row = np.where(np.isfinite(row), row, 0.0)  # an element that an infinite tap does not reach is finite
    if not np.isfinite(row).all():
        raise ProofError("an operand that is not finite, in the part of a row that meets padding")
    square = exact_sum(left * left) * exact_sum(row * row)
    return Fraction(math.isqrt(math.ceil(square * _SQRT_UNIT**2)) + 1, _SQRT_UNIT) if square else Fraction(0)


def _bound(kappa: float, c: str, scale: Fraction) -> Fraction:
    if scale == 0:
        return Fraction(0)  # a sum of zeros is zero on any hardware
    return Fraction(kappa) * (Fraction(U[c]) * scale * Fraction(INFLATE) + Fraction(UNDERFLOW[c]))


def _special(values: np.ndarray, bias: float, found: Terms) -> float:
    """NaN or an infinity, by IEEE rules, which no order of the terms changes."""
    with np.errstate(all="ignore"):
        odd = values[~np.isfinite(values)].sum() * float(found.alpha) if not np.isfinite(values).all() else 0.0
        return float(odd + float(found.beta) * bias if found.beta else odd)


def exact_sum(values: np.ndarray) -> Fraction:
    """Exact sum of finite float64 numbers."""
    mantissas, exponents = np.frexp(values)
    integers = np.ldexp(mantissas, 53).astype(np.int64)
    total = Fraction(0)
    for e in np.unique(exponents).tolist():
        group = integers[exponents == e]
        # in two halves, so that int64 holds the sums of up to 2^36 terms
        whole = (int((group >> 27).sum()) << 27) + int((group & ((1 << 27) - 1)).sum())
        total += Fraction(whole) * Fraction(2) ** (e - 53)
    return total


def _function_value(params: Mapping[str, Any], x: float, kappa: float) -> Exact:
    exponent = params.get("exponent")
    power = float.fromhex(exponent) if isinstance(exponent, str) else 1.0
    found = value(params["name"], x, power)
    if isinstance(found, float):
        return Exact(found, Fraction(0))  # domain errors, poles, signed zeros: the same in every library
    return Exact(found, _bound(kappa, "float64", abs(found)))


def within(value: float, exact: Exact, fmt: Format, signed: bool) -> bool:
    """Whether a value is the rounding of some number within the bound of the exact one (numerics §5, §8).

    Args:
        value: of the format, as a float; anything else is not within.
        signed: whether a zero keeps its sign; otherwise one that was computed is +0, and only a negative number that
            rounds to zero is -0.
    """
    centre = exact.value
    if isinstance(centre, float) and math.isnan(centre):
        return math.isnan(value)
    try:
        place = ordered(value, fmt)
    except ValueError:  # NaN, or no value of the format
        return False
    if isinstance(centre, float):
        low = high = ordered(round_fraction(centre, fmt), fmt)
    else:
        low = ordered(round_fraction(centre - exact.bound, fmt), fmt)
        high = ordered(round_fraction(centre + exact.bound, fmt), fmt)
        if signed and low == 0 and exact.bound and centre - exact.bound == 0:
            low = -1  # the end is zero, and so both zeros
    return low <= place <= high

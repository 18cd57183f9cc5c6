"""Elementary functions of exact numbers, and their correct rounding (numerics §3). Imports no torch.

What a canonical function of one float32 is: the value of the target format nearest to f(x), ties to even. mpmath
decides it, so no code of the kernels has a part in the definition.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import mpmath
import numpy as np

from vtrain.rounding.formats import Format
from vtrain.rounding.naive import round_fraction

# Functions of one argument whose canonical result is the rounding of the exact value.
CORRECT = frozenset(
    """
    exp exp2 expm1 log log2 log10 log1p sqrt rsqrt sin cos tan tanh sigmoid erf erfc asin acos atan sinh cosh
    asinh acosh atanh
    """.split()
)
ROUNDED = "rounded"  # the ``c`` of a definition: the exact value, rounded to the target once
# Bits. Near zero sin x and its like differ from x by x^3, cosh x from 1 by x^2: at the least float32, 2^-149, by 2^-299
# of the result. Elsewhere no float32 is known within 2^-70 of a boundary. mpmath gets as many bits again, for what its
# formulas cancel.
PRECISION = 400

_SAME = "exp expm1 log1p sqrt sin cos tan tanh sinh cosh".split()  # names that mpmath and numpy share
_ARCS = {name: name.replace("a", "arc", 1) for name in "asin acos atan asinh acosh atanh".split()}


def _of_mpmath(name: str) -> Callable[[Any, Any], Any]:
    return lambda x, p: getattr(mpmath, name)(x)


def _of_numpy(name: str) -> Callable[[Any, float], Any]:
    return lambda x, p: getattr(np, name)(x)


_FUNCTIONS: dict[str, Callable[[Any, Any], Any]] = {
    **{name: _of_mpmath(name) for name in [*_SAME, *_ARCS, *"erf erfc log10 log".split()]},
    "log2": lambda x, p: mpmath.log(x) / mpmath.log(2),
    "exp2": lambda x, p: mpmath.power(2, x),
    "rsqrt": lambda x, p: 1 / mpmath.sqrt(x),
    "sigmoid": lambda x, p: 1 / (1 + mpmath.exp(-x)),
    "pow": lambda x, p: mpmath.power(x, p),
}
# Only for what is no number, infinite or zero: there all libraries agree.
_IEEE: dict[str, Callable[[Any, float], Any]] = {
    **{name: _of_numpy(name) for name in [*_SAME, *"log log2 log10 exp2".split()]},
    **{name: _of_numpy(arc) for name, arc in _ARCS.items()},
    "erf": lambda x, p: math.erf(x),
    "erfc": lambda x, p: math.erfc(x),
    "rsqrt": lambda x, p: np.float64(1) / np.sqrt(x),
    "sigmoid": lambda x, p: np.float64(1) / (np.float64(1) + np.exp(-x)),
    "pow": lambda x, p: np.float64(x) ** np.float64(p),
}


def value(name: str, x: float, exponent: float = 1.0, precision: int = PRECISION) -> Fraction | float:
    """f(x) to ``precision`` bits; a float where it is NaN, infinite or a zero, by IEEE 754 and C99's Annex F.

    Args:
        name: of ``CORRECT``, or ``pow``.
        x: a number of up to 24 significant bits.
        exponent: of ``pow``.
    """
    with np.errstate(all="ignore"):
        ieee = float(_IEEE[name](np.float64(x), exponent))
    if ieee == 0 or not math.isfinite(ieee) or not math.isfinite(x):
        return ieee
    with mpmath.workprec(2 * precision):
        found = mpmath.mpf(_FUNCTIONS[name](mpmath.mpf(x), mpmath.mpf(exponent)))
        sign, mantissa, e, _ = found._mpf_
    exact = Fraction(int(mantissa)) * Fraction(2) ** int(e)
    return _shortened(-exact if sign else exact, precision)


def _shortened(y: Fraction, precision: int) -> Fraction:
    """y, rounded to so many bits: a result that is a short number is that number."""
    e = y.numerator.bit_length() - y.denominator.bit_length() - precision
    unit = Fraction(2) ** e
    return round(y / unit) * unit


def rounded(name: str, x: float, fmt: Format) -> float:
    """The value of ``fmt`` nearest to f(x), ties to even; x and ``name`` as for ``value``."""
    return round_fraction(value(name, x), fmt)

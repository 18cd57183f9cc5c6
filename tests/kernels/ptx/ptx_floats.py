"""Floating arithmetic with one rounding: what NumPy does not have, done exactly.

A NaN that arithmetic yields is the positive quiet one with an otherwise empty payload; hardware gives others, so tests
must compare NaNs as NaNs.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

F16, F32, F64 = np.dtype(np.float16), np.dtype(np.float32), np.dtype(np.float64)
MODES = ("rn", "rz", "rm", "rp")
_FORMATS = {  # precision, exponents of the smallest and largest normal
    F16: (11, -14, 15),
    F32: (24, -126, 127),
    F64: (53, -1022, 1023),
}
Floats = NDArray[np.floating]


def canonical(values: Floats) -> Floats:
    """values, with every NaN replaced by the canonical one."""
    nan = values != values
    return np.where(nan, values.dtype.type(np.nan), values) if nan.any() else values


def _quotient(numerator: int, denominator: int, mode: str) -> int:
    """numerator / denominator (positive), rounded to an integer."""
    q, r = divmod(numerator, denominator)
    if mode == "rn":
        return q + (2 * r > denominator or (2 * r == denominator and q & 1))
    if mode == "rz":
        return q + (r != 0 and numerator < 0)
    return q + (mode == "rp" and r != 0)


def rounded(value: Fraction, dtype: np.dtype, mode: str, zero: float = 0.0) -> float:
    """value in a format, as a double, which holds it exactly.

    Args:
        zero: the result where value is zero, which has a sign here.
    """
    if not value:
        return zero
    precision, smallest, largest = _FORMATS[dtype]
    exponent = abs(value.numerator).bit_length() - value.denominator.bit_length()
    if abs(value) < Fraction(2) ** exponent:
        exponent -= 1
    last = max(exponent, smallest) - precision + 1
    scaled = value / Fraction(2) ** last
    q = _quotient(scaled.numerator, scaled.denominator, mode)
    if exponent <= largest and abs(q) < 1 << (largest + 1 - last):
        return float(np.ldexp(float(q), last)) if q else (-0.0 if value < 0 else 0.0)
    to_infinity = mode == "rn" or mode == ("rp" if value > 0 else "rm")
    top = np.inf if to_infinity else float((Fraction(2) - Fraction(2) ** (1 - precision)) * Fraction(2) ** largest)
    return -top if value < 0 else top


def _exactly(f: Callable[..., Fraction], mode: str, plain: Floats, zeros: Floats, *args: Floats) -> Floats:
    """f of each element, rounded once.

    Args:
        plain: the result where an argument is not finite or f divides by zero; its dtype is the result's.
        zeros: zeros with the sign that an exact result of zero has.
    """
    result = plain.copy()
    wide = np.broadcast_arrays(*args)
    finite = np.isfinite(wide).all(axis=0)
    if f is _divided:
        finite &= wide[1] != 0
    for k in np.flatnonzero(finite):
        exact = f(*(Fraction(x[k].item()) for x in wide))
        result[k] = rounded(exact, plain.dtype, mode, float(zeros[k]))
    return result


def _divided(a: Fraction, b: Fraction) -> Fraction:
    return a / b


def _zero_of_sum(a: Floats, b: Floats, mode: str) -> Floats:
    """The zero that a + b is if it is one: -0 if both are negative, or if they cancel and are rounded down."""
    x, y = np.signbit(a), np.signbit(b)
    return np.where(x & y | (x != y) & (mode == "rm"), -0.0, 0.0)


def _zero_of_product(a: Floats, b: Floats) -> Floats:
    return np.where(np.signbit(a) != np.signbit(b), -0.0, 0.0)


def add(a: Floats, b: Floats, mode: str) -> Floats:
    plain = a + b
    if mode != "rn":
        plain = _exactly(lambda x, y: x + y, mode, plain, _zero_of_sum(a, b, mode), a, b)
    return canonical(plain)


def subtract(a: Floats, b: Floats, mode: str) -> Floats:
    return add(a, -b, mode)


def multiply(a: Floats, b: Floats, mode: str) -> Floats:
    plain = a * b
    if mode != "rn":
        plain = _exactly(lambda x, y: x * y, mode, plain, _zero_of_product(a, b), a, b)
    return canonical(plain)


def divide(a: Floats, b: Floats, mode: str) -> Floats:
    plain = a / b
    if mode != "rn":
        plain = _exactly(_divided, mode, plain, _zero_of_product(a, b), a, b)
    return canonical(plain)


def _two_sum(a: Floats, b: Floats) -> tuple[Floats, Floats]:
    """a + b rounded, and its error, exact (Knuth)."""
    s = a + b
    t = s - a
    return s, (a - (s - t)) + (b - t)


def _split(a: Floats) -> tuple[Floats, Floats]:
    """a as a sum of two numbers of at most 26 bits (Veltkamp)."""
    c = 134217729.0 * a
    high = c - (c - a)
    return high, a - high


def _two_product(a: Floats, b: Floats) -> tuple[Floats, Floats]:
    """a * b rounded, and its error, exact (Dekker)."""
    p = a * b
    ah, al = _split(a)
    bh, bl = _split(b)
    return p, ((ah * bh - p) + ah * bl + al * bh) + al * bl


def _odd_sum(a: Floats, b: Floats) -> Floats:
    """a + b of doubles, rounded to odd: an inexact sum whose last bit is even moves one unit towards the exact one."""
    s, e = _two_sum(a, b)
    bits = s.view(np.int64)
    step = np.where((e < 0) == (s < 0), 1, -1) * ((e != 0) & (e == e) & (bits & 1 == 0))
    return (bits + step).view(np.float64)


def _fma32(a: Floats, b: Floats, c: Floats) -> Floats:
    """The product is exact in double, and 53 bits rounded to odd are enough to round once more (Boldo, Melquiond)."""
    return _odd_sum(a.astype(F64) * b.astype(F64), c.astype(F64)).astype(F32)


_TINY, _HUGE = 2.0**-450, 2.0**450  # between these nothing below over- or underflows


def _ordinary(x: Floats) -> NDArray[np.bool_]:
    magnitude = np.abs(x)
    return (magnitude >= _TINY) & (magnitude <= _HUGE)


def _fma64(a: Floats, b: Floats, c: Floats) -> Floats:
    """Sum of the product's two parts and c, rounded once (Boldo, Melquiond 2008, algorithm 5)."""
    ph, pl = _two_product(a, b)
    uh, ul = _two_sum(c, pl)
    th, tl = _two_sum(ph, uh)
    return th + _odd_sum(tl, ul)


def _fma_plain(a: Floats, b: Floats, c: Floats) -> Floats:
    """Right where an argument is not finite: there a product that overflows must not become infinite."""
    p = a * b
    return np.where(np.isinf(p) & np.isfinite(a) & np.isfinite(b), np.copysign(a.dtype.type(1), p), p) + c


def fma(a: Floats, b: Floats, c: Floats, mode: str) -> Floats:
    """a * b + c with one rounding, exactly."""
    a, b, c = np.broadcast_arrays(a, b, c)
    if mode == "rn" and a.dtype == F32:
        return canonical(_fma32(a, b, c))
    plain = _fma_plain(a, b, c)
    zeros = _zero_of_sum(_zero_of_product(a, b), c, mode)
    if mode != "rn":
        return canonical(_exactly(_fused, mode, plain, zeros, a, b, c))
    easy = _ordinary(a) & _ordinary(b) & (_ordinary(c) | (c == 0))
    result = np.where(easy, _fma64(a, b, c), plain)
    hard = np.flatnonzero(~easy & (a != 0) & (b != 0))  # a zero times anything is exact
    if hard.size:
        result[hard] = _exactly(_fused, mode, plain[hard], zeros[hard], a[hard], b[hard], c[hard])
    return canonical(result)


def _fused(a: Fraction, b: Fraction, c: Fraction) -> Fraction:
    return a * b + c


def _pick(a: Floats, b: Floats, chosen: Floats, zero_bits: np.ufunc, nan: bool) -> Floats:
    """Finish a minimum or maximum: equal numbers differ at most in a zero's sign, and nan says that NaNs stay."""
    unsigned = f"u{a.dtype.itemsize}"
    a, b = np.broadcast_arrays(a, b)
    merged = zero_bits(a.view(unsigned), b.view(unsigned)).view(a.dtype)
    result = np.where(a == b, merged, chosen)
    return canonical(np.where((a != a) | (b != b), a + b, result) if nan else result)


def minimum(a: Floats, b: Floats, nan: bool) -> Floats:
    """The smaller number, -0 below +0; of a number and a NaN the number, unless nan."""
    return _pick(a, b, np.fmin(a, b), np.bitwise_or, nan)


def maximum(a: Floats, b: Floats, nan: bool) -> Floats:
    """The larger number, -0 below +0; of a number and a NaN the number, unless nan."""
    return _pick(a, b, np.fmax(a, b), np.bitwise_and, nan)


def narrowed(values: Floats | NDArray[np.integer], dtype: np.dtype, mode: str) -> Floats:
    """Numbers of any kind as floats of another format (not bfloat16), rounded."""
    plain = values.astype(dtype)
    if mode != "rn":
        zeros = np.where(np.signbit(plain), -0.0, 0.0)
        plain = _exactly(lambda x: x, mode, plain, zeros, values)
    return canonical(plain)


def to_bfloat16(values: Floats) -> NDArray[np.uint16]:
    """Bits of float32 numbers rounded to bfloat16, ties to even."""
    bits = values.view(np.uint32)
    rounded_bits = (bits + np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1))) >> np.uint32(16)
    return np.where(values != values, np.uint32(0x7FFF), rounded_bits).astype(np.uint16)


_ROUND = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}


def integral(values: Floats, mode: str) -> Floats:
    """Numbers rounded to integers that stay floats; mode as PTX names it, ``rni``."""
    return canonical(_ROUND[mode](values))


def to_integer(values: Floats, dtype: np.dtype, mode: str) -> NDArray[np.integer]:
    """Floats as integers, clamped to their range; a NaN is 0, or only the top bit with 64 bits on either side."""
    whole = _ROUND[mode](values)
    info = np.iinfo(dtype)
    over, under, nan = whole >= float(info.max) + 1.0, whole < float(info.min), whole != whole
    inside = np.where(over | under | nan, 0, whole)
    result = inside.astype(np.uint64 if dtype == np.uint64 else np.int64).astype(dtype)
    result = np.where(over, dtype.type(info.max), np.where(under, dtype.type(info.min), result))
    wide = values.dtype == F64 or info.bits == 64
    invalid = np.array(1 << (info.bits - 1) if wide else 0, np.uint64).astype(dtype)
    return np.where(nan, invalid, result)

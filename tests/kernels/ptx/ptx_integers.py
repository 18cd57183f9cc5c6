"""Integer operations of PTX on arrays; results have the dtype of the first operand unless said otherwise."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from ptx_lanes import Array, Fault

Integers = NDArray[np.integer]
_DOUBLE = {2: {"i": np.int32, "u": np.uint32}, 4: {"i": np.int64, "u": np.uint64}}


def bits_of(x: Array) -> int:
    return 8 * x.itemsize


def wide_multiply(a: Integers, b: Integers) -> Integers:
    """Whole products, of twice the width."""
    wide = _DOUBLE[a.itemsize][a.dtype.kind]
    return a.astype(wide) * b.astype(wide)


def _high64(a: Integers, b: Integers) -> Integers:
    """High halves of products of uint64."""
    low, half = np.uint64(0xFFFFFFFF), np.uint64(32)
    a0, a1, b0, b1 = a & low, a >> half, b & low, b >> half
    middle = a1 * b0 + (a0 * b0 >> half)
    other = a0 * b1 + (middle & low)
    return a1 * b1 + (middle >> half) + (other >> half)


def high_multiply(a: Integers, b: Integers) -> Integers:
    """High halves of products."""
    if a.itemsize < 8:
        return (wide_multiply(a, b) >> bits_of(a)).astype(a.dtype)
    if a.dtype.kind == "u":
        return _high64(a, b)
    high = _high64(a.view(np.uint64), b.view(np.uint64)).view(np.int64)
    return high - np.where(a < 0, b, 0) - np.where(b < 0, a, 0)


def divide(a: Integers, b: Integers) -> Integers:
    """Quotients rounded towards zero."""
    if (b == 0).any():
        raise Fault("integer division by zero")
    if a.dtype.kind == "u":
        return a // b
    unsigned = f"u{a.itemsize}"
    quotient = np.abs(a).view(unsigned) // np.abs(b).view(unsigned)  # the smallest number's magnitude fits unsigned
    return np.where((a < 0) != (b < 0), -quotient, quotient).view(a.dtype)


def remainder(a: Integers, b: Integers) -> Integers:
    return a - divide(a, b) * b


def shift_left(a: Integers, amount: Integers) -> Integers:
    """a << amount, all bits gone where amount is at least the width."""
    n = bits_of(a)
    return np.where(amount < n, a << np.minimum(amount, n - 1).astype(a.dtype), a.dtype.type(0))


def shift_right(a: Integers, amount: Integers) -> Integers:
    """a >> amount; where amount is at least the width, only copies of the sign are left."""
    n = bits_of(a)
    shifted = a >> np.minimum(amount, n - 1).astype(a.dtype)
    return shifted if a.dtype.kind == "i" else np.where(amount < n, shifted, a.dtype.type(0))


def funnel(left: bool, wrap: bool) -> Callable[[Integers, Integers, Integers], Integers]:
    """``shf``: 32 bits of the 64 of high:low, shifted."""

    def shift(low: Integers, high: Integers, amount: Integers) -> Integers:
        n = (amount & np.uint32(31) if wrap else np.minimum(amount, np.uint32(32))).astype(np.uint64)
        both = high.astype(np.uint64) << np.uint64(32) | low.astype(np.uint64)
        return ((both << n) >> np.uint64(32) if left else both >> n).astype(np.uint32)

    return shift


def ones(a: Integers) -> Integers:
    """Number of one bits, uint32."""
    octets = np.ascontiguousarray(a)[:, None].view(np.uint8)
    return np.unpackbits(octets, axis=1).sum(axis=1, dtype=np.uint32)


def _smeared(a: Integers) -> Integers:
    """a with all bits below its highest one set."""
    for k in (1, 2, 4, 8, 16, 32):
        if k < bits_of(a):
            a = a | a >> a.dtype.type(k)
    return a


def leading_zeros(a: Integers) -> Integers:
    """Number of zeros above the highest one bit, uint32."""
    return np.uint32(bits_of(a)) - ones(_smeared(a))


def find_highest(shift_amount: bool) -> Callable[[Integers], Integers]:
    """``bfind``: position of the highest bit that differs from the sign, or its distance from the top; -1 if none."""

    def find(a: Integers) -> Integers:
        n = bits_of(a)
        value = np.where(a < 0, ~a, a).view(f"u{a.itemsize}")
        zeros = leading_zeros(value)
        return np.where(value == 0, np.uint32(0xFFFFFFFF), zeros if shift_amount else np.uint32(n - 1) - zeros)

    return find


def reverse(a: Integers) -> Integers:
    """Bits in the opposite order."""
    octets = np.ascontiguousarray(a)[:, None].view(np.uint8)
    bits = np.unpackbits(octets, axis=1, bitorder="little")
    return np.packbits(bits[:, ::-1], axis=1, bitorder="little").view(a.dtype)[:, 0]


def extract_field(a: Integers, start: Integers, length: Integers) -> Integers:
    """``bfe``: length bits from start on; above the sign bit, signed numbers go on with it."""
    n = bits_of(a)
    start, length = (start & np.uint32(255)).astype(np.int64), (length & np.uint32(255)).astype(np.int64)
    last = np.minimum(start + length - 1, n - 1)
    width = np.clip(n - start, 0, length)
    unsigned = a.view(f"u{a.itemsize}")
    field = shift_right(unsigned, start) & ~shift_left(np.full_like(unsigned, ~np.uint64(0)), width)
    if a.dtype.kind == "u":
        return field
    sign = shift_right(unsigned, np.maximum(last, 0)) & unsigned.dtype.type(1)
    filled = field | np.where(sign != 0, shift_left(np.full_like(unsigned, ~np.uint64(0)), width), 0)
    return np.where(length == 0, 0, filled).astype(unsigned.dtype).view(a.dtype)


def insert_field(a: Integers, b: Integers, start: Integers, length: Integers) -> Integers:
    """``bfi``: b with its bits from start on replaced by the length lowest of a."""
    start, length = start & np.uint32(255), length & np.uint32(255)
    everything = np.full_like(b, ~np.uint64(0))
    mask = shift_left(~shift_left(everything, length), start)
    return (shift_left(a, start) & mask) | (b & ~mask)


def permute(a: Integers, b: Integers, selector: Integers) -> Integers:
    """``prmt``: four bytes of b:a, each chosen by four bits of selector, of which the highest asks for its sign."""
    both = b.astype(np.uint64) << np.uint64(32) | a.astype(np.uint64)
    result = np.zeros(np.broadcast_shapes(both.shape, selector.shape), np.uint32)
    for k in range(4):
        choice = (selector >> np.uint32(4 * k) & np.uint32(15)).astype(np.uint64)
        byte = (both >> (choice & np.uint64(7)) * np.uint64(8) & np.uint64(255)).astype(np.uint32)
        sign = np.where(byte & np.uint32(128), np.uint32(255), np.uint32(0))
        result |= np.where(choice & np.uint64(8), sign, byte) << np.uint32(8 * k)
    return result


def table(a: Integers, b: Integers, c: Integers, rows: int) -> Integers:
    """``lop3``: the function of three bits that rows tabulates, on each bit."""
    result = np.zeros_like(a & b & c)
    for k in range(8):
        if rows >> k & 1:
            result |= (a if k & 4 else ~a) & (b if k & 2 else ~b) & (c if k & 1 else ~c)
    return result


def clamp(a: Integers, dtype: np.dtype) -> Integers:
    """Integers converted with saturation."""
    info = np.iinfo(dtype)
    low, high = max(info.min, np.iinfo(a.dtype).min), min(info.max, np.iinfo(a.dtype).max)
    return np.clip(a, a.dtype.type(low), a.dtype.type(high)).astype(dtype)

"""From 32-bit words to uniform numbers, coins, integers and permutations: exactly defined (numerics §2, class 5).

Every function is fixed by integers and by products with powers of two, so there is nothing that a device could round
differently. Two words make a 64-bit word, the first being the low half.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from vtrain.errors import UsageError
from vtrain.random.philox import MAX_WORDS, U32, U64, Key, check_range, for_each_chunk


def uniform24(words: U32) -> npt.NDArray[np.float32]:
    """``(word >> 8) * 2^-24``: uniform over the 2^24 multiples of 2^-24 in [0, 1), exact in float32.

    Args:
        words: uint32, any shape.

    Returns:
        float32, the same shape.
    """
    return (words >> np.uint32(8)).astype(np.float32) * np.float32(2.0**-24)


def uint64s(words: U32) -> U64:
    """Pairs of words as 64-bit words: ``words[2i] + 2^32 * words[2i + 1]``.

    Args:
        words: uint32 (2n,).

    Returns:
        uint64 (n,).
    """
    pairs = words.reshape(-1, 2)
    return pairs[:, 0] | (pairs[:, 1].astype(np.uint64) << np.uint64(32))


def uniform53(words: U32) -> npt.NDArray[np.float64]:
    """``(w >> 11) * 2^-53`` for each 64-bit word w: uniform over the multiples of 2^-53 in [0, 1), exact in float64.

    Args:
        words: uint32 (2n,), paired as in ``uint64s``.

    Returns:
        float64 (n,).
    """
    return (uint64s(words) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def bernoulli_threshold(p: float) -> int:
    """The integer in [0, 2^32] nearest to ``p * 2^32``, ties to even; a coin shows heads if its word is below it.

    Computed from the bits of p in integers, so p is met to within 2^-33, and 0 and 1 exactly.

    Args:
        p: a probability, float64.

    Raises:
        UsageError: p is not in [0, 1].
    """
    if not 0.0 <= p <= 1.0:
        raise UsageError(f"probability is {p!r}; wanted a number in [0, 1]")
    numerator, denominator = float(p).as_integer_ratio()
    quotient, rest = divmod(numerator << 32, denominator)
    return quotient + (2 * rest + (quotient & 1) > denominator)


def randint(words: U32, low: int, high: int) -> npt.NDArray[np.int64]:
    """``low + floor(w * (high - low) / 2^64)`` for each 64-bit word w.

    Each value has a probability within 2^-64 of 1 / (high - low): a relative bias of at most (high - low) / 2^64, which
    is below 2^-32 for ranges below 2^32 and none at all for powers of two. It never rejects, so that a draw takes a
    number of words that is known beforehand.

    Args:
        words: uint32 (2n,), paired as in ``uint64s``.
        low: the least value, in [-2^63, 2^63).
        high: one above the greatest value; at most 2^63, and high - low is in [1, 2^63].

    Returns:
        int64 (n,).

    Raises:
        UsageError: the range is empty or too wide.
    """
    low, high = int(low), int(high)
    span = high - low
    if not 1 <= span <= 2**63 or low < -(2**63) or high > 2**63:
        raise UsageError(f"range is [{low}, {high}); wanted 1 to 2^63 values within int64")
    w, half, mask = uint64s(words), np.uint64(32), np.uint64(0xFFFFFFFF)
    span_low, span_high = np.uint64(span & 0xFFFFFFFF), np.uint64(span >> 32)
    w_low, w_high = w & mask, w >> half
    # The high 64 bits of a 128-bit product; no partial sum below reaches 2^64, as a*b + 2a is below it for a, b < 2^32.
    middle = w_high * span_low + (w_low * span_low >> half)
    cross = w_low * span_high + (middle & mask)
    offset = w_high * span_high + (middle >> half) + (cross >> half)
    # offset < 2^63 is an int64; low + offset is in range by construction, and int64 addition can't overflow on the way.
    drawn: npt.NDArray[np.int64] = offset.astype(np.int64) + np.int64(low)
    return drawn


def permutation(key: Key, step: int, site: int, n: int) -> npt.NDArray[np.int64]:
    """A permutation of 0..n-1: the indices sorted by (64-bit word i, i), in O(n log n).

    Two equal words, which the tie rule decides, come up with a probability of about n^2 / 2^65.

    Args:
        step: in [0, 2^63).
        site: in [0, 2^32).
        n: at most 2^33.

    Returns:
        int64 (n,).

    Raises:
        UsageError: step, site or n is out of range.
    """
    keys = np.empty(check_range("length of a permutation", n, MAX_WORDS // 2 + 1), dtype=np.uint64)

    def store(piece: U32, start: int, stop: int) -> None:
        keys[start:stop] = uint64s(piece)

    for_each_chunk(key, step, site, n, 2, store)
    return np.argsort(keys, kind="stable").astype(np.int64, copy=False)

"""Philox4x32-10 and the naming of its streams.

The generator is that of Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3" (SC 2011): ten
rounds of two 32x32-bit products on a 128-bit counter under a 64-bit key. Its authors' known answers are in the tests.

What a draw is called decides its bits (numerics §2, class 5):

    key     = the first 8 bytes of SHA-256("vtrain-philox-v1\\n" + seed in decimal + "\\n" + stream in UTF-8),
              read as two little-endian 32-bit words
    counter = (block, site, low half of step, high half of step), 32 bits each
    word i  = lane i % 4 of block i // 4

With block and site below 2^32 and step below 2^63 the counter holds all three side by side, so no two (step, site,
block) share one, and a permutation of the counters (which a Philox key is) gives no block twice within a stream.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from vtrain.errors import UsageError

U32: TypeAlias = npt.NDArray[np.uint32]
U64: TypeAlias = npt.NDArray[np.uint64]

MAX_STEP = 2**63
"""Steps are below this."""
MAX_SITE = 2**32
"""Sites are below this."""
MAX_WORDS = 2**34
"""One draw has at most this many words: 2^32 blocks of four."""

_MULTIPLIERS = np.array([[0xD2511F53], [0xCD9E8D57]], dtype=np.uint64)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)
# Blocks computed at a time: three arrays of 2 x 8192 x 8 bytes stay in a second-level cache.
_CHUNK = 8192
_DECIMAL = re.compile(r"0|[1-9][0-9]{0,38}")


def check_range(what: str, value: int, limit: int) -> int:
    """Returns ``value`` if it is an integer in [0, limit).

    Raises:
        UsageError: it is no integer, or outside.
    """
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or not 0 <= value < limit:
        raise UsageError(f"{what} is {value!r}; wanted an integer in [0, {limit})")
    return int(value)


def _parse_seed(seed: int | str) -> int:
    if isinstance(seed, str):
        if not _DECIMAL.fullmatch(seed):
            raise UsageError(f"seed is {seed!r}; wanted decimal digits with no sign, space or leading zero")
        seed = int(seed)
    return check_range("seed", seed, 2**128)


@dataclass(frozen=True)
class StreamKey:
    """The name of a stream of draws, and its Philox key.

    Attributes:
        seed: an integer in [0, 2^128); given as one or, as jobs carry it (protocol §1), in decimal digits.
        stream: what the draws are for; any text but the empty one.
        key: the two 32-bit words of the Philox key.

    Raises:
        UsageError: seed or stream is not of this form.
    """

    seed: int
    stream: str
    key: tuple[int, int] = field(init=False, repr=False)

    def __init__(self, seed: int | str, stream: str) -> None:
        if not isinstance(stream, str) or not stream:
            raise UsageError(f"stream is {stream!r}; wanted a text that is not empty")
        number = _parse_seed(seed)
        # The seed has no line break in it, so that the text is unique to (seed, stream).
        digest = hashlib.sha256(f"vtrain-philox-v1\n{number}\n{stream}".encode()).digest()
        object.__setattr__(self, "seed", number)
        object.__setattr__(self, "stream", stream)
        object.__setattr__(self, "key", (int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:8], "little")))


@dataclass(frozen=True)
class WordKey:
    """A Philox key whose name is not known: the ``key`` of a ``StreamKey``, kept where only words can be."""

    key: tuple[int, int]


Key: TypeAlias = StreamKey | WordKey


def _rounds(even: U64, odd: U64, product: U64, key: tuple[int, int]) -> None:
    """The ten rounds, in place, on values below 2^32.

    Args:
        even: (2, n), lanes 0 and 2; the result's after the call.
        odd: (2, n), lanes 1 and 3; the same.
        product: (2, n), scratch.
        key: two words below 2^32.
    """
    k0, k1 = key
    for _ in range(_ROUNDS):
        np.multiply(even, _MULTIPLIERS, out=product)
        crossed = product[::-1]  # lane 2's product feeds lanes 0 and 1, and lane 0's feeds 2 and 3
        np.right_shift(crossed, _HALF, out=even)
        np.bitwise_xor(even, odd, out=even)
        np.bitwise_xor(even, np.array([[k0], [k1]], dtype=np.uint64), out=even)
        np.bitwise_and(crossed, _LOW, out=odd)
        k0, k1 = (k0 + _WEYL[0]) & 0xFFFFFFFF, (k1 + _WEYL[1]) & 0xFFFFFFFF


def philox4x32(counter: U32, key: tuple[int, int] | U32) -> U32:
    """Philox4x32-10 of many counters under one key.

    Args:
        counter: uint32 (n, 4), lane 0 first.
        key: two words below 2^32.

    Returns:
        uint32 (n, 4).

    Raises:
        UsageError: the counter is no uint32 (n, 4), or a key word is out of range.
    """
    if counter.dtype != np.uint32 or counter.ndim != 2 or counter.shape[1] != 4:
        raise UsageError(f"counter is {counter.dtype} {counter.shape}; wanted uint32 (n, 4)")
    k0, k1 = (check_range("key word", word, 2**32) for word in key)
    lanes = counter.T.astype(np.uint64)
    even, odd = lanes[0::2].copy(), lanes[1::2].copy()
    _rounds(even, odd, np.empty_like(even), (k0, k1))
    out = np.empty_like(counter)
    out[:, 0::2], out[:, 1::2] = even.T, odd.T
    return out


def for_each_chunk(
    key: Key, step: int, site: int, items: int, per_item: int, consume: Callable[[U32, int, int], None]
) -> None:
    """Draws ``items * per_item`` words in pieces that stay in cache, and hands each to ``consume``.

    This is what every draw is made of: converting a piece while it is warm costs a fraction of a pass over memory.

    Args:
        items: how many items are drawn.
        per_item: words an item: 1, 2 or 4, so that no item is split between pieces.
        consume: called as ``consume(piece, start, stop)``: the words of items [start, stop), uint32
            ((stop - start) * per_item,), to be used before it returns (the memory is reused), and free to overwrite.

    Raises:
        UsageError: step, site or the number of words is out of range.
    """
    step, site = check_range("step", step, MAX_STEP), check_range("site", site, MAX_SITE)
    total = check_range("number of words", items * per_item, MAX_WORDS + 1)
    blocks = -(-total // 4)
    width = min(_CHUNK, blocks)
    even, odd, product = (np.empty((2, width), dtype=np.uint64) for _ in range(3))
    piece = np.empty((width, 4), dtype=np.uint32)
    for first in range(0, blocks, _CHUNK):
        n = min(_CHUNK, blocks - first)
        e, o = even[:, :n], odd[:, :n]
        e[0], e[1] = np.arange(first, first + n, dtype=np.uint64), step & 0xFFFFFFFF
        o[0], o[1] = site, step >> 32
        _rounds(e, o, product[:, :n], key.key)
        for row in range(2):
            piece[:n, 2 * row], piece[:n, 2 * row + 1] = e[row], o[row]
        start, stop = 4 * first // per_item, min(4 * (first + n), total) // per_item
        consume(piece.reshape(-1)[: (stop - start) * per_item], start, stop)


def words(key: Key, step: int, site: int, n: int) -> U32:
    """The first n words of the draw (step, site) of a stream: word i is lane i % 4 of block i // 4.

    Args:
        step: in [0, 2^63).
        site: in [0, 2^32).
        n: at most 2^34.

    Returns:
        uint32 (n,).

    Raises:
        UsageError: step, site or n is out of range.
    """
    out = np.empty(check_range("number of words", n, MAX_WORDS + 1), dtype=np.uint32)

    def copy(piece: U32, start: int, stop: int) -> None:
        out[start:stop] = piece

    for_each_chunk(key, step, site, n, 1, copy)
    return out

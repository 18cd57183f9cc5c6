"""Draws in numpy: each against its definition in Python integers, and for its distribution under a fixed key."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from vtrain.errors import UsageError
from vtrain.random import StreamKey, bernoulli_threshold, permutation, randint, uint64s, uniform24, uniform53, words

WORDS = st.lists(st.integers(0, 2**32 - 1) | st.sampled_from([0, 1, 255, 256, 2**32 - 1]), min_size=2, max_size=8).map(
    lambda w: w[: len(w) // 2 * 2]
)
KEY = StreamKey(2024, "tests")


def pairs(drawn: list[int]) -> list[int]:
    return [low + 2**32 * high for low, high in zip(drawn[0::2], drawn[1::2], strict=True)]


def chi_square(counts: np.ndarray) -> float:
    """In standard deviations from its mean, for equally likely cells."""
    expected, freedom = counts.sum() / counts.size, counts.size - 1
    return float((((counts - expected) ** 2 / expected).sum() - freedom) / math.sqrt(2 * freedom))


@given(WORDS)
def test_uniform24(drawn: list[int]) -> None:
    got = uniform24(np.array(drawn, dtype=np.uint32))
    assert got.dtype == np.float32
    assert [Fraction(float(u)) for u in got] == [Fraction(w // 256, 2**24) for w in drawn]


@given(WORDS)
def test_uniform53(drawn: list[int]) -> None:
    array = np.array(drawn, dtype=np.uint32)
    assert uint64s(array).tolist() == pairs(drawn)
    got = uniform53(array)
    assert got.dtype == np.float64
    assert [Fraction(float(u)) for u in got] == [Fraction(w // 2**11, 2**53) for w in pairs(drawn)]


@given(st.floats(0, 1))
@example(0.0)
@example(1.0)
@example(2.0**-33)  # ties, to even below and above
@example(3 * 2.0**-33)
@example(5 * 2.0**-33)
@example(1 - 2.0**-33)
@example(1 - 2.0**-53)
@example(5e-324)
def test_bernoulli_threshold(p: float) -> None:
    assert bernoulli_threshold(p) == round(Fraction(p) * 2**32)  # Fraction rounds half to even


@pytest.mark.parametrize("p", [-0.1, -5e-324, 1.0000000000000002, math.nan, math.inf])
def test_bad_probability(p: float) -> None:
    with pytest.raises(UsageError, match="probability"):
        bernoulli_threshold(p)


@given(WORDS, st.integers(-(2**63), 2**63 - 1), st.integers(1, 2**63))
@example([2**32 - 1] * 4, -(2**63), 2**63)
@example([2**32 - 1] * 4, 0, 2**63)
@example([2**32 - 1] * 4, 7, 1)
@example([2**32 - 1] * 4, 0, 2**32)
@example([2**32 - 1] * 4, 0, 2**32 - 1)
@example([2**32 - 1] * 4, 0, 2**63 - 1)
def test_randint(drawn: list[int], low: int, span: int) -> None:
    high = min(low + span, 2**63)
    got = randint(np.array(drawn, dtype=np.uint32), low, high)
    assert got.dtype == np.int64
    assert got.tolist() == [low + w * (high - low) // 2**64 for w in pairs(drawn)]


@pytest.mark.parametrize(("low", "high"), [(0, 0), (3, 2), (-(2**63), 1), (-(2**63) - 1, 0), (2**63, 2**63 + 1)])
def test_bad_ranges(low: int, high: int) -> None:
    with pytest.raises(UsageError, match="range is"):
        randint(np.zeros(2, dtype=np.uint32), low, high)


@given(st.integers(0, 300), st.integers(0, 2**63 - 1), st.integers(0, 2**32 - 1))
def test_permutation_is_the_sort_by_word_and_index(n: int, step: int, site: int) -> None:
    keys = pairs(words(KEY, step, site, 2 * n).tolist())
    got = permutation(KEY, step, site, n)
    assert got.dtype == np.int64
    assert got.tolist() == sorted(range(n), key=lambda i: (keys[i], i))


def test_permutation_breaks_ties_by_index(monkeypatch: pytest.MonkeyPatch) -> None:
    def two_values(key: StreamKey, step: int, site: int, items: int, per_item: int, consume: object) -> None:
        consume(np.arange(items * per_item, dtype=np.uint32) // 2 % 2, 0, items)  # type: ignore[operator]

    monkeypatch.setattr("vtrain.random.draws.for_each_chunk", two_values)
    assert permutation(KEY, 0, 0, 1001).tolist() == [*range(0, 1001, 2), *range(1, 1001, 2)]


def test_permutation_of_several_chunks() -> None:
    assert np.sort(permutation(KEY, 0, 0, 50_000)).tolist() == list(range(50_000))


# The key is fixed, so these pass or fail for ever: 4 deviations would be met by chance once in 10^4 keys.


def test_words_are_equidistributed() -> None:
    drawn = words(KEY, 1, 1, 2**20)
    for shift in (0, 8, 16, 24):
        counts = np.bincount((drawn >> np.uint32(shift)) & 255, minlength=256)
        assert abs(chi_square(counts)) < 4
    bits = np.unpackbits(drawn.view(np.uint8)).reshape(-1, 32).sum(axis=0, dtype=np.int64)
    assert np.abs(bits - 2**19).max() < 4.5 * 2**9


def test_neighbouring_draws_are_independent() -> None:
    """Steps, sites, streams and seeds one apart: the words differ in half of their bits."""
    key = StreamKey(1, "a")
    base = words(key, 1, 1, 2**16)
    for other, step, site in [(key, 2, 1), (key, 1, 2), (StreamKey(2, "a"), 1, 1), (StreamKey(1, "b"), 1, 1)]:
        differing = int(np.unpackbits((base ^ words(other, step, site, 2**16)).view(np.uint8)).sum())
        assert abs(differing - 2**20) < 4 * 2**9.5


def test_integers_are_equidistributed() -> None:
    counts = np.bincount(randint(words(KEY, 2, 1, 2**18), 0, 1000), minlength=1000)
    assert counts.size == 1000
    assert abs(chi_square(counts)) < 4


def test_permutations_are_equally_likely() -> None:
    """All 120 orders of five samples, over 12,000 epochs."""
    place = 5 ** np.arange(5)
    codes = [int(permutation(KEY, epoch, 0, 5) @ place) for epoch in range(12_000)]
    counts = np.unique(codes, return_counts=True)[1]
    assert counts.size == 120
    assert abs(chi_square(counts)) < 4

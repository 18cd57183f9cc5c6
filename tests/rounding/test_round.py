"""Rounding to every format, by every implementation, against the oracle, bit for bit (numerics §1, §7)."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rounding_helpers import FORMATS, IN_FLOAT32, bits, by_name, expected_bits, hard_array, hard_doubles, midpoint

from vtrain import kernels
from vtrain.kernels import _host
from vtrain.rounding import generic, naive
from vtrain.rounding.formats import BFLOAT16, FLOAT16, FLOAT32, Format

Rounding = Callable[[torch.Tensor, Format], torch.Tensor]


def by_kernel(y: torch.Tensor, fmt: Format) -> torch.Tensor:
    return kernels.round_to(y, torch.full(y.shape, math.nan, dtype=generic.container(fmt)), fmt)


ROUNDINGS = [by_kernel, generic.round_to]


def same_double(a: float, b: float) -> bool:
    return (math.isnan(a) and math.isnan(b)) or (a == b and math.copysign(1, a) == math.copysign(1, b))


# ---- the oracle itself ---------------------------------------------------------------------------------------------
def test_oracle_knows_float32_by_heart() -> None:
    """Facts of IEEE 754 binary32, and not from any code here."""
    fmt = FLOAT32
    assert naive.round_fraction(Fraction(1, 3), fmt) == 11184811 / 2**25
    assert naive.round_fraction(1 + 2.0**-24, fmt) == 1.0
    assert naive.round_fraction(1 + 3 * 2.0**-24, fmt) == 1 + 2.0**-22
    assert naive.round_fraction(2.0**-150, fmt) == 0.0
    assert naive.round_fraction(math.nextafter(2.0**-150, 1), fmt) == 2.0**-149
    assert naive.round_fraction(3 * 2.0**-150, fmt) == 2.0**-148
    assert naive.round_fraction(2.0**128 - 2.0**103, fmt) == math.inf
    assert naive.round_fraction(math.nextafter(2.0**128 - 2.0**103, 0), fmt) == 2.0**128 - 2.0**104
    assert math.copysign(1, naive.round_fraction(-(2.0**-200), fmt)) == -1
    assert same_double(naive.round_fraction(-0.0, fmt), -0.0)
    assert [naive.ordered(v, fmt) for v in (0.0, -0.0, 2.0**-149, 1.0, math.inf)] == [0, -1, 1, 0x3F800000, 0x7F800000]
    assert naive.encode(naive.ordered(-1.0, fmt), fmt) == 0xBF800000
    assert naive.decode(0x7F800001, fmt) is None


@pytest.mark.parametrize("fmt", FORMATS, ids=by_name)
@given(data=st.data())
@settings(max_examples=40)
def test_oracle_rounds_to_the_nearest_and_to_even(fmt: Format, data: st.DataObject) -> None:
    """By the definition of nearest, among the neighbours in the ordered list."""
    y = data.draw(hard_doubles(fmt))
    r = naive.round_fraction(y, fmt)
    if math.isnan(y):
        assert math.isnan(r)
        return
    k = naive.ordered(r, fmt)
    assert same_double(naive.from_ordered(k, fmt), r)
    assert naive.decode(naive.encode(k, fmt), fmt) == k
    assert math.copysign(1, r) == math.copysign(1, y)
    if math.isinf(r):
        assert abs(y) >= midpoint(naive.infinity_position(fmt) - 1, fmt)
        return
    distance = abs(Fraction(r) - Fraction(y))
    even = naive.ordered(abs(r), fmt) % 2 == 0
    for near in (k - 1, k + 1):
        if abs(neighbour := naive.from_ordered(near, fmt)) == math.inf:
            continue
        other = abs(Fraction(neighbour) - Fraction(y))
        assert distance < other or (distance == other and (even or neighbour == r))


def test_oracle_refuses_what_has_no_place() -> None:
    with pytest.raises(ValueError, match="ordered value"):
        naive.ordered(math.nan, FLOAT32)
    with pytest.raises(ValueError, match="ordered value"):
        naive.ordered(1 + 2.0**-30, FLOAT32)
    with pytest.raises(ValueError, match="beyond infinity"):
        naive.from_ordered(naive.infinity_position(FLOAT16) + 1, FLOAT16)


# ---- every implementation ------------------------------------------------------------------------------------------
@pytest.mark.parametrize("fmt", FORMATS, ids=by_name)
@given(data=st.data())
@settings(max_examples=60)
def test_all_round_as_the_oracle(fmt: Format, data: st.DataObject) -> None:
    y = data.draw(hard_doubles(fmt))
    want = naive.round_fraction(y, fmt)
    assert same_double(_host.round_scalar(y, fmt.key), want)
    assert same_double(float(generic.round_double(torch.tensor([y], dtype=torch.float64), fmt)[0]), want)
    if not math.isnan(y):
        assert _host.ordered_scalar(y, fmt.key) == naive.ordered(want, fmt)
    for f in ROUNDINGS:
        assert np.array_equal(bits(f(torch.tensor([y], dtype=torch.float64), fmt)), expected_bits([want], fmt)), f
    if fmt == FLOAT32:
        native = torch.tensor([y], dtype=torch.float64).to(torch.float32)
        assert np.array_equal(bits(native), expected_bits([want], fmt))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("fmt", FORMATS, ids=by_name)
def test_tensors_round_as_the_oracle(fmt: Format, dtype: torch.dtype) -> None:
    """Long enough for every vector body, its tail and a second thread's part."""
    y = torch.from_numpy(hard_array(fmt, 1031, seed=fmt.p)).to(dtype)
    want = expected_bits([naive.round_fraction(v, fmt) for v in y.tolist()], fmt)
    for f in ROUNDINGS:
        assert np.array_equal(bits(f(y, fmt)), want), f


def all_halves(fmt: Format) -> tuple[np.ndarray, np.ndarray]:
    """Every finite value that is not negative, and every midpoint above it, as doubles."""
    top = naive.infinity_position(fmt)
    values = np.array([naive.from_ordered(k, fmt) for k in range(top)])
    above = np.append(values[1:], 2.0 ** (fmt.emax + 1))  # a value there would be, were there no overflow
    return values, (values + above) / 2


@pytest.mark.parametrize("f", ROUNDINGS)
@pytest.mark.parametrize("fmt", [BFLOAT16, FLOAT16, *IN_FLOAT32], ids=by_name)
def test_16_bit_formats_exhaustively(fmt: Format, f: Rounding) -> None:
    """Every value, every tie and both doubles beside each, with either sign: known without rounding anything."""
    values, ties = all_halves(fmt)
    with_infinity = np.append(values, np.inf)
    place = np.arange(values.size)
    cases = [
        (values, place),
        (np.nextafter(values[1:], np.inf), place[1:]),
        (np.nextafter(values[1:], 0), place[1:]),
        (np.nextafter(ties, 0), place),
        (np.nextafter(ties, np.inf), place + 1),
        (ties, place + place % 2),
    ]
    for x, places in cases:
        for sign in (1.0, -1.0):
            want = torch.from_numpy(np.copysign(with_infinity[places], sign)).to(generic.container(fmt))
            got = f(torch.from_numpy(np.copysign(x, sign)), fmt)
            assert np.array_equal(bits(got), bits(want))


@pytest.mark.parametrize("fmt", [BFLOAT16, FLOAT16, FLOAT32], ids=by_name)
def test_native_words_are_the_encoding(fmt: Format) -> None:
    """encode gives the word that memory holds: all words of 16 bits, many of 32."""
    top = naive.infinity_position(fmt)
    places = range(top + 1) if top < 2**16 else sorted(np.random.default_rng(1).integers(0, top + 1, 20000).tolist())
    for side in (places, [-1 - k for k in places]):
        words = expected_bits([naive.from_ordered(k, fmt) for k in side], fmt)
        mask = (1 << fmt.bits) - 1
        assert (words.astype(np.int64) & mask).tolist() == [naive.encode(k, fmt) for k in side]


def test_what_the_kernel_cannot_take_is_refused() -> None:
    y = torch.zeros(4, 4, dtype=torch.float64)
    with pytest.raises(ValueError, match="contiguous"):
        kernels.round_to(y.t()[1:], torch.empty(3, 4), FLOAT32)
    with pytest.raises(ValueError, match="want float32 or float64"):
        kernels.round_to(y.half(), torch.empty(4, 4), FLOAT32)

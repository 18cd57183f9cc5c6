"""Logs from a stranger: each forgery is its own fault, at the right element, and no bytes whatever crash the reader
(numerics §5, protocol §7.1)."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from rounding_helpers import (
    SOME_FORMATS,
    Log,
    bits,
    by_name,
    expected_bits,
    full_scale,
    half_widths,
    hard_doubles,
    log_of,
    replay,
)

from vtrain.rounding import naive
from vtrain.rounding.formats import BFLOAT16, FLOAT16, FLOAT32, Format
from vtrain.rounding.naive import Columns, leb128

TIE = 1 + 2.0**-8  # of bfloat16, between 1 and its successor
# In doubt: the ties, by a code or a digit; and the zero, whole, since thousands of values lie within 2^-12 of it.
YS = [1.0, TIE, 2.0, TIE, TIE, -TIE, 0.0, 3.0, 4.0, TIE, 5.0, 6.0]
WS = [2.0**-12] * len(YS)
SCALE = full_scale(WS)
Y = torch.tensor(YS, dtype=torch.float64)


def honest(encoding: str) -> Columns:
    return naive.encode_site(YS, WS, BFLOAT16, encoding)[0]


def fault_of(columns: Columns, ys: list[float] = YS, ws: list[float] = WS, fmt: Format = BFLOAT16) -> tuple[str, int]:
    """The kernel's fault; the oracle's must be the same."""
    got = replay(torch.tensor(ys, dtype=torch.float64), full_scale(ws), fmt, log_of(columns))
    try:
        values = naive.decode_site(columns, ys, ws, fmt)
    except naive.Fault as fault:
        assert got.fault == fault.kind, (got, fault)
        if fault.index is not None:
            assert got.index == fault.index
    else:
        assert got.fault == "OK"
        assert np.array_equal(bits(got.out), expected_bits(values, fmt))
    return got.fault, got.index


def with_row(columns: Columns, place: int, value: int) -> Columns:
    row = list(columns.row)
    row[place] = value
    return replace(columns, row=tuple(row))


def with_gaps(columns: Columns, gaps: bytes) -> Columns:
    return replace(with_row(columns, 5, len(gaps)), gaps=gaps)


@pytest.mark.parametrize("encoding", ["sparse", "ternary"])
def test_the_honest_log_stands(encoding: str) -> None:
    columns = honest(encoding)
    assert columns.row[3:5] == (5, 1) and columns.values == (0,)
    assert fault_of(columns)[0] == "OK"


# ---- values out of bounds ------------------------------------------------------------------------------------------
@pytest.mark.parametrize("index", [0, 2, 7, 11])
def test_a_code_moves_no_element_beyond_its_bound(index: int) -> None:
    """These are not in doubt: "one up" is a value that no hardware gives."""
    mine = naive.ordered(YS[index], BFLOAT16)
    for delta, fault in ((0, "OK"), (1, "OUTSIDE"), (-1, "OUTSIDE"), (2, "BAD_VALUE")):
        columns = Columns((0, len(YS), 0, 1, 0, 1), leb128(index + 1), bytes([(mine + delta) % 4]))
        assert fault_of(columns) == (fault, 0 if fault == "OK" else index)


@pytest.mark.parametrize("index", [0, 2, 7, 11])
def test_a_digit_moves_no_element_beyond_its_bound(index: int) -> None:
    digits = [1] * 15
    digits[index] = 0
    codes = bytes(sum(d * 3**q for q, d in enumerate(digits[at : at + 5])) for at in (0, 5, 10))
    kind = fault_of(Columns((0, len(YS), 1, 1, 0, 0), b"", codes))
    assert kind == ("OK", 0)  # "down" of a representable value is the value itself
    up = bytes(c + 2 * 3 ** (index % 5) if at == index // 5 else c for at, c in enumerate(codes))
    assert fault_of(Columns((0, len(YS), 1, 1, 0, 0), b"", up)) == ("OUTSIDE", index)


@pytest.mark.parametrize("distance", [1, 2, 3, 1000, -1, -2, -70000])
def test_a_whole_value_moves_no_element_beyond_its_bound(distance: int) -> None:
    index = 7
    word = naive.encode(naive.ordered(YS[index], BFLOAT16), BFLOAT16) + distance
    columns = Columns((0, len(YS), 0, 0, 1, 1), leb128(index + 1), b"", (word % 2**32,))
    kind, at = fault_of(columns)
    assert (kind, at) == ("OUTSIDE" if word >= 0 else "BAD_VALUE", index)


def test_the_report_says_what_was_found() -> None:
    columns = Columns((0, len(YS), 0, 0, 1, 1), leb128(8), b"", (naive.encode(naive.ordered(2.0, BFLOAT16), BFLOAT16),))
    got = replay(Y, SCALE, BFLOAT16, log_of(columns))
    assert (got.fault, got.index, got.y, got.w, got.logged) == ("OUTSIDE", 7, 3.0, 2.0**-12, 2.0)


@pytest.mark.parametrize("reach", [0, 1, 5, 40])
def test_the_bound_is_exact(reach: int) -> None:
    """Every value in the interval is accepted, the next on either side is not."""
    y, quantum = 1.5, 2.0**-7
    w = reach * quantum
    k = naive.ordered(y, BFLOAT16)
    for distance in range(-reach - 2, reach + 3):
        columns = Columns((0, 1, 0, 0, 1, 1), b"\x01", b"", (k + distance,))
        assert fault_of(columns, [y], [w])[0] == ("OK" if abs(distance) <= reach else "OUTSIDE")


@pytest.mark.parametrize("word", [0x7F81, 0x7FC0, 0xFF81, 0x10000, 0x80000000, 0xFFFFFFFF])
def test_no_value_is_no_value(word: int) -> None:
    """NaN and bits beyond the format's width, however wide the bound."""
    columns = Columns((0, 1, 0, 0, 1, 1), b"\x01", b"", (word,))
    assert fault_of(columns, [1.0], [1e300]) == ("BAD_VALUE", 0)


@pytest.mark.parametrize(("y", "w"), [(math.nan, 1.0), (1.0, math.nan), (math.inf, math.inf), (-math.inf, 1.0)])
def test_what_is_not_finite_has_no_neighbourhood(y: float, w: float) -> None:
    """inf - inf and NaN would otherwise admit every value."""
    for value in (1.0, -math.inf if y == math.inf else math.inf, 0.0):
        word = naive.encode(naive.ordered(value, BFLOAT16), BFLOAT16)
        assert fault_of(Columns((0, 1, 0, 0, 1, 1), b"\x01", b"", (word,)), [y], [w]) == ("OUTSIDE", 0)
    for code in range(4):
        columns = Columns((0, 1, 0, 1, 0, 1), b"\x01", bytes([code]))
        assert fault_of(columns, [y], [w])[0] in ("OK", "OUTSIDE", "BAD_VALUE")


# ---- indices -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("index", [len(YS), len(YS) + 1, 2**31, 2**62 - 1])
def test_an_index_beyond_the_end(index: int) -> None:
    gaps = leb128(index + 1)
    assert fault_of(Columns((0, len(YS), 0, 1, 0, len(gaps)), gaps, b"\0")) == ("BAD_INDEX", index)
    assert fault_of(Columns((0, len(YS), 0, 0, 1, len(gaps)), gaps, b"", (0,))) == ("BAD_INDEX", index)


def test_a_repeated_index() -> None:
    """A gap of nothing within one list; an element with a code and a whole value across the two, in either encoding."""
    code = naive.ordered(1.0, BFLOAT16) % 4
    twice = Columns((0, len(YS), 0, 2, 0, 2), b"\x02\x00", bytes([code * 5]))
    assert fault_of(twice)[0] == "BAD_GAP"
    word = naive.encode(naive.ordered(1.0, BFLOAT16), BFLOAT16)
    both = Columns((0, len(YS), 0, 1, 1, 2), b"\x02\x02", bytes([code]), (word,))
    assert fault_of(both) == ("BAD_INDEX", 1)
    ternary = honest("ternary")
    assert fault_of(replace(with_gaps(ternary, b"\x02"), values=(word,))) == ("BAD_INDEX", 1)


@pytest.mark.parametrize(
    "gaps", [b"\x82\x00", b"\x82\x80\x00", b"\x80", b"", b"\x80\x80", b"\x00", b"\x81" * 9 + b"\x01", b"\xff" * 12]
)
def test_a_number_in_another_spelling_or_cut_short(gaps: bytes) -> None:
    assert fault_of(Columns((0, len(YS), 0, 1, 0, len(gaps)), gaps, b"\0"))[0] == "BAD_GAP"


# ---- counts and sizes ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("encoding", ["sparse", "ternary"])
def test_columns_cut_short_or_too_long(encoding: str) -> None:
    columns = honest(encoding)
    assert fault_of(with_gaps(columns, columns.gaps[:-1]))[0] == "BAD_GAP"
    assert fault_of(with_gaps(columns, columns.gaps + b"\x01"))[0] == "BAD_COUNT"
    assert fault_of(with_gaps(columns, columns.gaps + b"\x80"))[0] == "BAD_COUNT"
    assert fault_of(replace(columns, codes=columns.codes[:-1]))[0] == "BAD_COUNT"
    assert fault_of(replace(columns, codes=columns.codes + b"\0"))[0] == "BAD_COUNT"
    assert fault_of(replace(columns, values=()))[0] == "BAD_COUNT"
    assert fault_of(replace(columns, values=(0, 0)))[0] == "BAD_COUNT"


@pytest.mark.parametrize("encoding", ["sparse", "ternary"])
@pytest.mark.parametrize(
    ("place", "value"),
    [(1, 11), (1, 13), (1, 0), (1, 2**64 - 1), (2, 2), (2, 2**63)]
    + [(p, v) for p in (3, 4) for v in (13, 2**62, 2**62 + 1, 2**63, 2**64 - 4, 2**64 - 3, 2**64 - 1)],
)
def test_wrong_counts(encoding: str, place: int, value: int) -> None:
    """Among them those whose sizes would come out right if arithmetic on them could wrap."""
    columns = with_row(honest(encoding), place, value)
    assert fault_of(columns)[0] == "BAD_COUNT"


def test_counts_that_wrap_to_the_sizes_that_are_there() -> None:
    """4 (2^62 + 1) and (2^64 - 1 + 3) / 4 in 64 bits are 4 and 0: gaps would drive reads beyond the columns."""
    gaps = b"\x01" * len(YS)
    assert fault_of(Columns((0, len(YS), 0, 0, 2**62 + 1, len(gaps)), gaps, b"", (0,)))[0] == "BAD_COUNT"
    assert fault_of(Columns((0, len(YS), 0, 2**64 - 1, 0, len(gaps)), gaps, b""))[0] == "BAD_COUNT"


def test_fewer_or_more_digits_than_counted() -> None:
    columns = honest("ternary")
    for count in (4, 6):
        assert fault_of(with_row(columns, 3, count))[0] == "BAD_COUNT"


def test_no_digit_beyond_base_three_and_none_beyond_the_end() -> None:
    columns = honest("ternary")
    for byte in (243, 250, 255):
        forged = columns.codes[:1] + bytes([byte]) + columns.codes[2:]
        assert fault_of(replace(columns, codes=forged)) == ("BAD_DIGIT", 5)
    last = columns.codes[-1] + 9  # two of the last byte's five digits are elements: the third becomes "up"
    assert fault_of(replace(columns, codes=columns.codes[:-1] + bytes([last]))) == ("BAD_DIGIT", 12)


def test_spare_bits_are_zero() -> None:
    """One log, one spelling: five codes leave six bits of the second byte."""
    columns = honest("sparse")
    for bit in range(2, 8):
        forged = columns.codes[:1] + bytes([columns.codes[1] | 1 << bit])
        assert fault_of(replace(columns, codes=forged))[0] == "BAD_COUNT"


# ---- any bytes at all ----------------------------------------------------------------------------------------------
COUNTS = st.integers(0, 9) | st.sampled_from([2**31, 2**62, 2**62 + 1, 2**63, 2**64 - 1])


@st.composite
def any_columns(draw: st.DrawFn, numel: int) -> Columns:
    """Columns that seldom are a log, with sizes that often fit each other, so that reading gets beyond them."""
    ternary = draw(st.integers(0, 2))
    short, whole = draw(COUNTS), draw(COUNTS)
    gaps = draw(st.binary(max_size=8) | st.lists(st.integers(0, 4), max_size=12).map(bytes))
    fitting = (numel + 4) // 5 if ternary else (min(short, 40) + 3) // 4
    codes = draw(st.binary(min_size=fitting, max_size=fitting) | st.binary(max_size=4))
    count = whole if whole < 10 and draw(st.booleans()) else draw(st.integers(0, 4))
    words = st.integers(0, 2**32 - 1) | st.integers(0, 2**16)
    values = draw(st.lists(words, min_size=count, max_size=count))
    right = draw(st.integers(0, 4)) > 0
    return Columns((0, numel if right else draw(COUNTS), ternary, short, whole, len(gaps)), gaps, codes, tuple(values))


@given(data=st.data())
@settings(max_examples=600)
def test_any_bytes_are_read_as_the_oracle_reads_them(data: st.DataObject) -> None:
    fmt = data.draw(st.sampled_from(SOME_FORMATS))
    ys = data.draw(st.lists(hard_doubles(fmt), min_size=1, max_size=7))
    ws = [data.draw(half_widths(fmt, y)) for y in ys]
    fault_of(data.draw(any_columns(len(ys))), ys, ws, fmt)


def flipped(data: bytes, bit: int) -> bytes:
    return bytes(b ^ (1 << bit % 8 if at == bit // 8 else 0) for at, b in enumerate(data))


@pytest.mark.parametrize("fmt", [FLOAT32, FLOAT16], ids=by_name)
@pytest.mark.parametrize("encoding", ["sparse", "ternary"])
def test_every_flipped_bit(encoding: str, fmt: Format) -> None:
    """An honest log with one bit changed is refused, or read as values within the bound, as the oracle reads it."""
    rng = np.random.default_rng(5)
    ys = rng.uniform(1, 2, 40).tolist()
    ws = [2.0**-fmt.p * f for f in rng.choice([0.3, 0.7, 3.0], 40)]
    columns, _ = naive.encode_site(ys, ws, fmt, encoding)
    faults = set()
    for bit in range(8 * len(columns.gaps)):
        faults.add(fault_of(replace(columns, gaps=flipped(columns.gaps, bit)), ys, ws, fmt)[0])
    for bit in range(8 * len(columns.codes)):
        faults.add(fault_of(replace(columns, codes=flipped(columns.codes, bit)), ys, ws, fmt)[0])
    for q in range(len(columns.values)):
        for bit in range(32):
            values = [v ^ (1 << bit if q == at else 0) for at, v in enumerate(columns.values)]
            faults.add(fault_of(replace(columns, values=tuple(values)), ys, ws, fmt)[0])
    assert {"OUTSIDE", "BAD_GAP"} <= faults


@given(st.integers(0, 2**63 - 1))
@example(0)
@example(127)
@example(128)
@example(2**63 - 1)
def test_leb128_has_one_spelling(n: int) -> None:
    data = leb128(n)
    assert sum((b & 127) << 7 * q for q, b in enumerate(data)) == n
    assert all(b & 128 for b in data[:-1]) and not data[-1] & 128 and (len(data) == 1 or data[-1])


def test_a_fault_leaves_nothing_outside_the_bound() -> None:
    """Whatever was applied before the fault had been accepted."""
    log: Log = log_of(honest("sparse"))
    row, gaps, codes, values = log
    got = replay(Y, SCALE, BFLOAT16, (row, gaps[:-1] + b"\x7f", codes, values))
    assert got.fault == "BAD_INDEX"
    for y, w, r in zip(YS, WS, got.out.double().tolist(), strict=True):
        low, high = naive.interval(y, w, BFLOAT16)
        assert low <= naive.ordered(r, BFLOAT16) <= high

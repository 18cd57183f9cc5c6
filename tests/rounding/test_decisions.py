"""Rounding decisions: the kernels' logs against the oracle's, and unique decodability (numerics §4, §5, §8)."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rounding_helpers import (
    FIELDS,
    FORMATS,
    RESTRICTED,
    SOME_FORMATS,
    Log,
    bits,
    by_name,
    expected_bits,
    full_scale,
    half_widths,
    hard_array,
    hard_doubles,
    hard_widths,
    last_bit_scale,
    log_of,
    replay,
    settle,
    taken,
)

from vtrain import kernels
from vtrain.rounding import generic, naive
from vtrain.rounding.formats import BFLOAT16, FLOAT16, FLOAT32, Format
from vtrain.rounding.scale import Scale

ENCODINGS = ["sparse", "ternary"]
MODES = ["relative", "full", "none", "row", "col", "bias", "row col", "row bias", "col bias", "row col bias"]
SHAPES = [(1, 1, 1), (1, 2, 1), (3, 1, 1), (1, 5, 103), (1, 1, 511), (2, 4, 64), (3, 9, 19), (1, 3, 683)]
TWO_THREADS = (2, 16, 513)  # parts of at least 8192 elements
TAU, ETA = 0.37, 2.0**-60


def scale_of(mode: str, shape: tuple[int, int, int], y: np.ndarray, fmt: Format, seed: int) -> Scale:
    """A scale of each kind whose widths reach from nothing to several quanta of y, and cover zeros."""
    rng = np.random.default_rng(seed)
    b, m, n = shape

    def vector(size: int) -> torch.Tensor:
        return torch.from_numpy(2.0 ** rng.integers(-fmt.p - 6, 2, size) * rng.integers(0, 4, size))

    s = Scale("test", 1, 1.0, shape, relative=mode == "relative")
    if mode == "full":
        s.full = torch.from_numpy(hard_widths(fmt, y, seed))
    s.row = vector(b * m) if "row" in mode else None
    s.col = vector(b * n) if "col" in mode else None
    s.bias = vector(n) if "bias" in mode else None
    return s


def by_oracle(y: torch.Tensor, s: Scale, fmt: Format, encoding: str, tau: float, eta: float) -> tuple[Log, np.ndarray]:
    ws = [tau * each + eta if each else 0.0 for each in s.dense(y).reshape(-1).tolist()]
    columns, values = naive.encode_site(y.double().reshape(-1).tolist(), ws, fmt, encoding, seq=7)
    return log_of(columns), expected_bits(values, fmt)


# ---- the kernels log what the oracle logs --------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("mode", "shape"),
    [*itertools.product(MODES, SHAPES), *((m, TWO_THREADS) for m in ("full", MODES[-1]))],
    ids=str,
)
def test_settle_equals_the_oracle(mode: str, shape: tuple[int, int, int]) -> None:
    """Every kind of scale at odd sizes; formats and dtypes take turns, one thread or two give the same columns."""
    turn = MODES.index(mode) + [*SHAPES, TWO_THREADS].index(shape)
    fmt, dtype = SOME_FORMATS[turn % len(SOME_FORMATS)], [torch.float64, torch.float32][turn // 2 % 2]
    y = torch.from_numpy(hard_array(fmt, math.prod(shape), seed=turn)).to(dtype)
    s = scale_of(mode, shape, y.double().numpy(), fmt, turn)
    tau = 2.0**-fmt.p if mode in ("relative", "none") else TAU
    for encoding in ENCODINGS:
        want, values = by_oracle(y, s, fmt, encoding, tau, ETA)
        for threads in (1, 2):
            before = torch.get_num_threads()
            torch.set_num_threads(threads)
            try:
                got, out = settle(y, s, fmt, encoding, tau, ETA)
            finally:
                torch.set_num_threads(before)
            assert got == want
            assert np.array_equal(bits(out), values)


@pytest.mark.parametrize("fmt", FORMATS, ids=by_name)
@given(data=st.data())
@settings(max_examples=15)
def test_few_elements_equal_the_oracle(fmt: Format, data: st.DataObject) -> None:
    ys = data.draw(st.lists(hard_doubles(fmt), min_size=1, max_size=7))
    ws = [data.draw(half_widths(fmt, y)) for y in ys]
    y = torch.tensor(ys, dtype=torch.float64)
    if any(math.isfinite(value) and math.isinf(w) for value, w in zip(ys, ws, strict=True)):
        assert_endless(y, ws, fmt)
        return
    for encoding in ENCODINGS:
        columns, values = naive.encode_site(ys, ws, fmt, encoding, seq=7)
        got, out = settle(y, full_scale(ws), fmt, encoding)
        assert got == log_of(columns)
        assert np.array_equal(bits(out), expected_bits(values, fmt))


def assert_endless(y: torch.Tensor, ws: list[float], fmt: Format) -> None:
    """No log is written of a finite value whose half-width is infinite, by the oracle, the kernel or from elsewhere."""
    with pytest.raises(naive.Fault, match="ENDLESS"):
        naive.encode_site(y.tolist(), ws, fmt, "sparse", seq=7)
    sink, s, out = kernels.Sink(0), full_scale(ws), torch.empty(y.shape, dtype=generic.container(fmt))
    key = kernels.scale_key(s, 1.0, 0.0)
    assert sink.settle(7, kernels.geometry(y, out, s.shape), fmt.key, key, False) == kernels.ENDLESS
    index, values, w = (t.numpy().tobytes() for t in generic.in_doubt(y, s, 1.0, 0.0, fmt))
    assert sink.add(7, y.numel(), fmt.key, index, values, w) == kernels.ENDLESS
    assert taken(sink) == ((), b"", b"", ())


def test_an_infinite_half_width_is_no_bound() -> None:
    """Whoever recorded it is told; whoever reads it accepts nothing. Infinity itself stands."""
    y, ws = torch.tensor([1.0, math.inf, 2.0], dtype=torch.float64), [0.0, math.inf, math.inf]
    assert_endless(y, ws, BFLOAT16)
    whole = naive.Columns((7, 3, 0, 0, 1, 1), b"\x03", b"", (naive.encode(naive.ordered(2.0, BFLOAT16), BFLOAT16),))
    assert replay(y, full_scale(ws), BFLOAT16, log_of(whole)).fault == "OUTSIDE"
    with pytest.raises(naive.Fault, match="OUTSIDE at 2"):
        naive.decode_site(whole, y.tolist(), ws, BFLOAT16)
    log, out = settle(y[:2].clone(), full_scale(ws[:2]), BFLOAT16, "sparse")
    assert replay(y[:2].clone(), full_scale(ws[:2]), BFLOAT16, log).fault == "OK" and out.tolist() == [1.0, math.inf]


@pytest.mark.parametrize("zero", [0.0, -0.0])
def test_a_half_width_of_nothing_admits_one_zero(zero: float) -> None:
    """Where s is 0, eta counts for nothing: every machine has this number, the sign of a zero included."""
    y = torch.tensor([zero], dtype=torch.float64)
    assert settle(y, full_scale([0.0]), BFLOAT16, "sparse", eta=2.0**-100)[0] == ((), b"", b"", ())
    assert generic.in_doubt(y, full_scale([0.0]), 1.0, 2.0**-100, BFLOAT16)[0].numel() == 0
    for other in (-zero, 2.0**-133):
        place = naive.encode(naive.ordered(other, BFLOAT16), BFLOAT16)
        log = log_of(naive.Columns((7, 1, 0, 0, 1, 1), b"\x01", b"", (place,)))
        assert replay(y, full_scale([0.0]), BFLOAT16, log, eta=2.0**-100).fault == "OUTSIDE"
    assert replay(y, full_scale([5e-324]), BFLOAT16, log, eta=2.0**-133).fault == "OK"


@pytest.mark.parametrize("fmt", FORMATS, ids=by_name)
def test_entries_from_elsewhere_give_the_same_columns(fmt: Format) -> None:
    """generic.in_doubt and Sink.add, as for a device without a kernel, against Sink.settle."""
    for mode in ("full", "relative", "row col bias"):
        y = torch.from_numpy(hard_array(fmt, 3 * 31 * 7, seed=fmt.p))
        s = scale_of(mode, (3, 31, 7), y.numpy(), fmt, fmt.p)
        tau = 2.0**-fmt.p if mode == "relative" else TAU
        index, values, w = (t.numpy().tobytes() for t in generic.in_doubt(y, s, tau, ETA, fmt))
        for encoding in ENCODINGS:
            sink = kernels.Sink(kernels.ENCODINGS[encoding])
            sink.add(7, y.numel(), fmt.key, index, values, w)
            assert taken(sink) == settle(y, s, fmt, encoding, tau, ETA)[0]


@pytest.mark.parametrize("fmt", [BFLOAT16, FLOAT16, RESTRICTED[6]], ids=by_name)
def test_a_width_is_formed_by_rounded_operations(fmt: Format) -> None:
    """Not by a fused one: the last bit of a width can decide what is in doubt."""
    y, s = last_bit_scale(fmt, 67)
    assert settle(y, s, fmt, "sparse")[0][0] == ()
    assert settle(y, s, fmt, "sparse", eta=2.0**-60)[0][0][3] == y.numel()


def size(log: Log) -> int:
    return len(log[1]) + len(log[2]) + 4 * len(log[3])


@pytest.mark.parametrize("width", [2.0**-40, 2.0**-14, 2.0**-11, 2.0**-9, 2.0**-8, 2.0**-6])
@pytest.mark.parametrize("n", [7, 1000, 20000])
def test_auto_takes_the_smaller_encoding(n: int, width: float) -> None:
    """It is one of the two; its estimate neglects the gaps' second bytes, so near equality it may take either."""
    y = torch.from_numpy(np.random.default_rng(n).uniform(1, 2, n))
    s = Scale("test", 1, 1.0, (1, 1, n), relative=True)
    sparse, ternary, auto = (settle(y, s, BFLOAT16, e, tau=width)[0] for e in ("sparse", "ternary", "auto"))
    assert auto in (sparse, ternary)
    least = min(size(sparse), size(ternary))
    assert size(auto) <= least + least // 8 + 2


def test_auto_takes_each_where_it_is_much_smaller() -> None:
    y = torch.from_numpy(np.random.default_rng(0).uniform(1, 2, 10000))
    s = Scale("test", 1, 1.0, (1, 1, y.numel()), relative=True)
    dense = settle(y, s, BFLOAT16, "auto", tau=2.0**-11)[0]
    rare = settle(y, s, BFLOAT16, "auto", tau=2.0**-20)[0]
    assert dense[0][2] == 1 and dense == settle(y, s, BFLOAT16, "ternary", tau=2.0**-11)[0]
    assert rare[0][2] == 0 and rare == settle(y, s, BFLOAT16, "sparse", tau=2.0**-20)[0]


def test_a_sink_appends_sites_and_starts_anew() -> None:
    """Sites follow each other; one without doubt leaves no row; what was taken is gone."""
    sink = kernels.Sink(kernels.ENCODINGS["sparse"])
    logs = []
    for seq, w in enumerate([0.5, 0.0, 0.25]):
        y = torch.from_numpy(hard_array(BFLOAT16, 100, seed=seq, special=False)).abs()
        s = full_scale(np.full(100, w))
        out = torch.empty(100, dtype=torch.bfloat16)
        key = (1.0, 0.0, 0, 0, 0, s.full.data_ptr() if s.full is not None else 0, False)
        assert (sink.settle(seq, kernels.geometry(y, out, s.shape), BFLOAT16.key, key, False) == 0) == (w == 0)
        logs.append(settle(y, s, BFLOAT16, "sparse", seq=seq)[0])
    sites, gaps, codes, values = taken(sink)
    assert len(sites) == 2 * FIELDS and logs[1][0] == ()
    first, _, third = logs
    assert (sites, values) == (first[0] + third[0], first[3] + third[3])
    assert (gaps, codes) == (first[1] + third[1], first[2] + third[2])
    assert taken(sink) == ((), b"", b"", ())


# ---- unique decodability: the theorem of numerics §8, for one result -----------------------------------------------
def within(y: np.ndarray, w: np.ndarray, candidate: np.ndarray) -> np.ndarray:
    """Where |candidate - y| <= w holds exactly: Knuth's TwoSum gives the difference as d + e without error.

    A doubt of exactly |y| does not tell -0 from +0 beyond y's own sign, and a doubt of nothing not even there: the
    candidate keeps the sign. No certified width is exact like that, but for sums of nothing but zeros.
    """
    with np.errstate(all="ignore"):
        d = candidate - y
        back = d - candidate
        e = (candidate - (d - back)) + (-y - back)
        size, rest = np.abs(d), np.where(d < 0, -e, e)
        other_zero = (candidate == 0) & (np.abs(y) == w) & (np.signbit(candidate) != np.signbit(y))
        near = (size < w) | ((size == w) & (rest <= 0))
        return ~other_zero & ((candidate == y) | (np.isfinite(d) & (d != 0) & near))


def others(y: np.ndarray, w: np.ndarray, dtype: type, seed: int) -> list[np.ndarray]:
    """What an auditor may have computed in place of y: either end of the interval, points between, zeros."""
    rng = np.random.default_rng(seed)
    found = []
    with np.errstate(all="ignore"):
        for t in [-1.0, 1.0, rng.uniform(-1, 1, y.size), rng.choice([-0.5, 0.5, -1, 1], y.size), None, 0.0]:
            z = np.where(rng.integers(0, 2, y.size) == 0, 0.0, -0.0) if t is None else y + t * w
            z = z.astype(dtype)
            for _ in range(2):  # an end that was rounded outwards: the number before it
                inside = within(y, w, z.astype(np.float64)) | ~np.isfinite(y)
                z = np.where(inside, z, np.nextafter(z, y.astype(dtype)))
            inside = within(y, w, z.astype(np.float64))
            z = np.where(inside, z, y.astype(dtype))
            found.append(z)
    return found


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("fmt", FORMATS, ids=by_name)
def test_every_auditor_within_w_decodes_the_same(fmt: Format, dtype: type, encoding: str) -> None:
    """y' anywhere within w of y, above all at its ends: round(y) in every element, and no fault."""
    n = 3000
    with np.errstate(over="ignore"):
        y = hard_array(fmt, n, seed=fmt.p).astype(dtype).astype(np.float64)
    w = hard_widths(fmt, y, seed=fmt.p + 1)
    s = full_scale(w)
    log, out = settle(torch.from_numpy(y.astype(dtype)), s, fmt, encoding)
    honest = bits(out)
    moved = corrections = 0
    for z in others(y, w, dtype, seed=fmt.p):
        got = replay(torch.from_numpy(z), s, fmt, log)
        assert got.fault == "OK", (got.index, y[got.index], w[got.index], got)
        assert np.array_equal(bits(got.out), honest)
        moved += int((z.astype(np.float64) != y).sum())
        corrections += got.corrections
    assert moved > n and corrections > n // 20  # the test did move the values, across boundaries too


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("fmt", FORMATS, ids=by_name)
@given(data=st.data())
@settings(max_examples=12)
def test_decodability_of_a_few(fmt: Format, encoding: str, data: st.DataObject) -> None:
    """The same, shrinkable; the oracle and the kernel read alike."""
    ys = data.draw(st.lists(hard_doubles(fmt), min_size=1, max_size=5))
    ws = [min(data.draw(half_widths(fmt, y)), 1e300) for y in ys]
    columns, values = naive.encode_site(ys, ws, fmt, encoding)
    want = expected_bits(values, fmt)
    for z in others(np.array(ys), np.array(ws), np.float64, seed=0) if columns.row else []:
        assert np.array_equal(expected_bits(naive.decode_site(columns, z.tolist(), ws, fmt), fmt), want)
        got = replay(torch.from_numpy(z), full_scale(ws), fmt, log_of(columns))
        assert got.fault == "OK"
        assert np.array_equal(bits(got.out), want)


@pytest.mark.parametrize("fmt", [FLOAT32, BFLOAT16, FLOAT16, RESTRICTED[3]], ids=by_name)
def test_pure_cancellation_is_logged_whole(fmt: Format) -> None:
    """Exact result zero, computed results all noise, many quanta and both signs apart, as attention's key biases."""
    rng = np.random.default_rng(3)
    w = np.full(4000, 2.0**-40)
    y, z = (rng.uniform(-0.5, 0.5, 4000) * w for _ in range(2))
    log, out = settle(torch.from_numpy(y), full_scale(w), fmt, "auto")
    assert fmt == FLOAT16 or log[0][4] == 4000
    got = replay(torch.from_numpy(z), full_scale(w), fmt, log)
    assert got.fault == "OK" and np.array_equal(bits(got.out), bits(out))
    assert fmt == FLOAT16 or got.corrections > 3900


def test_corrections_are_counted() -> None:
    """Those elements that the auditor alone would have rounded otherwise."""
    y = torch.tensor([1 + 2.0**-8 + 2.0**-20, 1.0, 1 + 2.0**-8 - 2.0**-20], dtype=torch.float64)
    z = torch.tensor([1 + 2.0**-8 - 2.0**-20, 1.0, 1 + 2.0**-8 - 2.0**-20], dtype=torch.float64)
    s = full_scale([2.0**-18] * 3)
    for encoding in ENCODINGS:
        log, out = settle(y, s, BFLOAT16, encoding)
        assert log[0][3:5] == (2, 0)
        got = replay(z, s, BFLOAT16, log)
        assert (got.fault, got.corrections) == ("OK", 1)
        assert np.array_equal(bits(got.out), bits(out))

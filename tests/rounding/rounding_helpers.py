"""Formats, hard numbers and thin wrappers around the kernels for the rounding tests."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from hypothesis import strategies as st

from vtrain import kernels
from vtrain.kernels import _host
from vtrain.rounding import generic, naive
from vtrain.rounding.formats import BFLOAT16, FLOAT16, FLOAT32, Format, target_in_float32
from vtrain.rounding.scale import Scale

RESTRICTED = [target_in_float32("float32", p) for p in range(8, 24)]
IN_FLOAT32 = [target_in_float32("bfloat16", 24), target_in_float32("float16", 24)]
FORMATS = [FLOAT32, BFLOAT16, FLOAT16, *IN_FLOAT32, *RESTRICTED]
SOME_FORMATS = [FLOAT32, BFLOAT16, FLOAT16, IN_FLOAT32[1], RESTRICTED[0], RESTRICTED[10]]
FAULTS = ["OK", "BAD_GAP", "BAD_INDEX", "BAD_COUNT", "BAD_VALUE", "BAD_DIGIT", "OUTSIDE"]  # enum Fault in codes.hpp
FIELDS = 6

Log = tuple[tuple[int, ...], bytes, bytes, tuple[int, ...]]


def by_name(fmt: Format) -> str:
    return fmt.name


def bits(t: torch.Tensor) -> np.ndarray:
    """Words of a tensor, all NaN alike (numerics §7)."""
    t = torch.where(t.isnan(), torch.full_like(t, math.nan), t)
    return t.view(torch.int32 if t.element_size() == 4 else torch.int16).numpy()


def expected_bits(values: list[float], fmt: Format) -> np.ndarray:
    """Words of values that the format holds, so that the conversion is exact."""
    return bits(torch.tensor(values, dtype=torch.float64).to(generic.container(fmt)))


# ---- hard numbers --------------------------------------------------------------------------------------------------
def landmarks(fmt: Format) -> list[int]:
    """Places around which something changes: zero, the subnormals' ends, a few binades' edges, infinity."""
    top, binade = naive.infinity_position(fmt), 1 << (fmt.p - 1)
    edges = {0, binade, 2 * binade, top // 2 // binade * binade, top - binade, top}
    return sorted({k for e in edges for k in range(e - 3, e + 3) if 0 <= k <= top})


def midpoint(k: int, fmt: Format) -> float:
    """The double half way from place k >= 0 to the next; for the greatest value, where overflow begins."""
    if k + 1 == naive.infinity_position(fmt):
        return (naive.from_ordered(k, fmt) + 2.0 ** (fmt.emax + 1)) / 2
    return (naive.from_ordered(k, fmt) + naive.from_ordered(k + 1, fmt)) / 2


@st.composite
def hard_doubles(draw: st.DrawFn, fmt: Format) -> float:
    """Values, midpoints and the doubles beside them, with either sign; or any double at all, infinities and NaN too."""
    if draw(st.integers(0, 5)) == 0:
        return draw(st.floats(allow_nan=True, allow_infinity=True))
    k = draw(st.sampled_from(landmarks(fmt)) | st.integers(0, naive.infinity_position(fmt)))
    k = min(k, naive.infinity_position(fmt) - 1)
    x = midpoint(k, fmt) if draw(st.booleans()) else naive.from_ordered(k, fmt)
    x = draw(st.sampled_from([x, math.nextafter(x, math.inf), math.nextafter(x, -math.inf)]))
    return math.copysign(x, draw(st.sampled_from([1.0, -1.0])))


@st.composite
def half_widths(draw: st.DrawFn, fmt: Format, y: float) -> float:
    """From nothing through parts of a quantum to many, and more than y itself."""
    a = abs(y) if math.isfinite(y) and y else 1.0
    quantum = math.ldexp(1.0, max(math.frexp(a)[1] - 1, fmt.emin) - fmt.p + 1)
    factor = draw(st.sampled_from([0.0, 2.0**-40, 2.0**-29, 0.125, 0.25, 0.5, 0.75, 1.0, 2.5, 40.0]))
    return draw(st.sampled_from([factor * quantum] * 9 + [a, 3 * a, 5e-324, math.inf]))


def hard_array(fmt: Format, n: int, seed: int, special: bool = True) -> np.ndarray:
    """n doubles as in hard_doubles, by numpy's generator."""
    rng = np.random.default_rng(seed)
    top = naive.infinity_position(fmt)
    pool = np.unique(np.concatenate([rng.integers(0, top, 400), [k for k in landmarks(fmt) if k < top]]))
    values = np.array([naive.from_ordered(int(k), fmt) for k in pool] + [midpoint(int(k), fmt) for k in pool])
    x = rng.choice(values, n)
    kind = rng.integers(0, 8, n)
    x = np.where(kind == 1, np.nextafter(x, np.inf), np.where(kind == 2, np.nextafter(x, -np.inf), x))
    x = np.where(kind == 3, x * (1 + rng.standard_normal(n) * 2.0**-fmt.p), x)
    x = np.where(kind == 4, rng.standard_normal(n), x)
    x = np.where(kind == 5, rng.choice([0.0, 5e-324, 2.0 ** (fmt.emin - fmt.p), 2.0**fmt.emin], n), x)
    if special:
        x = np.where(rng.integers(0, 50, n) == 0, rng.choice([np.inf, np.nan, 1.7e308], n), x)
    return np.copysign(x, rng.choice([-1.0, 1.0], n))


def hard_widths(fmt: Format, y: np.ndarray, seed: int) -> np.ndarray:
    """Half-widths for y as in half_widths, finite."""
    rng = np.random.default_rng(seed)
    a = np.where(np.isfinite(y) & (y != 0), np.abs(y), 1.0)
    quantum = np.ldexp(1.0, np.maximum(np.frexp(a)[1] - 1, fmt.emin) - fmt.p + 1)
    w = quantum * rng.choice([0.0, 2.0**-40, 2.0**-29, 0.01, 0.125, 0.25, 0.5, 0.75, 1.0, 2.5, 40.0], y.size)
    return np.where(rng.integers(0, 20, y.size) == 0, rng.choice([0.5, 1.0, 3.0], y.size) * np.minimum(a, 1e300), w)


# ---- the kernels ---------------------------------------------------------------------------------------------------
def full_scale(w: np.ndarray | list[float]) -> Scale:
    """The scale whose half-width, with tau 1 and eta 0, is w."""
    full = torch.tensor(w, dtype=torch.float64)
    return Scale("test", 1, 1.0, (1, 1, full.numel()), full=full)


def last_bit_scale(fmt: Format, n: int) -> tuple[torch.Tensor, Scale]:
    """y whose doubt ends on a tie, if row * col and then + bias are rounded one by one: no element is in doubt.

    (1 + 2^-30)^2 - 1 is 2^-29 so, and 2^-29 + 2^-60 if it is fused: beyond the tie, whose last bit is 2^-62.
    """
    even = naive.ordered(2.0**-10, fmt)
    y = torch.full((3 * n,), midpoint(even, fmt) - 2.0**-29, dtype=torch.float64)
    near_one = 1 + 2.0**-30
    row, col = (torch.full((k,), near_one, dtype=torch.float64) for k in (3, n))
    return y, Scale("test", 1, 1.0, (1, 3, n), row=row, col=col, bias=torch.full((n,), -1.0, dtype=torch.float64))


def scale_key(s: Scale, tau: float, eta: float) -> tuple:
    pointers = (0 if t is None else t.data_ptr() for t in (s.row, s.col, s.bias, s.full))
    return (tau, eta, *pointers, s.relative)


def taken(sink: kernels.Sink) -> Log:
    """What a sink holds, as integers and bytes."""
    sites, gaps, codes, values = sink.take()
    return (
        tuple(int(n) for n in np.frombuffer(sites, "<u8")),
        gaps,
        codes,
        tuple(int(n) for n in np.frombuffer(values, "<u4")),
    )


def settle(
    y: torch.Tensor, s: Scale, fmt: Format, encoding: str, tau: float = 1.0, eta: float = 0.0, seq: int = 7
) -> tuple[Log, torch.Tensor]:
    """The kernel's log and result, written over NaN so that nothing stays unwritten unseen."""
    sink = kernels.Sink(kernels.ENCODINGS[encoding])
    out = torch.full((y.numel(),), math.nan, dtype=generic.container(fmt))
    sink.settle(seq, kernels.geometry(y, out, s.shape), fmt.key, scale_key(s, tau, eta), False)
    return taken(sink), out


@dataclass(frozen=True)
class Replayed:
    corrections: int
    fault: str
    index: int
    y: float
    w: float
    logged: float
    out: torch.Tensor


def replay(y: torch.Tensor, s: Scale, fmt: Format, log: Log, tau: float = 1.0, eta: float = 0.0) -> Replayed:
    """The kernel's reading of one site's log."""
    row, gaps, codes, values = log
    out = torch.full((y.numel(),), math.nan, dtype=generic.container(fmt))
    words = np.array(values, dtype="<u4").tobytes()
    got = _host.replay(
        kernels.geometry(y, out, s.shape), fmt.key, scale_key(s, tau, eta), tuple(row[1:5]), gaps, codes, words
    )
    corrections, fault, index, seen, w, logged = got
    return Replayed(corrections, FAULTS[fault], index, seen, w, logged, out)


def log_of(columns: naive.Columns) -> Log:
    return columns.row, columns.gaps, columns.codes, columns.values

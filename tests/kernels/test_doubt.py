"""Rounding and doubt as kernels against numerics in fractions, and against the same with tensor operations."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from naive import numbers

from vtrain.kernels import canonical
from vtrain.rounding import generic, naive
from vtrain.rounding.formats import BFLOAT16, FLOAT16, FLOAT32, Format, target_in_float32
from vtrain.rounding.scale import Scale

Tensor = torch.Tensor
FORMATS = [FLOAT32, BFLOAT16, FLOAT16, *(target_in_float32(t, 24) for t in ("bfloat16", "float16"))]
FORMATS += [target_in_float32("float32", bits) for bits in (8, 13, 23)]
FORMAT = pytest.mark.parametrize("fmt", FORMATS, ids=lambda f: f.name)
TYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
STRIP = canonical.STRIP


def words(t: Tensor) -> list[int]:
    """Bits, all NaN alike."""
    t = torch.where(t.isnan(), torch.full_like(t, math.nan), t)
    return t.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[t.element_size()]).tolist()


def hard(fmt: Format, n: int, seed: int) -> Tensor:
    """n float64 numbers: near values and midpoints of the format, of all sizes, infinities and NaN too."""
    rng = np.random.default_rng(seed)
    top = naive.infinity_position(fmt)
    places = np.concatenate([rng.integers(0, top, n), rng.integers(0, 5, n // 4), top - rng.integers(1, 5, n // 4)])
    found = [0.0, -0.0, math.inf, -math.inf, math.nan, 5e-324, 1.7e308, 2.0**-1022]
    for k, kind in zip(places.tolist(), rng.integers(0, 6, len(places)).tolist(), strict=True):
        low = naive.from_ordered(k, fmt)
        high = naive.from_ordered(k + 1, fmt)
        middle = 2.0 ** (fmt.emax + 1) * (1 - 2.0 ** -(fmt.p + 1)) if math.isinf(high) else (low + high) / 2
        found.append([low, middle, math.nextafter(middle, 0), math.nextafter(middle, math.inf),
                      math.nextafter(low, math.inf), middle * (1 + rng.uniform(-1e-9, 1e-9))][kind])  # fmt: skip
    x = np.array(found) * rng.choice([-1.0, 1.0], len(found))
    return torch.from_numpy(rng.permutation(x)[:n] if n < len(x) else x)


@FORMAT
@TYPES
@pytest.mark.parametrize("signed", [True, False])
def test_rounding(fmt: Format, dtype: torch.dtype, signed: bool) -> None:
    y = hard(fmt, 3000, 1).to(dtype)
    got = canonical.round_to(y, fmt, signed)
    assert got.dtype is generic.container(fmt)
    want = [naive.round_fraction(v if signed else v + 0.0, fmt) for v in y.tolist()]  # -0 + 0 is +0
    assert words(got) == words(torch.tensor(want, dtype=torch.float64).to(generic.container(fmt)))
    assert words(got) == words(generic.round_to(y, fmt, signed))


def scales(shape: tuple[int, int, int], seed: int) -> dict[str, Scale]:
    """A scale of each kind."""
    b, m, n = shape
    rng = np.random.default_rng(seed)

    def vector(k: int) -> Tensor:
        return torch.from_numpy(rng.uniform(0, 2, k))

    row, col, bias, full = vector(b * m), vector(b * n), vector(n), vector(b * m * n)
    wild = full.clone()
    wild[::7], wild[3::11] = math.inf, 0.0
    return {
        "nothing": Scale("t", 1, 1.0, shape),
        "row": Scale("t", 1, 1.0, shape, row=row),
        "col": Scale("t", 1, 1.0, shape, col=col),
        "row, col": Scale("t", 1, 1.0, shape, row=row, col=col),
        "bias": Scale("t", 1, 1.0, shape, bias=bias),
        "row, bias": Scale("t", 1, 1.0, shape, row=row, bias=bias),
        "col, bias": Scale("t", 1, 1.0, shape, col=col, bias=bias),
        "row, col, bias": Scale("t", 1, 1.0, shape, row=row, col=col, bias=bias),
        "full": Scale("t", 1, 1.0, shape, full=full),
        "wild": Scale("t", 1, 1.0, shape, full=wild),
        "relative": Scale("t", 1, 1.0, shape, relative=True),
    }


def width(scale: Scale, shape: tuple[int, int, int], flat: int, y: float, tau: float, eta: float) -> float:
    """The half-width of one element's doubt, as numerics defines it: 0 where the scale is."""
    s = scale_of(scale, shape, flat, y)
    return tau * s + eta if s else 0.0


def scale_of(scale: Scale, shape: tuple[int, int, int], flat: int, y: float) -> float:
    b, rest = divmod(flat, shape[1] * shape[2])
    i, j = divmod(rest, shape[2])
    if scale.relative:
        return abs(y)
    if scale.full is not None:
        return float(scale.full[flat])
    row = 1.0 if scale.row is None else float(scale.row[b * shape[1] + i])
    col = 1.0 if scale.col is None else float(scale.col[b * shape[2] + j])
    return row * col + (0.0 if scale.bias is None else float(scale.bias[j]))


def check(
    y: Tensor, scale: Scale, shape: tuple[int, int, int], tau: float, eta: float, fmt: Format, signed: bool
) -> int:
    got = canonical.in_doubt(y, scale, tau, eta, fmt, signed)
    found: list[tuple[int, float, float]] = []
    for flat, v in enumerate(y.flatten().tolist()):
        v = v if signed else v + 0.0
        w = width(scale, shape, flat, v, tau, eta)
        if naive.decide(v, w, fmt):
            found.append((flat, v, w))
    assert got[0].dtype is torch.int64 and got[0].tolist() == [flat for flat, _, _ in found]
    assert words(got[1]) == words(torch.tensor([v for _, v, _ in found], dtype=torch.float64))
    assert words(got[2]) == words(torch.tensor([w for _, _, w in found], dtype=torch.float64))
    return len(found)


@FORMAT
@TYPES
def test_doubt(fmt: Format, dtype: torch.dtype) -> None:
    shape = (2, 7, 37)
    for q, (name, scale) in enumerate(scales(shape, 2).items()):
        y = hard(fmt, 2 * 7 * 37, 10 + q).to(dtype)
        numel = shape[0] * shape[1] * shape[2]
        tau = 2.0**-fmt.p if scale.relative else 2.0 ** -(fmt.p + 6)
        for signed in (True, False):
            count = check(y, scale, shape, tau, 2.0 ** (fmt.emin - fmt.p - 2), fmt, signed)
            assert 0 < count < numel, f"{name}: {count}, no test"


@pytest.mark.parametrize("n", [1, 31, 32, 33, STRIP - 1, STRIP, STRIP + 1, 3 * STRIP + 77])
def test_strips(n: int) -> None:
    """The same elements as with tensor operations, in ascending order across strips; none, some and all in doubt."""
    y = numbers(n, seed=3).double()
    for tau in (0.0, 2.0**-26, 2.0**-24, 1.0):
        scale = Scale("t", 1, 1.0, (1, 1, n), relative=True)
        got, want = (f(y, scale, tau, 0.0, FLOAT32) for f in (canonical.in_doubt, generic.in_doubt))
        for a, b in zip(got, want, strict=True):
            assert words(a.double()) == words(b.double())
        assert tau != 1.0 or got[0].numel() == n
        assert tau != 0.0 or got[0].numel() == 0


def test_the_sign_of_a_zero_is_in_doubt_only_where_it_counts() -> None:
    y, scale = torch.tensor([-0.0, 0.0, 1e-300], dtype=torch.float64), Scale("t", 1, 1.0, (1, 1, 3))
    assert canonical.in_doubt(y, scale, 0.0, 0.0, FLOAT32)[0].tolist() == []  # a half-width of 0 is no doubt
    assert canonical.in_doubt(y, scale, 0.0, 0.0, FLOAT32, signed=False)[0].tolist() == []
    assert canonical.in_doubt(y, scale, 1e-299, 0.0, FLOAT32)[0].tolist() == [0, 1, 2]  # -0 or +0
    assert words(canonical.round_to(y, FLOAT32)) == words(torch.tensor([-0.0, 0.0, 0.0]))
    assert words(canonical.round_to(y, FLOAT32, signed=False)) == [0, 0, 0]


def test_layouts_and_nothing() -> None:
    y = numbers(9, 50, seed=4).T
    assert words(canonical.round_to(y, BFLOAT16).contiguous()) == words(generic.round_to(y.contiguous(), BFLOAT16))
    scale = Scale("t", 1, 1.0, (1, 50, 9), relative=True)
    got, want = (f(t, scale, 2.0**-9, 0.0, BFLOAT16) for f, t in (
        (canonical.in_doubt, y), (generic.in_doubt, y.contiguous())))  # fmt: skip
    assert got[0].tolist() == want[0].tolist() and 0 < got[0].numel() < y.numel()
    empty = Scale("t", 1, 1.0, (1, 1, 0), relative=True)
    assert [t.numel() for t in canonical.in_doubt(torch.empty(0), empty, 1.0, 1.0, FLOAT32)] == [0, 0, 0]
    assert canonical.round_to(torch.empty(0, 3), FLOAT16).shape == (0, 3)

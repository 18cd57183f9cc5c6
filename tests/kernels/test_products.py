"""The canonical matrix product against its definition, in every bit."""

from __future__ import annotations

import math
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
import naive
from naive import array, assert_same, half_way, numbers, strange

from vtrain.kernels import canonical
from vtrain.rounding import naive as rounding
from vtrain.rounding.formats import Format

Tensor = torch.Tensor
WIDE = pytest.mark.parametrize("wide", [False, True], ids=["float", "double"])
# (batch, m, k, n): around panels of 4, 6 and 12 rows and 8 to 32 columns, blocks of 256 terms, tiles of 240 x 512
SHAPES = [
    (1, 1, 1, 1), (1, 1, 2, 1), (1, 3, 255, 5), (1, 2, 256, 3), (2, 5, 257, 7), (1, 3, 513, 2), (1, 13, 17, 70),
    (1, 7, 3, 33), (3, 4, 5, 31), (1, 25, 2, 17), (1, 11, 9, 64), (5, 1, 7, 1), (1, 241, 2, 3), (1, 2, 3, 515),
    (2, 12, 1, 32), (1, 6, 0, 4), (2, 1, 0, 3), (0, 2, 3, 4), (1, 0, 3, 4), (1, 2, 3, 0),
]  # fmt: skip


def check(a: Tensor, b: Tensor, bias: Tensor | None, alpha: float, beta: float, wide: bool) -> None:
    got = canonical.product(a, b, bias, alpha, beta, wide)
    shape = (a.shape[0], a.shape[1], b.shape[2])
    full = None if bias is None else array(bias.expand(shape))
    assert got.is_contiguous()
    assert_same(got, naive.product(array(a), array(b), full, alpha, beta, wide), f"{shape}")


@naive.quietly
def test_the_twin_rounds_as_fractions_do() -> None:
    formats = {
        naive.FLOAT: Format("f", "float32", 24, -126, 127),
        naive.DOUBLE: Format("d", "float64", 53, -1022, 1023),
    }
    a, b, c = (strange(4000, seed=s).double().tolist() for s in (1, 2, 3))
    c[:2000] = [float(np.float32(-x * y * (1 + 2.0**-20))) for x, y in zip(a[:2000], b[:2000], strict=True)]
    for to, fmt in formats.items():
        for x, y, z in zip(a, b, c, strict=True):
            if math.isfinite(x) and math.isfinite(y) and math.isfinite(z):
                exact = Fraction(x) * Fraction(y) + Fraction(z)
                want = rounding.round_fraction(exact, fmt)
                assert naive.fused(x, y, z, to) == want, (x, y, z)


@WIDE
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_shapes(shape: tuple[int, int, int, int], wide: bool) -> None:
    batch, m, k, n = shape
    check(numbers(batch, m, k, seed=1), numbers(batch, k, n, seed=2), None, 1.0, 1.0, wide)


@WIDE
def test_the_whole_range_of_numbers(wide: bool) -> None:
    """Overflow on the way, infinities that meet, NaN, subnormal products and sums."""
    check(strange(2, 13, 9, seed=3), strange(2, 9, 37, seed=4), None, 1.0, 1.0, wide)
    tiny = torch.tensor(2.0**-70)
    check(numbers(1, 5, 40, seed=5) * tiny, numbers(1, 40, 7, seed=6) * tiny, None, 1.0, 1.0, wide)  # float: subnormal
    huge = torch.tensor(2.0**62)
    check(numbers(1, 5, 40, seed=7) * huge, numbers(1, 40, 7, seed=8) * huge, None, 1.0, 1.0, wide)


def test_sums_half_way_between_floats() -> None:
    """One rounding of a product and a sum is not two, nor one by way of float64."""
    a, b = half_way(500)
    check(a, b, None, 1.0, 1.0, False)
    check(a, b, None, 1.0, 1.0, True)
    once = canonical.product(a, b).flatten()
    assert torch.equal(once, a[0, :, 0])
    by_float64 = (a[0, :, 0].double() + a[0, :, 1].double() * b[0, 1].double()).float()
    unfused = a[0, :, 0] + a[0, :, 1] * b[0, 1]
    assert not bool((once == by_float64).any()) and not bool((once == unfused).all())


@pytest.mark.parametrize(("wide", "half"), [(False, 2.0**25), (True, 2.0**54)], ids=["float", "double"])
def test_the_order_of_the_terms_is_ascending(wide: bool, half: float) -> None:
    """3 + half rounds to 4 + half; half - half + 3 is 3. Across the edge of a block of 256 terms, too."""
    for zeros in (0, 254):
        terms = torch.tensor([1.0, 1.0, 1.0, half, -half, *[0.0] * zeros])
        for x, want in ((terms, 4.0), (terms.flip(0), 3.0), (terms.roll(zeros), 4.0)):
            ones = torch.ones(1, 1, x.numel())
            assert canonical.product(ones, x.view(1, -1, 1), wide=wide).item() == want


@WIDE
@pytest.mark.parametrize(
    ("alpha", "beta"), [(1.0, 1.0), (0.5, -2.0), (0.0, 1.0), (-1.0, 0.0), (0.1, 0.3), (1.0, 0.7), (-0.0, -0.0)]
)
@pytest.mark.parametrize("bias", [None, (5,), (7, 1), (7, 5), (3, 7, 5), (3, 1, 1), ()], ids=str)
def test_alpha_beta_and_bias(bias: tuple[int, ...] | None, alpha: float, beta: float, wide: bool) -> None:
    b = None if bias is None else numbers(*bias, seed=9)
    check(numbers(3, 7, 11, seed=10), numbers(3, 11, 5, seed=11), b, alpha, beta, wide)


@WIDE
@pytest.mark.parametrize("alpha", [1.0, -1.0, 0.0])
def test_no_terms_leave_zero_and_the_bias(alpha: float, wide: bool) -> None:
    a, b = torch.empty(2, 3, 0), torch.empty(2, 0, 5)
    check(a, b, None, alpha, 1.0, wide)
    check(a, b, numbers(3, 5, seed=12), alpha, -3.0, wide)


@WIDE
def test_special_biases_count_even_when_multiplied_by_zero(wide: bool) -> None:
    bias = torch.tensor([math.inf, math.nan, -0.0, 3.4028235e38, 1e-45])
    for alpha, beta in ((1.0, 0.0), (0.0, 1.0), (1.0, 2.0), (-1.0, 1.0)):
        check(numbers(1, 3, 2, seed=13), numbers(1, 2, 5, seed=14), bias, alpha, beta, wide)


def layouts(batch: int, rows: int, columns: int, seed: int) -> dict[str, Tensor]:
    """The same shape, laid out in memory in many ways."""
    flat = numbers(4 * (batch + 2) * (rows + 2) * (columns + 2), seed=seed)
    return {
        "rows": numbers(batch, rows, columns, seed=seed),
        "columns": numbers(batch, columns, rows, seed=seed).mT,
        "batch last": numbers(rows, columns, batch, seed=seed).permute(2, 0, 1),
        "every other": numbers(batch, 2 * rows, 3 * columns, seed=seed)[:, ::2, 1::3],
        "one row": numbers(batch, 1, columns, seed=seed).expand(batch, rows, columns),
        "one column": numbers(batch, rows, 1, seed=seed).expand(batch, rows, columns),
        "one matrix": numbers(1, rows, columns, seed=seed).expand(batch, rows, columns),
        "one number": numbers(1, 1, 1, seed=seed).expand(batch, rows, columns),
        "overlapping": flat.as_strided((batch, rows, columns), (2, 1, 1)),
        "offset": flat[3:].as_strided((batch, rows, columns), (rows * columns, 1, rows)),
    }


@WIDE
def test_layouts_of_the_factors(wide: bool) -> None:
    left, right = layouts(2, 7, 18, 20), layouts(2, 18, 35, 21)
    for name, a in left.items():
        check(a, right["rows"], None, 1.0, 1.0, wide)
        check(a, right[name], None, 1.0, 1.0, wide)
    for b in right.values():
        check(left["columns"], b, None, 1.0, 1.0, wide)


def test_layouts_of_the_bias() -> None:
    for bias in layouts(2, 3, 5, 22).values():
        check(numbers(2, 3, 4, seed=23), numbers(2, 4, 5, seed=24), bias, -0.5, 0.25, False)

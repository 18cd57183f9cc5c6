"""Sums on matrix units: the model's arithmetic, and that no unit of the table passes the bound that runs rely on."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch

from vtrain.engine.matrix_units import hard_operands
from vtrain.rounding.accumulators import ARCHITECTURES, WORST, Accumulator, modelled_sums, sampled
from vtrain.rounding.bounds import LONGEST, TENSOR_CORE, U, product_kappa

UNITS = sorted(set(ARCHITECTURES.values()), key=lambda unit: unit.kappa)


def by_fractions(left: list[float], right: list[float], unit: Accumulator) -> Fraction:
    """The definition, a term at a time in rational numbers."""

    def leading(x: Fraction) -> int:  # exponent of the leading bit
        e = x.numerator.bit_length() - x.denominator.bit_length()
        return e if abs(x) >= Fraction(2) ** e else e - 1

    def cut(x: Fraction, quantum: Fraction) -> Fraction:
        return int(x / quantum) * quantum

    total = Fraction(0)
    for at in range(0, len(left), unit.block):
        pairs = zip(left[at : at + unit.block], right[at : at + unit.block], strict=True)
        terms = [*(Fraction(a) * Fraction(b) for a, b in pairs), total]
        largest = max(map(abs, terms))
        if largest:
            total = sum(cut(t, Fraction(2) ** (leading(largest) - unit.bits)) for t in terms)
            total = cut(total, Fraction(2) ** max(leading(abs(total)) - 23, -149)) if total else total
    return total


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_model_is_the_definition(unit: Accumulator, dtype: torch.dtype) -> None:
    g = torch.Generator().manual_seed(1)
    scale = torch.randint(-9, 4, (6, 23), generator=g)
    left = torch.ldexp(torch.randn(6, 23, generator=g), scale).to(dtype)
    right = torch.randn(6, 23, generator=g).to(dtype)
    found = modelled_sums(left, right, unit)
    for row in range(6):
        wanted = by_fractions(left[row].double().tolist(), right[row].double().tolist(), unit)
        assert Fraction(float(found[row])) == wanted


def test_the_model_cuts_what_lies_below() -> None:
    """1 and 2^-24 three times: a Volta cuts each, an IEEE sum of the small ones would keep them."""
    left, right = (
        torch.tensor([[1.0, 2.0**-12, 2.0**-12, 2.0**-12]]),
        torch.tensor([[1.0, 2.0**-12, 2.0**-12, 2.0**-12]]),
    )
    assert float(modelled_sums(left, right, Accumulator(4, 23))) == 1.0
    assert float(modelled_sums(left, right, Accumulator(4, 24))) == 1.0 + 2.0**-23


@pytest.mark.parametrize("unit", UNITS)
def test_no_unit_passes_the_bound(unit: Accumulator) -> None:
    worst = 0.0
    for dtype in (torch.bfloat16, torch.float16):
        for k in (1, 5, 16, 64, 1000):
            for a, b in hard_operands(k, dtype):
                left, right = a.repeat_interleave(8, 0), b.mT.repeat(8, 1)
                error = (modelled_sums(left, right, unit) - (left.double() * right.double()).sum(1)).abs()
                s = left.double().norm(dim=1) * right.double().norm(dim=1)
                worst = max(worst, float((error / (product_kappa(k, TENSOR_CORE) * U[TENSOR_CORE] * s)).max()))
    assert worst <= 1
    if unit == WORST:  # the search is worth something: with IEEE's constant it would find a violation
        assert worst > product_kappa(1000, "float32") / product_kappa(1000, TENSOR_CORE)


def test_the_bound_covers_every_unit() -> None:
    """kappa a term, with room for parts of sums that are added in float32 and for blocks that are not full."""
    for unit in UNITS:
        for n in (1, 3, 16, 17, 100, LONGEST[TENSOR_CORE]):
            parts = n // 16 + 1
            blocks = n / unit.block + 1
            assert blocks * unit.kappa * unit.block + parts < product_kappa(n, TENSOR_CORE)
    assert product_kappa(LONGEST[TENSOR_CORE], TENSOR_CORE) * U[TENSOR_CORE] < 2.0**-8


def test_samples_are_spread() -> None:
    assert sampled(5).tolist() == [0, 1, 2, 3, 4]
    assert sampled(0).tolist() == []
    many = sampled(10**6 + 1)
    assert len(many) <= 1 << 14 and int(many[-1]) > 10**6 - 100

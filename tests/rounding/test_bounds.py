"""The error constants against exact rational arithmetic and an arbitrary-precision library (numerics §3)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vtrain import kernels
from vtrain.engine.ops.functions import canonical_erfinv
from vtrain.errors import UnsupportedOperation
from vtrain.rounding.bounds import (
    FUNCTION_KAPPA,
    INFLATE,
    LONGEST,
    UNDERFLOW,
    U,
    eta_certified,
    sum_kappa,
    tau_certified,
)

DTYPES = {"float32": np.float32, "float64": np.float64}


# ---- the formulas --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("compute", ["float32", "float64"])
@given(n=st.integers(1, 2**31), extra=st.integers(0, 4))
@settings(max_examples=60)
def test_sum_kappa_covers_gamma(compute: str, n: int, extra: int) -> None:
    """At least gamma_n / u with one rounding to spare, exactly; and not much more. Never a bound that is not small."""
    u = Fraction(U[compute])
    if n > LONGEST[compute]:
        with pytest.raises(UnsupportedOperation, match=f"{n} terms in {compute}"):
            sum_kappa(n, compute, extra)
        return
    kappa = sum_kappa(n, compute, extra)
    assert Fraction(kappa) * u < Fraction(1, 2**8)
    k = n + extra
    assert Fraction(kappa) > k / (1 - k * u)
    assert Fraction(kappa) <= (k + 1) / (1 - (k + 1) * u) * (1 + Fraction(1, 2**50))


@pytest.mark.parametrize("compute", ["float32", "float64"])
def test_tau_and_eta_cover_both_sides(compute: str) -> None:
    """Trainer and auditor may err in opposite directions: twice kappa, and room for the roundings of the width."""
    for kappa in (1.0, 16.0, 3.3, sum_kappa(1000, compute), 1e6):
        exact = 2 * Fraction(kappa) * Fraction(U[compute])
        tau = Fraction(tau_certified(kappa, compute))
        assert exact * (1 + Fraction(1, 2**21)) < tau < exact * (1 + Fraction(1, 2**19))
        assert Fraction(eta_certified(kappa, compute)) == 2 * Fraction(kappa) * Fraction(UNDERFLOW[compute])


# ---- sums and products, in many orders -----------------------------------------------------------------------------
def chain(terms: list, zero: Any) -> Any:
    total = zero
    for t in terms:
        total = total + t
    return total


def pairwise(terms: list, zero: Any) -> Any:
    while len(terms) > 1:
        odd = terms[len(terms) // 2 * 2 :]
        terms = [a + b for a, b in zip(terms[0::2], terms[1::2], strict=False)] + odd
    return terms[0]


def split(terms: list, zero: Any) -> Any:
    """Eight lanes, then the lanes."""
    return chain([chain(terms[lane::8], zero) for lane in range(8)], zero)


ORDERS = [chain, pairwise, split]


def rounded(x: Fraction, compute: str) -> Any:
    """The float nearest to x; for float32 by way of a float64 that is exact for what occurs here."""
    if compute == "float64":
        return float(x)
    return np.float32(float(x)) if Fraction(float(x)) == x else round_once(x)


def round_once(x: Fraction) -> np.float32:
    near = np.float32(float(x))
    around = [np.nextafter(near, np.float32(s * np.inf)) for s in (-1, 1)] + [near]
    best = min(abs(Fraction(float(a)) - x) for a in around)
    found = [a for a in around if abs(Fraction(float(a)) - x) == best]
    return min(found, key=lambda a: int(a.view(np.uint32)) % 2)


def fused(a: np.ndarray, b: np.ndarray, compute: str) -> Fraction:
    """One chain of fused multiply-adds, each rounded once."""
    total = rounded(Fraction(0), compute)
    for x, y in zip(a.tolist(), b.tolist(), strict=True):
        total = rounded(Fraction(x) * Fraction(y) + Fraction(float(total)), compute)
    return Fraction(float(total))


def vectors(kind: str, n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """float32 operands: ordinary, of wildly different magnitudes, cancelling, or at the bottom of the range."""
    rng = np.random.default_rng(seed)
    a, b = rng.standard_normal(n), rng.standard_normal(n)
    if kind == "magnitudes":
        a, b = a * 2.0 ** rng.integers(-40, 40, n), b * 2.0 ** rng.integers(-20, 20, n)
    elif kind == "cancelling":
        half = n // 2
        a[half : 2 * half], b[half : 2 * half] = a[:half], -b[:half] * (1 + 2.0**-20)
    elif kind == "tiny":
        a, b = a * 2.0**-75, b * 2.0**-72
    return a.astype(np.float32), b.astype(np.float32)


def exact_dot(a: np.ndarray, b: np.ndarray) -> tuple[Fraction, Fraction]:
    """The inner product and the square of the product of the norms."""
    fa, fb = ([Fraction(x) for x in v.tolist()] for v in (a, b))
    dot = sum((x * y for x, y in zip(fa, fb, strict=True)), Fraction(0))
    return dot, sum((x * x for x in fa), Fraction(0)) * sum((y * y for y in fb), Fraction(0))


@pytest.mark.parametrize("compute", ["float32", "float64"])
@pytest.mark.parametrize("kind", ["ordinary", "magnitudes", "cancelling", "tiny"])
@pytest.mark.parametrize("n", [1, 2, 7, 64, 301])
def test_products_keep_the_bound_in_every_order(n: int, kind: str, compute: str) -> None:
    """|y - exact| <= kappa u |a| |b| (+ what underflow adds), decided exactly by squares."""
    a, b = vectors(kind, n, seed=n)
    exact, square = exact_dot(a, b)
    kappa = Fraction(sum_kappa(n, compute))
    slack = kappa * Fraction(UNDERFLOW[compute])
    dtype = DTYPES[compute]
    results = [fused(a, b, compute), fused(a[::-1], b[::-1], compute)]
    for seed in range(3):
        order = np.random.default_rng(seed).permutation(n) if seed else np.arange(n)
        terms = list(a[order].astype(dtype) * b[order].astype(dtype))
        results += [Fraction(float(f(terms, dtype(0)))) for f in ORDERS]
    ta, tb = (torch.from_numpy(v.astype(dtype)) for v in (a, b))
    results += [Fraction(float(ta @ tb)), Fraction(float((ta[None] @ tb[:, None])[0, 0]))]
    for y in results:
        beyond = max(abs(y - exact) - slack, Fraction(0))
        assert beyond**2 <= (kappa * Fraction(U[compute])) ** 2 * square


@pytest.mark.parametrize("kind", ["ordinary", "magnitudes", "cancelling", "tiny"])
@pytest.mark.parametrize("n", [1, 2, 17, 300])
def test_sums_keep_the_bound_in_every_order(n: int, kind: str) -> None:
    """|y - exact| <= kappa u sum|x| in float64, the kernel's and torch's own sums too; inflated, its s is no less."""
    x = vectors(kind, n, seed=n)[0]
    exact = sum((Fraction(v) for v in x.tolist()), Fraction(0))
    size = sum((abs(Fraction(v)) for v in x.tolist()), Fraction(0))
    bound = Fraction(sum_kappa(n, "float64")) * Fraction(U["float64"]) * size
    wide = x.astype(np.float64)
    results = [f(list(wide[np.random.default_rng(s).permutation(n)]), 0.0) for f in ORDERS for s in range(3)]
    y, s = kernels.sums(torch.from_numpy(x)[None])
    results += [float(y[0]), float(torch.from_numpy(wide).sum()), float(np.sum(wide)), math.fsum(wide)]
    assert all(abs(Fraction(float(r)) - exact) <= bound for r in results)
    if float(s[0]) == 0:  # the kernel says that every order is exact
        assert all(Fraction(float(r)) == exact for r in results)
    else:
        assert Fraction(float(s[0])) * Fraction(INFLATE) >= size


@pytest.mark.parametrize("kind", ["ordinary", "magnitudes", "tiny"])
@pytest.mark.parametrize("layout", ["rows", "columns"])
@pytest.mark.parametrize("n", [1, 15, 16, 17, 1000])
def test_norms_are_upper_bounds_once_inflated(n: int, layout: str, kind: str) -> None:
    """The width that a kernel forms, tau * (r * c), is at least 2 kappa u |a| |b|, in exact arithmetic."""
    a, b = vectors(kind, n, seed=n)
    found = []
    for v in (a, b):
        t = torch.from_numpy(np.stack([v, v[::-1], -v]))
        t = t if layout == "rows" else t.t().contiguous().t()
        norms = kernels.norms(t)
        square = sum((Fraction(x) ** 2 for x in v.tolist()), Fraction(0))
        assert all((Fraction(r) * Fraction(INFLATE)) ** 2 >= square for r in norms.tolist())
        assert all(Fraction(r) ** 2 <= square * (1 + Fraction(1, 2**40)) for r in norms.tolist())
        found.append(float(norms[0]))
    kappa = sum_kappa(n, "float32")
    w = tau_certified(kappa, "float32") * (found[0] * found[1])
    assert Fraction(w) ** 2 >= (2 * Fraction(kappa) * Fraction(U["float32"])) ** 2 * exact_dot(a, b)[1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_reductions_read_every_layout(dtype: torch.dtype) -> None:
    """Rows, columns, batches and steps of more than one: against sums of exact integers, so to the last bit."""
    x = torch.from_numpy(np.random.default_rng(0).integers(-8, 9, (3, 37, 41))).to(dtype)
    for t in (x, x.mT, x[1], x[1].mT, x[:, ::2, ::3], x[..., :1], x[:, :0], x[..., :0], x[:1].expand(4, 37, 41)):
        wide = t.double()
        y, s = kernels.sums(t)
        exact = dtype is not torch.float64  # few bits: every order gives the same, and the scale says so
        assert torch.equal(y, wide.sum(-1)) and torch.equal(s, torch.zeros_like(y) if exact else wide.abs().sum(-1))
        assert torch.equal(kernels.squares(t), (wide * wide).sum(-1))
        roots = [math.sqrt(v) for v in kernels.squares(t).reshape(-1).tolist()]  # torch's own sqrt is not IEEE's
        assert kernels.norms(t).reshape(-1).tolist() == roots


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_channel_reductions(dtype: torch.dtype) -> None:
    x = torch.from_numpy(np.random.default_rng(1).integers(-8, 9, (5, 7, 33))).to(dtype)
    wide = x.double()
    y, s = kernels.channel_sums(x)
    assert torch.equal(y, wide.sum((0, 2)))
    assert torch.equal(s, wide.abs().sum((0, 2)) if dtype is torch.float64 else torch.zeros_like(y))
    assert torch.equal(kernels.channel_squares(x), (wide * wide).sum((0, 2)))


def test_a_sum_is_called_exact_only_where_it_is() -> None:
    """Terms 2^k apart: up to the width of float64 every order is exact, from there on not."""
    for gap in range(20, 60):
        x = torch.tensor([[1.0 + 2.0**-23, 2.0**-gap * (1 + 2.0**-23), -1.0]], dtype=torch.float32)
        terms = x[0].double().tolist()
        orders = {(a + b) + c for a, b, c in itertools.permutations(terms)}
        said_exact = float(kernels.sums(x)[1][0]) == 0
        assert said_exact == (gap <= 27)
        assert not said_exact or len(orders) == 1


# ---- functions -----------------------------------------------------------------------------------------------------
mp = mpmath.mp.clone()
mp.prec = 240
EVERYWHERE = [0.0, 1e-45, 1.4e-40, 1e-30, 1e-8, 2.0**-12, 0.1, 0.5, 0.6931471805599453, 1 - 2.0**-24, 1.0, 1 + 2.0**-23]
EVERYWHERE += [1.5, 2.0, math.pi, 10.0, 87.0, 88.72]
LARGE = [100.0, 710.0, 1e4, 3.3e6, 1e9, 1e15, 2.0**100, 3.4e38]
POSITIVE = [2.0**-149, 1e-40, 1.2e-38, *EVERYWHERE[3:], *LARGE]
# float32 values close to multiples of pi/2, where all leading digits cancel
NEAR_PI = [math.pi / 2 * k for k in (1, 2, 3, 5, 11, 710, 573204)] + [16367173.0 * 2.0**72, 1.5e7, 2.0**60 * 3]


def signed(values: list[float]) -> list[float]:
    return values + [-v for v in values]


Case = tuple[Callable[[torch.Tensor], torch.Tensor], Callable[[Any], Any], list[float], tuple[float, float]]
CASES: dict[str, Case] = {
    "exp": (torch.exp, mp.exp, signed(EVERYWHERE), (-104, 89)),
    "exp2": (torch.exp2, lambda x: mp.mpf(2) ** x, signed(EVERYWHERE), (-149, 128)),
    "expm1": (torch.expm1, mp.expm1, signed(EVERYWHERE), (-104, 89)),
    "log": (torch.log, mp.log, POSITIVE, (0, 10)),
    "log2": (torch.log2, lambda x: mp.log(x, 2), POSITIVE, (0, 10)),
    "log10": (torch.log10, mp.log10, POSITIVE, (0, 10)),
    "log1p": (torch.log1p, mp.log1p, [*POSITIVE, *(-v for v in EVERYWHERE if v < 1)], (-1, 10)),
    "sqrt": (torch.sqrt, mp.sqrt, [0.0, *POSITIVE], (0, 100)),
    "rsqrt": (torch.rsqrt, lambda x: 1 / mp.sqrt(x), POSITIVE, (0, 100)),
    "sin": (torch.sin, mp.sin, signed(EVERYWHERE + LARGE + NEAR_PI), (-30, 30)),
    "cos": (torch.cos, mp.cos, signed(EVERYWHERE + LARGE + NEAR_PI), (-30, 30)),
    "tanh": (torch.tanh, mp.tanh, signed(EVERYWHERE + LARGE), (-10, 10)),
    "sigmoid": (torch.sigmoid, lambda x: 1 / (1 + mp.exp(-x)), signed([*EVERYWHERE, 100.0]), (-104, 104)),
    "erf": (torch.erf, mp.erf, signed(EVERYWHERE), (-6, 6)),
    "erfc": (torch.erfc, mp.erfc, signed(EVERYWHERE[:-2]), (-6, 11)),
    "atan": (torch.atan, mp.atan, signed(EVERYWHERE + LARGE), (-10, 10)),
    "sinh": (torch.sinh, mp.sinh, signed(EVERYWHERE), (-89, 89)),
    "cosh": (torch.cosh, mp.cosh, signed(EVERYWHERE), (-89, 89)),
    "erfinv": (canonical_erfinv, mp.erfinv, signed([v for v in EVERYWHERE if v < 1]), (-1, 1)),
}
FLOOR = mp.mpf(2) ** -1000  # below, float64 itself loses digits, and every target format has long been at zero


def arguments(hard: list[float], span: tuple[float, float], n: int) -> torch.Tensor:
    """float32 values: the hard ones, some evenly spread, some of all magnitudes in between; an odd number of them."""
    rng = np.random.default_rng(7)
    low, high = span
    even = rng.uniform(low, high, n)
    small = np.clip(rng.uniform(-1, 1, n // 3) * 2.0 ** rng.integers(-40, 3, n // 3), low, high)
    x = np.concatenate([np.array(hard), even, small]).astype(np.float32).astype(np.float64)
    return torch.from_numpy(x[(x > low) & (x < high) | np.isin(x, np.array(hard, np.float32))])


def worst(y: torch.Tensor, exact: list, scale: list) -> float:
    """Greatest error in units of u times the scale."""
    errors = [abs(mp.mpf(v) - e) / s for v, e, s in zip(y.tolist(), exact, scale, strict=True) if s >= FLOOR]
    assert len(errors) > len(exact) // 2
    return float(max(errors) * 2**53)


@pytest.mark.parametrize("name", CASES)
def test_functions_keep_their_constant(name: str) -> None:
    """In float64 at float32 arguments, by the vector body and, one by one, by the scalar tail."""
    f, reference, hard, span = CASES[name]
    x = arguments(hard, span, 60 if name == "erfinv" else 250)
    exact = [reference(mp.mpf(v)) for v in x.tolist()]
    for y in (f(x), torch.stack([f(v) for v in x]), f(x[::3].clone()[:7])):
        assert all(v == 0 for v, e in zip(y.tolist(), exact, strict=False) if e == 0)
        if y.numel() == x.numel():
            # s is |y| as computed, which is within a few u of the exact one
            assert worst(y, exact, [abs(mp.mpf(v)) for v in y.tolist()]) < FUNCTION_KAPPA / 2


@pytest.mark.parametrize("exponent", [-1.5, -1.0, -0.5, 0.1, 1 / 3, 0.75, 1.5, 2.5, 4.0, 7.0, 0.9999999, 12.3])
def test_pow_keeps_its_constant(exponent: float) -> None:
    x = arguments([v for v in POSITIVE if 1e-15 < v < 1e15], (0, 50), 120)
    exact = [mp.mpf(v) ** mp.mpf(exponent) for v in x.tolist()]
    for y in (torch.pow(x, exponent), torch.pow(x, torch.full_like(x, exponent))):
        assert worst(y, exact, [abs(mp.mpf(v)) for v in y.tolist()]) < FUNCTION_KAPPA / 2


def test_atan2_keeps_its_constant() -> None:
    y, x = (arguments(signed([1.0, 1e-30, 1e30]), (-3, 3), 200)[torch.randperm(206, generator=g)] for g in generators())
    exact = [mp.atan2(mp.mpf(a), mp.mpf(b)) for a, b in zip(y.tolist(), x.tolist(), strict=True)]
    found = torch.atan2(y, x)
    assert worst(found, exact, [abs(mp.mpf(v)) for v in found.tolist()]) < FUNCTION_KAPPA / 2


def generators() -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in (1, 2)]

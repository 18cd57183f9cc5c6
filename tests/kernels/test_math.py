"""The elementary functions against arbitrary precision: errors in last places, special values as C99 Annex F."""

from __future__ import annotations

import math
from collections.abc import Callable

import mpmath as mp
import numpy as np
import pytest
import torch

from vtrain.kernels import canonical

INF, NAN = math.inf, math.nan
OVERFLOW = mp.mpf(2) ** 1024 - mp.mpf(2) ** 970  # what rounds to infinity
PRECISION = 2400  # bits: sin of the largest argument needs 1100, x + x^3 of the least 2148


def ulps(value: float, exact: mp.mpf) -> float:
    """Distance in units in the last place of the exact value."""
    if exact == 0:
        return 0.0 if value == 0 else INF
    if abs(exact) >= OVERFLOW:
        return 0.0 if value == (INF if exact > 0 else -INF) else INF
    exponent = max(-1074, int(mp.floor(mp.log(abs(exact), 2))) - 52)
    return float(abs(mp.mpf(value) - exact) / mp.mpf(2) ** exponent)


def spread(rng: np.random.Generator, n: int, low: int, high: int) -> np.ndarray:
    """Numbers of all binades from 2^low to 2^high, both signs."""
    return np.ldexp(rng.uniform(1, 2, n), rng.integers(low, high, n)) * rng.choice([-1.0, 1.0], n)


def near_turns(rng: np.random.Generator) -> np.ndarray:
    """The doubles next to multiples of pi / 2, and the one that comes nearest to any."""
    with mp.workprec(200):
        near = [float(mp.mpf(int(k)) * mp.pi / 2) for k in [*range(1, 100), *rng.integers(1, 10**15, 100)]]
    return np.array([*near, 6381956970095103.0 * 2.0**797, 5.319372648326541e255])


def arguments(name: str) -> np.ndarray:
    """Random and hard arguments."""
    rng = np.random.default_rng(len(name))
    near_zero = spread(rng, 150, -1074, 0)
    if name in ("sin", "cos", "tan"):
        return np.concatenate([rng.uniform(-10, 10, 300), spread(rng, 300, -30, 1023), near_turns(rng)])
    if name in ("log", "log2", "log10", "sqrt", "rsqrt"):
        near_one = 1 + rng.normal(size=300) * 2.0 ** rng.uniform(-50, -1, 300)
        return np.abs(np.concatenate([spread(rng, 500, -1074, 1023), near_one, 2.0 ** rng.integers(-1074, 1023, 50)]))
    if name in ("asin", "acos", "atanh"):
        near_one = 1 - np.abs(spread(rng, 300, -53, -1))
        return np.concatenate([near_zero, rng.uniform(-1, 1, 300), near_one, -near_one])
    if name == "acosh":
        return 1 + np.abs(np.concatenate([spread(rng, 300, -52, 2), spread(rng, 300, -5, 1023)]))
    if name in ("atan", "asinh"):
        return np.concatenate([near_zero, rng.uniform(-3, 3, 300), spread(rng, 300, -30, 1023)])
    if name == "log1p":
        return np.concatenate(
            [near_zero, rng.uniform(-1, 2, 300), np.abs(spread(rng, 300, -5, 1023)), -1 + near_zero**2]
        )
    width = {"exp": 745, "expm1": 745, "exp2": 1074, "tanh": 22, "sigmoid": 745, "erf": 6.2, "erfc": 27,
             "sinh": 710.4, "cosh": 710.4}[name]  # fmt: skip
    return np.concatenate([near_zero, rng.uniform(-width, width, 500), rng.normal(size=300)])


EXACT: dict[str, Callable[[mp.mpf], mp.mpf]] = {
    "exp": mp.exp, "exp2": lambda x: mp.mpf(2) ** x, "expm1": mp.expm1, "log": mp.log,
    "log2": lambda x: mp.log(x) / mp.log(2),
    "log10": lambda x: mp.log(x) / mp.log(10), "log1p": mp.log1p, "tanh": mp.tanh,
    "sigmoid": lambda x: 1 / (1 + mp.exp(-x)),
    "erf": mp.erf, "erfc": mp.erfc, "sin": mp.sin, "cos": mp.cos, "sqrt": mp.sqrt, "rsqrt": lambda x: 1 / mp.sqrt(x),
    **{name: getattr(mp, name) for name in "tan asin acos atan sinh cosh asinh acosh atanh".split()},
}  # fmt: skip
# What is measured here, rounded up; the promise is 1.
LARGEST = {"sqrt": 0.5}


def values(name: str, x: np.ndarray) -> np.ndarray:
    return canonical.function(name, torch.from_numpy(x), torch.float64).numpy()


def largest_error(name: str) -> float:
    x = arguments(name)
    bits = 200 if name in ("exp", "exp2", "log", "log2", "log10", "sigmoid", "erfc", "sqrt", "rsqrt") else PRECISION
    with mp.workprec(bits):
        return max(ulps(float(y), EXACT[name](mp.mpf(float(a)))) for a, y in zip(x, values(name, x), strict=True))


@pytest.mark.timeout(120)
@pytest.mark.parametrize("name", list(EXACT))
def test_errors_are_below_one_unit_in_the_last_place(name: str) -> None:
    assert largest_error(name) <= LARGEST.get(name, 1.0)


SPECIAL = {
    "exp": [(INF, INF), (-INF, 0.0), (0.0, 1.0), (-0.0, 1.0), (710.0, INF), (-746.0, 0.0)],
    "exp2": [(INF, INF), (-INF, 0.0), (0.0, 1.0), (10.0, 1024.0), (-1074.0, 5e-324), (1024.0, INF)],
    "expm1": [(INF, INF), (-INF, -1.0), (0.0, 0.0), (-0.0, -0.0)],
    "log": [(0.0, -INF), (-0.0, -INF), (INF, INF), (1.0, 0.0), (-1.0, NAN), (-INF, NAN)],
    "log2": [(0.0, -INF), (INF, INF), (1.0, 0.0), (8.0, 3.0), (5e-324, -1074.0), (-1.0, NAN)],
    "log10": [(0.0, -INF), (INF, INF), (1.0, 0.0), (1000.0, 3.0), (-1.0, NAN)],
    "log1p": [(0.0, 0.0), (-0.0, -0.0), (-1.0, -INF), (INF, INF), (-2.0, NAN)],
    "tanh": [(INF, 1.0), (-INF, -1.0), (0.0, 0.0), (-0.0, -0.0), (40.0, 1.0)],
    "sigmoid": [(INF, 1.0), (-INF, 0.0), (0.0, 0.5), (-0.0, 0.5)],
    "erf": [(INF, 1.0), (-INF, -1.0), (0.0, 0.0), (-0.0, -0.0)],
    "erfc": [(INF, 0.0), (-INF, 2.0), (0.0, 1.0)],
    "sin": [(0.0, 0.0), (-0.0, -0.0), (INF, NAN), (-INF, NAN)],
    "cos": [(0.0, 1.0), (-0.0, 1.0), (INF, NAN), (-INF, NAN)],
    "sqrt": [(0.0, 0.0), (-0.0, -0.0), (INF, INF), (-1.0, NAN), (4.0, 2.0)],
    "tan": [(0.0, 0.0), (-0.0, -0.0), (INF, NAN), (-INF, NAN)],
    "asin": [(0.0, 0.0), (-0.0, -0.0), (1.0, math.pi / 2), (-1.0, -math.pi / 2), (1.5, NAN), (-INF, NAN)],
    "acos": [(1.0, 0.0), (-1.0, math.pi), (0.0, math.pi / 2), (-0.0, math.pi / 2), (-1.5, NAN), (INF, NAN)],
    "atan": [(0.0, 0.0), (-0.0, -0.0), (INF, math.pi / 2), (-INF, -math.pi / 2)],
    "sinh": [(0.0, 0.0), (-0.0, -0.0), (INF, INF), (-INF, -INF), (711.0, INF)],
    "cosh": [(0.0, 1.0), (-0.0, 1.0), (INF, INF), (-INF, INF), (711.0, INF)],
    "asinh": [(0.0, 0.0), (-0.0, -0.0), (INF, INF), (-INF, -INF)],
    "acosh": [(1.0, 0.0), (INF, INF), (0.5, NAN), (-INF, NAN), (0.0, NAN)],
    "atanh": [(0.0, 0.0), (-0.0, -0.0), (1.0, INF), (-1.0, -INF), (1.5, NAN), (-INF, NAN)],
    "rsqrt": [(0.0, INF), (-0.0, -INF), (INF, 0.0), (-1.0, NAN), (4.0, 0.5)],
}


def same(a: float, b: float) -> bool:
    return (a != a and b != b) or (a == b and math.copysign(1, a) == math.copysign(1, b))


@pytest.mark.parametrize("name", list(SPECIAL))
def test_special_values(name: str) -> None:
    for x, y in [*SPECIAL[name], (NAN, NAN)]:
        found = float(values(name, np.array([x]))[0])
        assert same(found, y), f"{name}({x}) = {found}, want {y}"


def power(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return canonical.power(torch.from_numpy(x), torch.from_numpy(y), torch.float64).numpy()


def test_pow_is_within_one_unit_in_the_last_place() -> None:
    rng = np.random.default_rng(1)
    base = np.abs(
        np.concatenate([spread(rng, 700, -1074, 1023), 1 + rng.normal(size=500) * 1e-8, rng.uniform(0.5, 2, 800)])
    )
    exponent = np.concatenate([rng.choice([2.5, -0.5, 0.1, 3, 7.3, -2.2, 0.3333], 1200), rng.uniform(-1000, 1000, 800)])
    with mp.workprec(200):
        for x, y, found in zip(base, exponent, power(base, exponent), strict=True):
            exact = mp.power(mp.mpf(float(x)), mp.mpf(float(y)))
            assert ulps(float(found), exact) < 1


def c_pow(x: float, y: float) -> float:
    """pow of C99 Annex F, from Python's, which raises where C gives an infinity or NaN."""
    odd = float(y).is_integer() and abs(y) < 2**53 and int(y) % 2 == 1
    try:
        return math.pow(x, y)
    except OverflowError:
        return -INF if x < 0 and odd else INF
    except ValueError:
        return NAN if x != 0 else math.copysign(INF, x) if odd else INF


def test_special_values_of_pow() -> None:
    chosen = [
        0.0,
        1.0,
        2.0,
        0.5,
        3.0,
        2.5,
        INF,
        1e300,
        2.0**53,
        2.0**53 - 1,
        2.0**52 + 1,
        1e-310,
        1 + 2**-52,
        1 - 2**-53,
    ]
    signed = [*chosen, *(-v for v in chosen), NAN]
    for x in signed:
        for y in signed:
            found, want = float(power(np.array([x]), np.array([y]))[0]), c_pow(x, y)
            close = want not in (0, INF, -INF) and abs(found / want - 1) < 2**-50 if want == want else False
            assert same(found, want) or close, f"pow({x}, {y}) = {found}, want {want}"


def test_an_error_of_one_unit_is_seen() -> None:
    with mp.workprec(200):
        exact = mp.exp(mp.mpf(1))
        assert ulps(math.nextafter(math.nextafter(math.e, 3), 3), exact) > 1


if __name__ == "__main__":
    for function in EXACT:
        print(f"{function:8} {largest_error(function):.3f}")

"""The host's scalar functions against mpmath: every result is the double nearest to the exact one, bit for bit."""

from __future__ import annotations

import itertools
import math
import random
import shutil
import struct
import subprocess
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import mpmath
import pytest

import vtrain
from vtrain.kernels import _host

mp = mpmath.mp.clone()
UNARY: dict[str, Callable[[mpmath.mpf], mpmath.mpf]] = {
    "exp": mp.exp, "exp2": lambda x: mp.power(2, x), "expm1": mp.expm1, "log": mp.log, "log2": lambda x: mp.log(x, 2),
    "log10": mp.log10, "log1p": mp.log1p, "sin": mp.sin, "cos": mp.cos, "tan": mp.tan, "asin": mp.asin,
    "acos": mp.acos, "atan": mp.atan, "sinh": mp.sinh, "cosh": mp.cosh, "tanh": mp.tanh, "asinh": mp.asinh,
    "acosh": mp.acosh, "atanh": mp.atanh, "cbrt": lambda x: -mp.cbrt(-x) if x < 0 else mp.cbrt(x), "erf": mp.erf,
    "erfc": mp.erfc,
}  # fmt: skip
DOMAIN = {
    "log": (0, math.inf), "log2": (0, math.inf), "log10": (0, math.inf), "log1p": (-1, math.inf), "asin": (-1, 1),
    "acos": (-1, 1), "acosh": (1, math.inf), "atanh": (-1, 1),
}  # fmt: skip
CIRCLE = ("sin", "cos", "tan")
NEAR_IDENTITY = ("sinh", "tanh", "expm1", "log1p", "asin", "atan", "asinh", "atanh", "sin", "tan")
ENDS = (
    2.0**-1074, 3 * 2.0**-1074, 2.0**-1022, 2.0**-54, 2.0**-53, 2.0**-28, 2.0**-27, 2.0**-26, 0.5, 1.0, 1.5, 2.0, 3.0,
    math.pi / 2, math.pi, 10.0, 22.0, 27.2, 709.78, 710.475, 745.13, 1000.0, 1023.5, 2.0**52 + 1, 1e22,
    1.7976931348623157e308,
)  # fmt: skip
# Next to multiples of pi / 2, and others at which some function is within 2^-110 of the middle between two doubles.
HARD = (
    "0x1.9e9cbbfd6080bp-31", "-0x1.ed318efb627eap-27", "0x1.3475ac05cedd7p-29", "0x1.62a88613629b5p+678",
    "0x1.fe9ad1e5a2d21p-7", "0x1.1e7cbbfd6080bp-8", "0x1.921fb54442d18p+3", "0x1.6ac5b262ca1ffp+849",
)  # fmt: skip
LARGEST = ENDS[-1]


def bits(x: float) -> str:
    return "nan" if x != x else struct.pack(">d", x).hex()


def nearest(exact: mpmath.mpf, zero: float = 0.0) -> float:
    """The double nearest to an mpmath number, subnormal ones too; ``zero`` gives the sign of a zero."""
    sign, man, exp, _ = exact._mpf_
    if not man:
        return math.copysign(0.0, zero)
    top = man.bit_length() + exp
    if not -1100 < top < 1100:
        size = 0.0 if top < 0 else math.inf
        return -size if sign else size
    value = Fraction(man) * Fraction(2) ** exp
    beyond = value >= Fraction(2) ** 1024 - Fraction(2) ** 970
    size = math.inf if beyond else value.numerator / value.denominator  # Python rounds such a quotient correctly
    return -size if sign else size


def precision(name: str, x: float) -> int:
    if name in CIRCLE:
        return 1400 if abs(x) > 2.0**60 else 400
    return 2400 if name == "erfc" and x > 3 else 700 if abs(x) < 2.0**-200 else 400


def exact(name: str, *x: float) -> float:
    """The oracle."""
    mp.prec = precision(name, x[0]) if name in UNARY else 500
    if name in ("exp", "exp2", "expm1", "sinh", "cosh", "tanh", "erf", "erfc") and abs(x[0]) > 1100:
        x = (math.copysign(1100.0, x[0]),)  # as far beyond the ends of what a double can hold
    given = [mp.mpf(v) for v in x]
    if name == "pow":
        return nearest(mp.power(*given))
    if name == "atan2":
        return nearest(mp.atan2(*given), x[0])
    if name == "hypot":
        mp.prec = 4400
        return nearest(mp.sqrt(given[0] ** 2 + given[1] ** 2))
    if name in NEAR_IDENTITY and abs(x[0]) < 2.0**-200:
        return x[0]  # x + c x^2 or nearer
    return nearest(UNARY[name](given[0]), x[0])


def scattered(rng: random.Random, low: int, high: int) -> float:
    """Random bits with an exponent from low to high and any sign."""
    return math.ldexp(rng.choice((-1, 1)) * (1 + rng.getrandbits(52) * 2.0**-52), rng.randint(low, high))


def special() -> Iterator[float]:
    """Ends of ranges, neighbours of round numbers, subnormals, halves."""
    for size in ENDS:
        for x in (math.nextafter(size, 0.0), size, math.nextafter(size, 2.0**1023)):
            yield from (x, -x)
    yield from map(float.fromhex, HARD)


def arguments(name: str, count: int) -> Iterator[float]:
    """Arguments within a function's domain."""
    rng = random.Random(f"scalar {name}")
    low, high = DOMAIN.get(name, (-math.inf, math.inf))

    def drawn() -> Iterator[float]:
        yield from special()
        for k in range(-40, 41):
            yield from (float(k), k + 0.5, 10.0 ** min(k, 22), 2.0**k)
        for _ in range(count):
            yield scattered(rng, -1022, 1023)
            yield scattered(rng, -60, 10)
            yield 1 + scattered(rng, -52, -1)
            yield scattered(rng, -4, 4)
            if name in CIRCLE:  # next to a multiple of pi / 2
                yield rng.randint(-(2**40), 2**40) * (math.pi / 2)
                yield float.fromhex("0x1.6ac5b262ca1ffp+849") * 2.0 ** rng.randint(-3, 3)
            if name == "erfc":
                yield rng.uniform(0.5, 27.3)

    for x in drawn():
        pole = name in ("log1p", "atanh") and abs(x) == 1
        if low <= x <= high and abs(x) != math.inf and x != 0 and not pole:
            yield x


def check(name: str, *x: float) -> None:
    want = exact(name, *x)
    for slow in (False, True):
        _host.scalar_slow(slow)
        try:
            found = _host.scalar_function(name, *x)
        finally:
            _host.scalar_slow(False)
        where = f"{name}({', '.join(v.hex() for v in x)}), {'slow' if slow else 'quick'}"
        assert bits(found) == bits(want), f"{where}: {found.hex()}, want {want.hex()}"


@pytest.mark.parametrize("name", UNARY)
def test_function(name: str) -> None:
    """Random, extreme and hard arguments, in 128 bits and with more."""
    for x in arguments(name, 12 if name in ("erf", "erfc") else 60):
        check(name, x)


@pytest.mark.slow
@pytest.mark.parametrize("name", UNARY)
def test_function_often(name: str) -> None:
    """The same, a hundred times as many."""
    for x in arguments(name, 300 if name in ("erf", "erfc") else 6000):
        check(name, x)


def powers(count: int) -> Iterator[tuple[float, float]]:
    """Bases and exponents: of bias corrections and schedules, with results in the very middle, at the ends, near 1."""
    rng = random.Random("powers")
    for beta in (0.9, 0.99, 0.95, 0.98, 0.999, 0.9999, 0.5, 0.1, 1 - 2.0**-53, 1 + 2.0**-52):
        for step in (1, 2, 3, 7, 100, 999, 1000, 12345, 10**6, 2**31, -1, -0.5, -0.8, 0.5, 0.75, 1.5):
            yield beta, float(step)
    for base in (3, 5, 7, 11, 101, 2**17 - 1, 2**26 + 1, 2**27 - 1, 94906267):  # base^n of 54 bits and an odd one
        for n in range(2, 35):
            for k in range(4):
                if (base ** (2**k)).bit_length() <= 53:
                    yield float(base ** (2**k)), n / 2**k
                    yield float(base ** (2**k)) * 2.0 ** (-(2**k) * rng.randint(0, 40)), n / 2**k
    for k in (1, 2, 4, 5, 25, 43):  # powers of two, down to the middle between 0 and the smallest double
        for exponent in (-1076, -1075, -1074, -1073, 1023, 1024):
            if exponent % k == 0:
                yield 2.0**k, exponent / k
                yield 2.0**-k, -exponent / k
    for _ in range(count):
        yield abs(scattered(rng, -1022, 1023)), scattered(rng, -8, 3)
        yield abs(scattered(rng, -2, 2)), scattered(rng, -3, 9)
        yield 1 + scattered(rng, -52, -20), scattered(rng, 10, 55)
        yield 1 + rng.randint(-9, 9) * 2.0**-52 + 2.0**-45, rng.choice((0.5, 1.5, 2.0, 2.5, 3.0, 0.25, 0.75))
        x = abs(scattered(rng, -300, 300))
        yield x, -1074.5 / math.log2(x) * rng.uniform(0.95, 1.01)  # subnormal results
        yield x, 1024 / math.log2(x) * rng.uniform(0.999, 1.001)
        yield float(rng.getrandbits(rng.randint(20, 27)) | 1), 2.0
        yield math.ldexp(rng.getrandbits(26) | 1, -537 + rng.randint(-3, 3)), 2.0  # a square among the subnormals


@pytest.mark.parametrize("count", [60, pytest.param(20_000, marks=pytest.mark.slow)])
def test_pow(count: int) -> None:
    """x^y; results that lie in the very middle between two doubles go to the even one."""
    middles = 0
    for x, y in powers(count):
        if x == 1 or y == 0:
            continue
        check("pow", x, y)
        if y == int(y):
            assert bits(_host.scalar_function("pow", -x, y)) == bits(exact("pow", x, y) * (-1 if y % 2 else 1))
        if 0 < y < 40 and y == int(y) and x == int(x) and (whole := int(x) ** int(y)) % 2:
            middles += whole.bit_length() == 54
    assert middles > 10


def pairs(count: int) -> Iterator[tuple[float, float]]:
    """Pairs of every relative size, and legs of right triangles whose third side has 54 bits."""
    rng = random.Random("pairs")
    for _ in range(count):
        scale = rng.randint(-1000, 1000)
        yield scattered(rng, scale, scale), scattered(rng, scale - 3, scale + 3)
        yield scattered(rng, -1022, 1023), scattered(rng, -1022, 1023)
        yield scattered(rng, -1022, 1023), float(rng.choice((-1, 1)) * 2 ** rng.randint(-30, 30))
        m, n = rng.getrandbits(26) | 2**26, 2 * rng.getrandbits(20)
        m |= 1
        yield float(m * m - n * n), float(2 * m * n)
    ends = [x for x in special() if abs(x) in (2.0**-1074, 3 * 2.0**-1074, 2.0**-1022, 1.0, LARGEST)]
    yield from itertools.product(ends, ends)


@pytest.mark.parametrize("count", [60, pytest.param(10_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", ["hypot", "atan2"])
def test_of_two(name: str, count: int) -> None:
    """atan2 and hypot; sides in the very middle, quotients among the subnormals."""
    for x, y in pairs(count):
        if name == "hypot" or abs(x / y if y else 0) > 2.0**-60 or abs(x) > 2.0**1000:
            check(name, x, y)


def test_quotient_in_the_middle() -> None:
    """atan2(y, x) of a tiny y / x in the middle between two subnormal doubles is a little less: it goes down."""
    for units in (1, 3, 5, 7):
        y, x = units * 2.0**-1074, 2.0
        assert _host.scalar_function("atan2", y, x) == (units // 2) * 2.0**-1074
        assert _host.scalar_function("atan2", -y, x) == -(units // 2) * 2.0**-1074
    assert _host.scalar_function("atan2", math.nextafter(2.0**-1073, 1), 4.0) == 2.0**-1074  # 3/4 of a unit


@pytest.mark.parametrize("count", [3000, pytest.param(1_000_000, marks=pytest.mark.slow)])
def test_errors_before_rounding(tmp_path: Path, count: int) -> None:
    """At most half of what the rounding test assumes: a wrong rounding would be too rare for a test of results."""
    if not shutil.which("c++"):
        pytest.skip("needs a C++ compiler")
    include = Path(vtrain.__file__).parent / "kernels" / "host" / "scalar"
    program, source = tmp_path / "errors", Path(__file__).with_name("scalar_errors.cpp")
    subprocess.run(["c++", "-std=c++17", "-O1", f"-I{include}", str(source), "-o", str(program)], check=True)
    done = subprocess.run([str(program), "1", str(count)], check=True, capture_output=True, text=True)
    shares = {name: float(share) for name, share in (line.split(": ") for line in done.stdout.splitlines())}
    assert len(shares) == 24 and all(0 < share < 0.5 for share in shares.values()), shares


INF, NAN = math.inf, math.nan
SPECIAL = {  # C99, Annex F.9
    "exp": [(0.0, 1.0), (-0.0, 1.0), (INF, INF), (-INF, 0.0), (710.0, INF), (-746.0, 0.0)],
    "exp2": [(0.0, 1.0), (-0.0, 1.0), (INF, INF), (-INF, 0.0), (1024.0, INF), (-1075.0, 0.0), (-1074.0, 2.0**-1074)],
    "expm1": [(0.0, 0.0), (-0.0, -0.0), (INF, INF), (-INF, -1.0)],
    "log": [(1.0, 0.0), (0.0, -INF), (-0.0, -INF), (-1.0, NAN), (INF, INF), (-INF, NAN)],
    "log2": [(1.0, 0.0), (0.0, -INF), (-0.0, -INF), (-1.0, NAN), (INF, INF), (8.0, 3.0)],
    "log10": [(1.0, 0.0), (0.0, -INF), (-0.0, -INF), (-1.0, NAN), (INF, INF), (1e22, 22.0)],
    "log1p": [(0.0, 0.0), (-0.0, -0.0), (-1.0, -INF), (-1.5, NAN), (INF, INF)],
    "sin": [(0.0, 0.0), (-0.0, -0.0), (INF, NAN), (-INF, NAN)],
    "cos": [(0.0, 1.0), (-0.0, 1.0), (INF, NAN), (-INF, NAN)],
    "tan": [(0.0, 0.0), (-0.0, -0.0), (INF, NAN), (-INF, NAN)],
    "asin": [(0.0, 0.0), (-0.0, -0.0), (1.5, NAN), (-1.5, NAN), (1.0, math.pi / 2), (-1.0, -math.pi / 2)],
    "acos": [(1.0, 0.0), (1.5, NAN), (-1.5, NAN), (-1.0, math.pi), (0.0, math.pi / 2), (-0.0, math.pi / 2)],
    "atan": [(0.0, 0.0), (-0.0, -0.0), (INF, math.pi / 2), (-INF, -math.pi / 2)],
    "sinh": [(0.0, 0.0), (-0.0, -0.0), (INF, INF), (-INF, -INF), (720.0, INF), (-800.0, -INF)],
    "cosh": [(0.0, 1.0), (-0.0, 1.0), (INF, INF), (-INF, INF), (-800.0, INF)],
    "tanh": [(0.0, 0.0), (-0.0, -0.0), (INF, 1.0), (-INF, -1.0)],
    "asinh": [(0.0, 0.0), (-0.0, -0.0), (INF, INF), (-INF, -INF)],
    "acosh": [(1.0, 0.0), (0.5, NAN), (-INF, NAN), (INF, INF)],
    "atanh": [(0.0, 0.0), (-0.0, -0.0), (1.0, INF), (-1.0, -INF), (1.5, NAN)],
    "cbrt": [(0.0, 0.0), (-0.0, -0.0), (INF, INF), (-INF, -INF), (27.0, 3.0), (-1.0, -1.0)],
    "erf": [(0.0, 0.0), (-0.0, -0.0), (INF, 1.0), (-INF, -1.0)],
    "erfc": [(INF, 0.0), (-INF, 2.0), (0.0, 1.0), (-0.0, 1.0), (28.0, 0.0)],
}  # fmt: skip


@pytest.mark.parametrize("name", UNARY)
def test_special_values(name: str) -> None:
    """Zeros, infinities, poles and what lies outside of the domain, as C99 has it; NaN stays NaN."""
    for x, want in [*SPECIAL[name], (NAN, NAN)]:
        assert bits(_host.scalar_function(name, x)) == bits(want), (name, x)


def test_special_values_of_two() -> None:
    """pow, atan2 and hypot at zeros and infinities: as Python's, whose special cases don't come from the library."""
    ends = [0.0, -0.0, 1.0, -1.0, 2.0, -2.0, 0.5, -0.5, 3.0, -3.0, 2.5, 2.0**60, -(2.0**60), INF, -INF, NAN]
    for x, y in itertools.product(ends, ends):
        assert bits(_host.scalar_function("atan2", x, y)) == bits(math.atan2(x, y)), (x, y)
        assert bits(_host.scalar_function("hypot", x, y)) == bits(math.hypot(x, y)), (x, y)
        try:
            want = math.pow(x, y)
        except OverflowError:
            want = -INF if x < 0 and y % 2 == 1 else INF
        except ValueError:
            want = math.copysign(INF, x) if x == 0 and y % 2 == 1 else INF if x == 0 else NAN
        assert bits(_host.scalar_function("pow", x, y)) == bits(want), (x, y)

"""The interpreter's arithmetic against Python's integers and fractions, on kernels compiled from C++."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

import numpy as np
import ptx_floats
import pytest
from numpy.typing import NDArray
from ptx_helpers import ARCHITECTURES, elementwise, require_nvrtc

require_nvrtc()

RANDOM = np.random.default_rng(1)
COUNT = 384


def integers(dtype: type, count: int = COUNT) -> NDArray:
    """Integers of all magnitudes, extremes first."""
    info = np.iinfo(dtype)
    extremes = np.array([info.min, info.min + 1, info.max, info.max - 1, 0, 1, 2, info.max // 2], dtype)
    drawn = RANDOM.integers(info.min, info.max, count - extremes.size, dtype=dtype, endpoint=True)
    return np.concatenate([extremes, drawn >> RANDOM.integers(0, info.bits, drawn.size).astype(dtype)])


def floats(dtype: type, count: int = COUNT) -> NDArray:
    """Floats of random bits (NaNs, subnormals and all), after numbers of moderate size and special ones."""
    special = np.array([0.0, -0.0, 1.0, -1.0, np.inf, -np.inf, np.nan, np.finfo(dtype).max, 1e-310, -1e-42], dtype)
    moderate = RANDOM.normal(size=count // 2).astype(dtype)
    bits = RANDOM.integers(0, 2 ** (8 * np.dtype(dtype).itemsize), count, dtype=f"u{np.dtype(dtype).itemsize}")
    mixed = RANDOM.permutation(np.concatenate([special, special, special, moderate]))
    return np.concatenate([mixed, bits.view(dtype)])[:count]


def wrapped(values: list[int], dtype: type) -> NDArray:
    bits = np.iinfo(dtype).bits
    return np.array([v & ((1 << bits) - 1) for v in values], f"u{bits // 8}").view(dtype)


def reversed_bits(x: int, n: int) -> int:
    return int(f"{x & ((1 << n) - 1):0{n}b}"[::-1], 2)


def quotient(a: int, b: int) -> int:
    q = abs(a) // abs(b)
    return -q if (a < 0) != (b < 0) else q


INTEGER_CASES: dict[str, tuple[type, Callable[[int, int], int]]] = {
    "a + b": (np.int32, lambda a, b: a + b),
    "a - b": (np.uint64, lambda a, b: a - b),
    "a * b": (np.int64, lambda a, b: a * b),
    "__mulhi(a, b)": (np.int32, lambda a, b: a * b >> 32),
    "__umulhi(a, b)": (np.uint32, lambda a, b: a * b >> 32),
    "__mul64hi(a, b)": (np.int64, lambda a, b: a * b >> 64),
    "__umul64hi(a, b)": (np.uint64, lambda a, b: a * b >> 64),
    "a / (b ? b : 3)": (np.int32, lambda a, b: quotient(a, b or 3)),
    "a % (b ? b : 7)": (np.int64, lambda a, b: a - quotient(a, b or 7) * (b or 7)),
    "a % (b ? b : 5u)": (np.uint32, lambda a, b: a % (b or 5)),
    "a / 7": (np.int32, lambda a, b: quotient(a, 7)),
    "a << (b & 31)": (np.uint32, lambda a, b: a << (b & 31)),
    "a >> (b & 63)": (np.int64, lambda a, b: a >> (b & 63)),
    "a >> (b & 63ull)": (np.uint64, lambda a, b: a >> (b & 63)),
    "__popc(a)": (np.uint32, lambda a, b: a.bit_count()),
    "__popcll(a)": (np.uint64, lambda a, b: a.bit_count()),
    "__clz(a)": (np.uint32, lambda a, b: 32 - a.bit_length()),
    "__clzll(a)": (np.uint64, lambda a, b: 64 - a.bit_length()),
    "__ffs(a)": (np.uint32, lambda a, b: (a & -a).bit_length()),
    "__brev(a)": (np.uint32, lambda a, b: reversed_bits(a, 32)),
    "__brevll(a)": (np.uint64, lambda a, b: reversed_bits(a, 64)),
    "min(a, b)": (np.int64, min),
    "max(a, b)": (np.uint32, max),
    "abs(a)": (np.int32, lambda a, b: abs(a)),
    "~a ^ (a & b) | b": (np.uint64, lambda a, b: (~a ^ (a & b)) | b),
    "__funnelshift_l(a, b, 9)": (np.uint32, lambda a, b: (b << 32 | a) << 9 >> 32),
    "__funnelshift_r(a, b, b)": (np.uint32, lambda a, b: (b << 32 | a) >> (b & 31)),
    "a < b ? 3 : -1": (np.int64, lambda a, b: 3 if a < b else -1),
    "(unsigned)(signed char)a": (np.uint32, lambda a, b: (a & 255) - 256 * (a >> 7 & 1)),
    "(unsigned short)a * 3u": (np.uint32, lambda a, b: (a & 65535) * 3),
    "(long long)(int)a * (int)b + a": (np.int64, lambda a, b: low(a) * low(b) + a),
}


def low(a: int) -> int:
    return (a & 0xFFFFFFFF) - ((a & 0x80000000) << 1)


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("expression", INTEGER_CASES)
def test_integer(expression: str, arch: str) -> None:
    dtype, reference = INTEGER_CASES[expression]
    a, b = integers(dtype), RANDOM.permutation(integers(dtype))
    found = elementwise(expression, [a, b], dtype, arch)
    np.testing.assert_array_equal(
        found, wrapped([reference(*p) for p in zip(a.tolist(), b.tolist(), strict=True)], dtype)
    )


def assembler(text: str, *constraints: str) -> str:
    """An expression of one assembler instruction."""
    result = {"r": "int", "l": "long long"}[constraints[0]]
    inputs = ", ".join(f'"{c}"({n})' for c, n in zip(constraints[1:], "abcd"[: len(constraints) - 1], strict=True))
    return f'([&]{{ {result} y; asm("{text}" : "={constraints[0]}"(y) : {inputs}); return y; }}())'


def field(a: int, start: int, length: int, bits: int, signed: bool) -> int:
    """``bfe`` as the PTX manual writes it, bit by bit."""
    start, length = start & 255, length & 255
    sign = signed and length and a >> min(start + length - 1, bits - 1) & 1
    return sum((bool(a >> start + k & 1 if start + k < bits else sign) if k < length else bool(sign)) << k
               for k in range(bits))  # fmt: skip


@pytest.mark.parametrize("kind,bits", [("s32", 32), ("u32", 32), ("s64", 64), ("u64", 64)])
def test_bit_field_extract(kind: str, bits: int) -> None:
    dtype = np.dtype(f"{'i' if kind[0] == 's' else 'u'}{bits // 8}")
    a = integers(dtype.type)
    start, length = (RANDOM.integers(0, 80, COUNT, dtype=np.uint32) for _ in "ab")
    text = assembler(f"bfe.{kind} %0, %1, %2, %3;", *("rrrr" if bits == 32 else "llrr"))
    expected = [field(*v, bits, kind[0] == "s") for v in zip(a.tolist(), start.tolist(), length.tolist(), strict=True)]
    np.testing.assert_array_equal(elementwise(text, [a, start, length], dtype), wrapped(expected, dtype.type))


def inserted(a: int, b: int, start: int, length: int) -> int:
    for k in range(length):
        if start + k < 32:
            b = b & ~(1 << start + k) | (a >> k & 1) << start + k
    return b


def test_bit_field_insert() -> None:
    a, b = integers(np.uint32), RANDOM.permutation(integers(np.uint32))
    start, length = (RANDOM.integers(0, 40, COUNT, dtype=np.uint32) for _ in "ab")
    found = elementwise(assembler("bfi.b32 %0, %1, %2, %3, %4;", *"rrrrr"), [a, b, start, length], np.uint32)
    expected = [inserted(*v) for v in zip(*(x.tolist() for x in (a, b, start, length)), strict=True)]
    np.testing.assert_array_equal(found, expected)


def permuted(a: int, b: int, selector: int) -> int:
    octets = (b << 32 | a).to_bytes(8, "little")
    chosen = [selector >> 4 * k & 15 for k in range(4)]
    picked = [octets[c & 7] if c < 8 else 255 * (octets[c & 7] >> 7) for c in chosen]
    return int.from_bytes(bytes(picked), "little")


def test_byte_permute_and_table() -> None:
    a, b, c = (RANDOM.permutation(integers(np.uint32)) for _ in "abc")
    triples = list(zip(a.tolist(), b.tolist(), c.tolist(), strict=True))
    found = elementwise("__byte_perm(a, b, c)", [a, b, c], np.uint32)
    np.testing.assert_array_equal(found, [permuted(x, y, z & 0x7777) for x, y, z in triples])  # C++ has no signs
    found = elementwise(assembler("prmt.b32 %0, %1, %2, %3;", *"rrrr"), [a, b, c], np.uint32)
    np.testing.assert_array_equal(found, [permuted(*t) for t in triples])
    found = elementwise(assembler("lop3.b32 %0, %1, %2, %3, 0x6A;", *"rrrr"), [a, b, c], np.uint32)
    np.testing.assert_array_equal(found, [x & y ^ z for x, y, z in triples])


def test_long_shifts_and_highest_bit() -> None:
    a, n = integers(np.int32), RANDOM.integers(0, 70, COUNT, dtype=np.uint32)
    pairs = list(zip(a.tolist(), n.tolist(), strict=True))
    found = elementwise(assembler("shr.s32 %0, %1, %2;", *"rrr"), [a, n], np.int32)
    np.testing.assert_array_equal(found, [x >> min(k, 32) for x, k in pairs])
    found = elementwise(assembler("shl.b32 %0, %1, %2;", *"rrr"), [a, n], np.int32)
    np.testing.assert_array_equal(found, wrapped([x << k if k < 32 else 0 for x, k in pairs], np.int32))
    found = elementwise(assembler("bfind.s32 %0, %1;", *"rr"), [a], np.int32)
    np.testing.assert_array_equal(found, [(x if x >= 0 else ~x).bit_length() - 1 for x in a.tolist()])


def same(found: NDArray, expected: NDArray) -> None:
    """Equal bits, but all NaNs are equal."""
    assert found.dtype == expected.dtype
    bits = f"u{found.itemsize}"
    nan = np.isnan(expected)
    np.testing.assert_array_equal(np.isnan(found), nan)
    np.testing.assert_array_equal(found[~nan].view(bits), expected[~nan].view(bits))


MODES = {"rn": "rn", "rz": "rz", "rm": "rd", "rp": "ru"}
BINARY = {"add": lambda a, b: a + b, "mul": lambda a, b: a * b, "div": lambda a, b: a / b}


def directed(exact: Fraction, dtype: type, mode: str) -> Fraction | float:
    """The neighbour of a number in a format on the side that mode says, found by search from the nearest one."""
    near = dtype(float(exact)) if dtype is np.float64 else dtype(np.float64(float(exact)))
    if not np.isfinite(near) or near == exact:
        return near
    towards = {"rz": -np.sign(near), "rm": -1, "rp": 1}[mode] * np.inf
    wrong_side = near > exact if towards < 0 else near < exact
    return np.nextafter(near, dtype(towards)) if wrong_side else near


@pytest.mark.parametrize("dtype,letter", [(np.float32, "f"), (np.float64, "d")])
@pytest.mark.parametrize("name", BINARY)
@pytest.mark.parametrize("mode", ["rz", "rm", "rp"])
def test_directed_rounding(name: str, mode: str, dtype: type, letter: str) -> None:
    a, b = RANDOM.normal(size=(2, 128)).astype(dtype)
    found = elementwise(f"__{letter}{name}_{MODES[mode]}(a, b)", [a, b], dtype)
    exact = [BINARY[name](Fraction(float(x)), Fraction(float(y))) for x, y in zip(a, b, strict=True)]
    same(found, np.array([directed(x, dtype, mode) for x in exact], dtype))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_arithmetic_is_that_of_ieee(dtype: type, arch: str) -> None:
    a, b = floats(dtype), floats(dtype)
    with np.errstate(all="ignore"):
        expected = {"a + b": a + b, "a - b": a - b, "a * b": a * b, "a / b": a / b, "sqrt(a)": np.sqrt(a), "-a": -a}
    for expression, values in expected.items():
        same(elementwise(expression, [a, b], dtype, arch), values)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_minimum_and_maximum(dtype: type) -> None:
    a = np.array([0.0, -0.0, 1.0, np.nan, np.nan, -np.inf], dtype)
    b = np.array([-0.0, 0.0, np.nan, 2.0, np.nan, 5.0], dtype)
    same(elementwise("fmin(a, b)", [a, b], dtype), np.array([-0.0, -0.0, 1, 2, np.nan, -np.inf], dtype))
    same(elementwise("fmax(a, b)", [a, b], dtype), np.array([0.0, 0.0, 1, 2, np.nan, 5], dtype))


@pytest.mark.parametrize("relation", ["<", "<=", ">", ">=", "==", "!="])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_comparisons(relation: str, dtype: type) -> None:
    a = np.repeat(np.array([0.0, -0.0, 1.0, -np.inf, np.nan], dtype), 5)
    b = np.tile(a[::5], 5)
    expected = [eval(f"x {relation} y") for x, y in zip(a.tolist(), b.tolist(), strict=True)]
    np.testing.assert_array_equal(elementwise(f"a {relation} b", [a, b], np.int32), expected)
    np.testing.assert_array_equal(elementwise(f"!(a {relation} b)", [a, b], np.int32), np.logical_not(expected))


def nearest(exact: Fraction, dtype: type, zero: float) -> float:
    """Nearest number of a format, ties to even, by integer division alone."""
    if not exact:
        return zero
    bits, lowest = (24, -149) if dtype is np.float32 else (53, -1074)
    sign, x = (-1, -exact) if exact < 0 else (1, exact)
    exponent = max(x.numerator.bit_length() - x.denominator.bit_length() - bits, lowest)
    while x / Fraction(2) ** exponent >= 2**bits:
        exponent += 1
    scaled = x / Fraction(2) ** exponent
    if exponent > lowest and scaled < 2 ** (bits - 1):
        exponent, scaled = exponent - 1, scaled * 2
    whole = round(scaled)
    if Fraction(whole) * Fraction(2) ** exponent > Fraction(float(np.finfo(dtype).max)):
        return sign * np.inf
    return sign * float(whole) * 2.0**exponent if exponent >= -1022 else sign * float(np.ldexp(float(whole), exponent))


def expected_fma(a: NDArray, b: NDArray, c: NDArray) -> NDArray:
    dtype = a.dtype.type
    out = []
    with np.errstate(all="ignore"):
        for x, y, z in zip(a, b, c, strict=True):
            if not (np.isfinite(x) and np.isfinite(y)):
                out.append(x * y + z)
            elif not np.isfinite(z):
                out.append(z)
            else:
                exact = Fraction(float(x)) * Fraction(float(y)) + Fraction(float(z))
                both_negative = (np.signbit(x) != np.signbit(y)) and np.signbit(z)
                out.append(dtype(nearest(exact, dtype, -0.0 if both_negative else 0.0)))
    return np.array(out, dtype)


def hard_triples(dtype: type) -> list[NDArray]:
    """Triples where two roundings or a careless method go wrong."""
    info = np.finfo(dtype)
    bits, lowest = info.nmant, info.smallest_subnormal
    e = dtype(2.0**-bits)
    one, tie = dtype(1), dtype(2.0 ** -(bits + 1))
    rows = [
        (one + e, one - e / 2, -one),  # all but the low part of the product cancels
        (one + e, one + e, -(one + 2 * e)),
        (one + e, one + e, dtype(2.0**bits)),
        (tie, one + e, one), (tie, one - e / 2, one), (tie, one, one), (tie, one, one + e),  # around a tie
        (tie, -(one + e), one), (tie * tie, one, one + e), (-tie * tie, one, one),
        (lowest, dtype(0.5), lowest), (lowest, dtype(0.5), dtype(0)), (lowest, lowest, dtype(0)),
        (-lowest, lowest, lowest), (info.smallest_normal, one - e, lowest), (lowest, dtype(-0.5), lowest),
        (info.max, dtype(2), -info.max), (info.max, info.max, -info.max), (info.max, one, info.max * e / 4),
        (info.max, dtype(2), dtype(-np.inf)), (dtype(np.inf), dtype(0), one), (dtype(0), dtype(-1), dtype(0)),
        (dtype(-0.0), one, dtype(-0.0)), (one, one, -one), (dtype(np.nan), one, one),
    ]  # fmt: skip
    return [np.array(column, dtype) for column in zip(*rows, *_beside_ties(dtype), strict=True)]


def _beside_ties(dtype: type) -> list[tuple]:
    """(1 + x)(1 - x + x^2) = 1 + x^3: products that miss half a unit of c by less than a second rounding sees."""
    bits = np.finfo(dtype).nmant
    x, half = dtype(2.0 ** -(bits // 2)), dtype(2.0 ** -(bits + 1))
    products = [(1 + x, half * (1 - x + x * x)), (1 - x, half * (1 + x + x * x))]
    return [
        (dtype(sign) * a, b, dtype(side) * (1 + n * dtype(2.0**-bits)))
        for a, b in products for sign in (-1, 1) for side in (-1, 1) for n in range(4)
    ]  # fmt: skip


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_fma_rounds_once(dtype: type, arch: str) -> None:
    a, b = floats(dtype, 1024), floats(dtype, 1024)
    with np.errstate(all="ignore"):
        near = -(a * b) * (1 + RANDOM.integers(-2, 3, 1024).astype(dtype) * np.finfo(dtype).eps)
    c = np.where(RANDOM.random(1024) < 0.5, near, floats(dtype, 1024)).astype(dtype)
    a, b, c = (np.concatenate(pair) for pair in zip(hard_triples(dtype), (a, b, c), strict=True))
    same(elementwise("fma(a, b, c)", [a, b, c], dtype, arch), expected_fma(a, b, c))


def test_fma_and_product_differ() -> None:
    """The hard cases are hard: two roundings give something else."""
    a, b, c = hard_triples(np.float64)
    with np.errstate(all="ignore"):
        assert np.sum(a * b + c != expected_fma(a, b, c)) > 5


CONVERSIONS = {
    "__float2int_rz(a)": (np.float32, np.int32, np.trunc),
    "__float2uint_rn(a)": (np.float32, np.uint32, np.rint),
    "__float2ll_rd(a)": (np.float32, np.int64, np.floor),
    "__double2int_rn(a)": (np.float64, np.int32, np.rint),
    "__double2uint_ru(a)": (np.float64, np.uint32, np.ceil),
    "__double2ll_rn(a)": (np.float64, np.int64, np.rint),
    "__double2ull_rz(a)": (np.float64, np.uint64, np.trunc),
}


@pytest.mark.parametrize("expression", CONVERSIONS)
def test_float_to_integer_clamps(expression: str) -> None:
    source, target, rounding = CONVERSIONS[expression]
    info = np.iinfo(target)
    a = np.concatenate([floats(source), np.array([info.max, info.min, -0.5, 0.5, 1.5, 2.5], source)])
    nan = 1 << (info.bits - 1) if source is np.float64 or info.bits == 64 else 0
    expected = []
    for x in a.tolist():
        whole = 0 if np.isnan(x) or np.isinf(x) else int(rounding(x))
        clamped = min(max(whole, info.min), info.max) if not np.isinf(x) else (info.max if x > 0 else info.min)
        expected.append(nan if np.isnan(x) else clamped)
    np.testing.assert_array_equal(elementwise(expression, [a], target), wrapped(expected, target))


def test_other_conversions() -> None:
    wide, narrow, whole = floats(np.float64), floats(np.float32), integers(np.int64)
    with np.errstate(all="ignore"):
        same(elementwise("(float)a", [wide], np.float32), wide.astype(np.float32))
        same(elementwise("(double)a", [narrow], np.float64), narrow.astype(np.float64))
        same(elementwise("rint(a)", [wide], np.float64), np.rint(wide))
        same(elementwise("floor(a)", [wide], np.float64), np.floor(wide))
        same(elementwise("truncf(a)", [narrow], np.float32), np.trunc(narrow))
    exact = [nearest(Fraction(x), np.float32, 0.0) for x in whole.tolist()]
    same(elementwise("(float)a", [whole], np.float32), np.array(exact, np.float32))
    unsigned = integers(np.uint64)
    exact = [nearest(Fraction(x), np.float64, 0.0) for x in unsigned.tolist()]
    same(elementwise("(double)a", [unsigned], np.float64), np.array(exact))
    a = RANDOM.normal(size=128)
    expected = np.array([directed(Fraction(float(x)), np.float32, "rp") for x in a], np.float32)
    same(elementwise("__double2float_ru(a)", [a], np.float32), expected)


def test_rounding_to_bfloat16() -> None:
    a = floats(np.float32)
    expression = '([&]{ unsigned short y; asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y) : "f"(a)); return y; }())'
    found = elementwise(expression, [a], np.uint16, "sm_90")
    back = (found.astype(np.uint32) << 16).view(np.float32)
    step = np.float64(2.0) ** (np.frexp(a.astype(np.float64))[1] - 8)
    finite = np.isfinite(a) & np.isfinite(back) & (np.abs(a) > 1e-37)
    assert (np.abs(back[finite].astype(np.float64) - a[finite]) <= step[finite] / 2).all()
    np.testing.assert_array_equal(np.isnan(back), np.isnan(a))
    halfway = np.array([0x3F808000, 0x3F818000, 0x3F808001], np.uint32).view(np.float32)
    np.testing.assert_array_equal(ptx_floats.to_bfloat16(halfway), [0x3F80, 0x3F82, 0x3F81])


def test_constants_and_classes_of_numbers() -> None:
    a = floats(np.float64)
    np.testing.assert_array_equal(elementwise("isnan(a) * 4 + isinf(a) * 2 + isfinite(a)", [a], np.int32),
                                  np.isnan(a) * 4 + np.isinf(a) * 2 + np.isfinite(a))  # fmt: skip
    same(elementwise("fabs(a) + 0.1", [a], np.float64), np.abs(a) + 0.1)
    same(elementwise("copysign(3.0, a)", [a], np.float64), np.copysign(3.0, a))

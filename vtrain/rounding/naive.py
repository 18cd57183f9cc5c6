"""The oracle: rounding and decision codes in Python integers and fractions; slow, obviously right (numerics §1, §3-5).

Nothing here looks at the bits of a double, and nothing is translated from the kernels: it states what they must give.
The only float arithmetic is that of the definition itself: the doubt's endpoints ``y - w`` and ``y + w``, and those
three times as wide, are IEEE double operations (numerics §3).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

from vtrain.rounding.formats import Format

INFINITY = math.inf


def _power(e: int) -> Fraction:
    return Fraction(2) ** e


def _exponent(a: Fraction) -> int:
    """The e with 2^e <= a < 2^(e + 1), of a > 0."""
    e = a.numerator.bit_length() - a.denominator.bit_length()
    return e if a >= _power(e) else e - 1


def _quantum(a: Fraction, fmt: Format) -> Fraction:
    """Distance between the format's values around a > 0; the same throughout the subnormal range."""
    return _power(max(_exponent(a), fmt.emin) - fmt.p + 1)


def round_fraction(x: Fraction | float, fmt: Format) -> float:
    """The value of ``fmt`` nearest to x, ties to even (numerics §1).

    Args:
        x: exact; a double stands for itself.

    Returns:
        The value as a double. Magnitudes from 2^(emax + 1) less half a quantum on become infinity; a zero has x's sign
        (a Fraction's zero is positive); NaN stays NaN.
    """
    if isinstance(x, float) and (math.isnan(x) or math.isinf(x) or x == 0):
        return x
    exact = Fraction(x)
    if exact == 0:
        return 0.0
    a = abs(exact)
    quantum = _quantum(a, fmt)
    nearest = round(a / quantum) * quantum  # Python rounds fractions half to even
    magnitude = INFINITY if nearest >= _power(fmt.emax + 1) else float(nearest)
    return -magnitude if exact < 0 else magnitude


def infinity_position(fmt: Format) -> int:
    """Number of finite values of ``fmt`` that are not negative: the place of infinity in ``ordered``."""
    return (fmt.emax - fmt.emin + 2) << (fmt.p - 1)


def ordered(value: float, fmt: Format) -> int:
    """Place of a value in the ascending list ..., -least, -0, +0, +least, ..., where +0 has place 0 and -0 has -1.

    Raises:
        ValueError: NaN, or not a value of the format.
    """
    if math.isnan(value) or (math.isfinite(value) and round_fraction(value, fmt) != value):
        raise ValueError(f"{value!r} is not an ordered value of {fmt.name}")
    a = abs(value)
    if a == 0:
        place = 0
    elif a == INFINITY:
        place = infinity_position(fmt)
    else:
        # 2^(p-1) values share each exponent, the least one counting twice: its subnormals too.
        exact = Fraction(a)
        binade = max(_exponent(exact), fmt.emin) - fmt.emin
        place = (binade << (fmt.p - 1)) + int(exact / _quantum(exact, fmt))
    return -1 - place if math.copysign(1.0, value) < 0 else place


def from_ordered(k: int, fmt: Format) -> float:
    """The value at place k, the inverse of ``ordered``.

    Raises:
        ValueError: beyond either infinity.
    """
    place = -1 - k if k < 0 else k
    top = infinity_position(fmt)
    if place > top:
        raise ValueError(f"place {k} lies beyond infinity at {top} in {fmt.name}")
    if place == top:
        a = INFINITY
    else:
        binade, offset = divmod(place, 1 << (fmt.p - 1))
        if binade:
            offset, binade = offset + (1 << (fmt.p - 1)), binade - 1
        a = float(offset * _power(fmt.emin + binade - fmt.p + 1))
    return -a if k < 0 else a


def encode(k: int, fmt: Format) -> int:
    """The IEEE-like word of the value at place k: its sign bit, then its magnitude's place."""
    return (1 << (fmt.bits - 1)) + (-1 - k) if k < 0 else k


def decode(word: int, fmt: Format) -> int | None:
    """The place of the value that a word stands for; None for a NaN or bits beyond the format's width."""
    sign, place = divmod(word, 1 << (fmt.bits - 1))
    if sign > 1 or place > infinity_position(fmt):
        return None
    return -1 - place if sign else place


@dataclass(frozen=True, slots=True)
class Decision:
    """What an element in doubt rounds to, and what else it might have.

    Attributes:
        value: place of round(y).
        low: place of round(y - w).
        high: place of round(y + w).
        ternary: whether "down" or "up" names the value to every auditor within w (kernels/host/codes.hpp).
    """

    value: int
    low: int
    high: int
    ternary: bool

    @property
    def narrow(self) -> bool:
        """Whether two bits name the value: no candidate is further than one place from it."""
        return self.value - self.low <= 1 and self.high - self.value <= 1


def interval(y: float, w: float, fmt: Format) -> tuple[int, int]:
    """Places of round(y - w) and round(y + w); an endpoint inf - inf bounds nothing on its side."""
    low, high = y - w, y + w
    low_place = ordered(-INFINITY if math.isnan(low) else round_fraction(low, fmt), fmt)
    high_place = ordered(INFINITY if math.isnan(high) else round_fraction(high, fmt), fmt)
    return low_place, high_place


def decide(y: float, w: float, fmt: Format) -> Decision | None:
    """The decision to log for one element, or None where nothing is in doubt (numerics §3, §4).

    Args:
        y: computed value, not rounded.
        w: half-width of the doubt, >= 0, not NaN.
    """
    if math.isnan(y) or w == 0:
        return None
    low, high = interval(y, w, fmt)
    if low == high:
        return None
    clear = y - 3.0 * w > from_ordered(low, fmt) and y + 3.0 * w < from_ordered(high, fmt)
    return Decision(ordered(round_fraction(y, fmt), fmt), low, high, high == low + 1 and clear)


@dataclass(frozen=True, slots=True)
class Columns:
    """One site's log.

    Attributes:
        row: seq, numel, 1 if ternary else 0, short codes, whole values, gap bytes; empty where nothing is in doubt.
        gaps: LEB128 distances between indices, of the sparse codes, then of the whole values.
        codes: two bits a code, or five ternary digits a byte.
        values: IEEE words of ``fmt.bits`` bits.
    """

    row: tuple[int, ...] = ()
    gaps: bytes = b""
    codes: bytes = b""
    values: tuple[int, ...] = ()


def leb128(n: int) -> bytes:
    """n >= 0 in groups of seven bits, least first, the high bit set on all but the last (DWARF 5, §7.6)."""
    groups = [n >> shift & 0x7F for shift in range(0, max(1, n.bit_length()), 7)]
    return bytes([g | 0x80 for g in groups[:-1]] + groups[-1:])


def _distances(indices: Sequence[int]) -> bytes:
    return b"".join(leb128(i - before) for before, i in zip([-1, *indices], indices, strict=False))


def _pack(digits: Sequence[int], base: int, to_a_byte: int, fill: int) -> bytes:
    """Digits as little-endian numbers of one byte each, the last one filled up."""
    padded = [*digits, *[fill] * (-len(digits) % to_a_byte)]
    groups = (padded[at : at + to_a_byte] for at in range(0, len(padded), to_a_byte))
    return bytes(sum(d * base**q for q, d in enumerate(group)) for group in groups)


def encode_site(
    ys: Sequence[float], ws: Sequence[float], fmt: Format, encoding: str, seq: int = 0
) -> tuple[Columns, list[float]]:
    """What a trainer logs for one settled result, and the result (numerics §4; layout: kernels/host/codes.hpp).

    Args:
        ys: values computed in C.
        ws: their half-widths of doubt.
        fmt: target format.
        encoding: ``sparse`` or ``ternary``.
        seq: the site's number.

    Returns:
        The site's columns, empty where no element is in doubt, and the rounded values.

    Raises:
        Fault: ENDLESS, a finite value whose half-width is infinite.
    """
    for i, (y, w) in enumerate(zip(ys, ws, strict=True)):
        if math.isfinite(y) and math.isinf(w):
            raise Fault("ENDLESS", i)
    found = [(i, d) for i, (y, w) in enumerate(zip(ys, ws, strict=True)) if (d := decide(y, w, fmt))]
    values = [round_fraction(y, fmt) for y in ys]
    if not found:
        return Columns(), values
    ternary = encoding == "ternary"
    short = [(i, d) for i, d in found if (d.ternary if ternary else d.narrow)]
    whole = [(i, d) for i, d in found if not (d.ternary if ternary else d.narrow)]
    gaps = _distances([i for i, _ in whole])
    if ternary:
        digit = {i: 2 if d.value == d.high else 0 for i, d in short}
        codes = _pack([digit.get(i, 1) for i in range(len(ys))], 3, 5, fill=1)
    else:
        gaps = _distances([i for i, _ in short]) + gaps
        codes = _pack([d.value % 4 for _, d in short], 4, 4, fill=0)
    row = (seq, len(ys), int(ternary), len(short), len(whole), len(gaps))
    return Columns(row, gaps, codes, tuple(encode(d.value, fmt) for _, d in whole)), values


class Fault(Exception):
    """The log is not one that an honest trainer wrote, or can't be written.

    Args:
        kind: a name of ``enum Fault`` in kernels/host/codes.hpp; or ENDLESS, of a result that has no bound.
        index: flat index of the element, where one is at fault.
    """

    def __init__(self, kind: str, index: int | None = None) -> None:
        super().__init__(f"{kind} at {index}")
        self.kind, self.index = kind, index


def _read_gaps(data: bytes) -> Iterator[int]:
    """Distances >= 1, each in its one shortest spelling of at most nine bytes; BAD_GAP where there is none."""
    at = 0
    while True:
        end = at
        while end < len(data) and data[end] & 0x80:
            end += 1
        if end >= len(data) or end - at >= 9:
            raise Fault("BAD_GAP")
        gap = sum((byte & 0x7F) << 7 * q for q, byte in enumerate(data[at : end + 1]))
        if gap == 0 or leb128(gap) != data[at : end + 1]:
            raise Fault("BAD_GAP")
        yield gap
        at = end + 1


def _read_indices(gaps: Iterator[int], count: int, numel: int) -> Iterator[int]:
    index = -1
    for _ in range(count):
        index += next(gaps)
        if index >= numel:
            raise Fault("BAD_INDEX", index)
        yield index


def _accept(index: int, logged: int, y: float, w: float, fmt: Format) -> float:
    """numerics §5: only the rounding of a number within w of y stands; NaN and infinity have no neighbourhood.

    An infinite w is no bound, and admits nothing; a w of 0 admits y alone.
    """
    if math.isnan(y) or math.isnan(w) or (math.isinf(w) and not math.isinf(y)):
        raise Fault("OUTSIDE", index)
    low, high = interval(y, w, fmt)
    if math.isinf(y) or w == 0:
        low = high = ordered(round_fraction(y, fmt), fmt)
    elif y == w:
        low = -1  # the end is zero, and so both zeros
    if not low <= logged <= high:
        raise Fault("OUTSIDE", index)
    return from_ordered(logged, fmt)


def _from_code(index: int, code: int, y: float, fmt: Format) -> int:
    """The place next to round(y), or its own, that is ``code`` modulo 4."""
    if math.isnan(y):
        raise Fault("OUTSIDE", index)
    mine = ordered(round_fraction(y, fmt), fmt)
    near = [k for k in (mine - 1, mine, mine + 1) if k % 4 == code]
    if not near:
        raise Fault("BAD_VALUE", index)
    return near[0]


def _from_digit(index: int, up: bool, y: float, fmt: Format) -> int:
    """The end of the pair of neighbouring places around y that "up" or "down" names."""
    if math.isnan(y):
        raise Fault("OUTSIDE", index)
    mine = ordered(round_fraction(y, fmt), fmt)
    low = mine - 1 if y < from_ordered(mine, fmt) else mine
    return low + up


def _read_digits(codes: bytes, numel: int) -> Iterator[tuple[int, bool]]:
    for at, byte in enumerate(codes):
        if byte >= 3**5:
            raise Fault("BAD_DIGIT", 5 * at)
        for q in range(5):
            digit = byte // 3**q % 3
            if digit != 1 and 5 * at + q >= numel:
                raise Fault("BAD_DIGIT", 5 * at + q)
            if digit != 1:
                yield 5 * at + q, digit == 2


def decode_site(columns: Columns, ys: Sequence[float], ws: Sequence[float], fmt: Format) -> list[float]:
    """What an auditor makes of a site's log, from its own values and widths (numerics §5).

    Returns:
        The settled values.

    Raises:
        Fault: the first thing wrong, in the order: sizes, short codes, whole values, what is left over.
    """
    _, numel, ternary, short, whole, gap_bytes = columns.row
    want = (numel + 4) // 5 if ternary else (short + 3) // 4
    sizes = numel == len(ys) and short <= numel and whole <= numel and len(columns.codes) == want
    if not sizes or ternary > 1 or len(columns.values) != whole or len(columns.gaps) != gap_bytes:
        raise Fault("BAD_COUNT")
    out = [round_fraction(y, fmt) for y in ys]
    seen: set[int] = set()
    gaps = _read_gaps(columns.gaps)
    if ternary:
        for i, up in _read_digits(columns.codes, numel):
            out[i] = _accept(i, _from_digit(i, up, ys[i], fmt), ys[i], ws[i], fmt)
            seen.add(i)
        if len(seen) != short:
            raise Fault("BAD_COUNT")
    else:
        bits = int.from_bytes(columns.codes, "little")
        for q, i in enumerate(_read_indices(gaps, short, numel)):
            out[i] = _accept(i, _from_code(i, bits >> 2 * q & 3, ys[i], fmt), ys[i], ws[i], fmt)
            seen.add(i)
        if bits >> 2 * short:
            raise Fault("BAD_COUNT")
    for q, i in enumerate(_read_indices(gaps, whole, numel)):
        if i in seen:
            raise Fault("BAD_INDEX", i)
        logged = decode(columns.values[q], fmt)
        if logged is None:
            raise Fault("BAD_VALUE", i)
        out[i] = _accept(i, logged, ys[i], ws[i], fmt)
    if _left_over(columns.gaps, (0 if ternary else short) + whole):
        raise Fault("BAD_COUNT")
    return out


def _left_over(gaps: bytes, numbers: int) -> bool:
    """Whether bytes follow the first so many LEB128 numbers: each ends in a byte below 0x80."""
    ends = [at for at, byte in enumerate(gaps) if byte < 0x80]
    return len(gaps) > (ends[numbers - 1] + 1 if numbers else 0)

"""Instructions that compute one value from others: what each computes, and the types that it reads and writes."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

import numpy as np
import ptx_floats as floats
import ptx_integers as integers
from ptx_lanes import Array, Unsupported
from ptx_model import is_type, size_of

_KINDS = {"b": "u", "u": "u", "s": "i", "f": "f", "bf": "u"}  # a bfloat16 is seen as its bits
U16, U32, BOOL = np.dtype(np.uint16), np.dtype(np.uint32), np.dtype(np.bool_)


def dtype_of(type_name: str) -> np.dtype:
    """The NumPy type that an instruction's type is seen as.

    Raises:
        Unsupported: packed types, and integers of 128 bits.
    """
    if type_name == "pred":
        return BOOL
    size = size_of(type_name)
    kind = _KINDS[type_name.rstrip("0123456789x")] if "x" not in type_name else ""
    if not kind or size > 8:
        raise Unsupported(f"type .{type_name}")
    return np.dtype(f"{kind}{size}")


class Suffixes:
    """The parts of an opcode after its name. All must be asked for: one that nobody knows is an error."""

    def __init__(self, parts: tuple[str, ...]) -> None:
        self._opcode = ".".join(parts)
        self._left = list(parts[1:])

    def choice(self, known: Collection[str], default: str = "") -> str:
        """The suffix that is one of those known; without a default it must be there."""
        found = [part for part in self._left if part in known]
        if len(found) > 1 or not (found or default):
            raise Unsupported(self._opcode)
        if found:
            self._left.remove(found[0])
        return found[0] if found else default

    def flag(self, name: str) -> bool:
        return self.choice((name,), "no") == name

    def ignore(self, harmless: Collection[str]) -> None:
        self._left = [part for part in self._left if part not in harmless]

    def types(self, count: int = 1) -> list[str]:
        """The types at the end; nothing else may be left."""
        if len(self._left) != count or not all(map(is_type, self._left)):
            raise Unsupported(self._opcode)
        return self._left

    def type(self) -> np.dtype:
        """The one type at the end; not bfloat16, of which only conversions are known."""
        name = self.types()[0]
        if name == "bf16":
            raise self.unsupported()
        return dtype_of(name)

    def unsupported(self) -> Unsupported:
        return Unsupported(self._opcode)


@dataclass(frozen=True)
class Operation:
    """A function of arrays of these dtypes that gives an array of that dtype."""

    compute: Callable[..., Array]
    inputs: tuple[np.dtype, ...]
    output: np.dtype


def _same(compute: Callable[..., Array], dtype: np.dtype, count: int) -> Operation:
    return Operation(compute, (dtype,) * count, dtype)


def _mode(s: Suffixes) -> str:
    return s.choice(floats.MODES, "rn")


def _rounding(plain: np.ufunc, exact: Callable[..., Array]) -> Callable[[Suffixes], Operation]:
    """add, sub."""

    def resolve(s: Suffixes) -> Operation:
        mode, dtype = _mode(s), s.type()
        if dtype.kind != "f":
            return _same(plain, dtype, 2)
        return _same(lambda a, b: exact(a, b, mode), dtype, 2)

    return resolve


def _product(s: Suffixes, name: str) -> tuple[Callable[..., Array], np.dtype, np.dtype]:
    """Function, input and output of an integer product."""
    part, dtype = s.choice(("lo", "hi", "wide")), s.type()
    if dtype.kind == "f":
        raise s.unsupported()
    if part == "wide":
        return integers.wide_multiply, dtype, np.dtype(f"{dtype.kind}{2 * dtype.itemsize}")
    return (np.multiply if part == "lo" else integers.high_multiply), dtype, dtype


def _is_float(s: Suffixes) -> bool:
    return any(part.startswith("f") and is_type(part) for part in s._left)


def _mul(s: Suffixes) -> Operation:
    if _is_float(s):
        return _rounding(np.multiply, floats.multiply)(s)
    compute, dtype, output = _product(s, "mul")
    return Operation(compute, (dtype, dtype), output)


def _fma(s: Suffixes) -> Operation:
    mode, dtype = s.choice(floats.MODES), s.type()
    if dtype not in (floats.F32, floats.F64):
        raise s.unsupported()
    return _same(lambda a, b, c: floats.fma(a, b, c, mode), dtype, 3)


def _mad(s: Suffixes) -> Operation:
    if _is_float(s):
        return _fma(s)
    compute, dtype, output = _product(s, "mad")
    return Operation(lambda a, b, c: compute(a, b) + c, (dtype, dtype, output), output)


def _div(s: Suffixes) -> Operation:
    if not _is_float(s):
        return _same(integers.divide, s.type(), 2)
    mode, dtype = s.choice(floats.MODES), s.type()
    return _same(lambda a, b: floats.divide(a, b, mode), dtype, 2)


def _rcp(s: Suffixes) -> Operation:
    mode, dtype = s.choice(floats.MODES), s.type()
    return _same(lambda a: floats.divide(np.ones_like(a), a, mode), dtype, 1)


def _sqrt(s: Suffixes) -> Operation:
    s.choice(("rn",))
    return _same(lambda a: floats.canonical(np.sqrt(a)), s.type(), 1)


def _sign(integer: np.ufunc, flips: bool) -> Callable[[Suffixes], Operation]:
    """abs and neg; of a float they change the sign bit and nothing else."""

    def resolve(s: Suffixes) -> Operation:
        dtype = s.type()
        if dtype.kind != "f":
            return _same(integer, dtype, 1)
        bits = np.dtype(f"u{dtype.itemsize}")
        top = bits.type(1 << (8 * bits.itemsize - 1))
        return _same((lambda a: a ^ top) if flips else (lambda a: a & ~top), bits, 1)

    return resolve


def _extremum(integer: np.ufunc, exact: Callable[..., Array]) -> Callable[[Suffixes], Operation]:
    def resolve(s: Suffixes) -> Operation:
        nan, dtype = s.flag("NaN"), s.type()
        if dtype.kind != "f":
            return _same(integer, dtype, 2)
        return _same(lambda a, b: exact(a, b, nan), dtype, 2)

    return resolve


def _plain(compute: Callable[..., Array], count: int) -> Callable[[Suffixes], Operation]:
    """One type for all operands."""
    return lambda s: _same(compute, s.type(), count)


def _counting(compute: Callable[..., Array]) -> Callable[[Suffixes], Operation]:
    """A result of 32 bits whatever the operand."""
    return lambda s: Operation(compute, (s.type(),), U32)


def _shift(compute: Callable[..., Array]) -> Callable[[Suffixes], Operation]:
    def resolve(s: Suffixes) -> Operation:
        dtype = s.type()
        return Operation(compute, (dtype, U32), dtype)

    return resolve


def _shf(s: Suffixes) -> Operation:
    left, wrap = s.choice(("l", "r")) == "l", s.choice(("wrap", "clamp")) == "wrap"
    return _same(integers.funnel(left, wrap), s.type(), 3)


def _bfind(s: Suffixes) -> Operation:
    compute = integers.find_highest(s.flag("shiftamt"))
    return Operation(compute, (s.type(),), U32)


def _bfe(s: Suffixes) -> Operation:
    dtype = s.type()
    return Operation(integers.extract_field, (dtype, U32, U32), dtype)


def _bfi(s: Suffixes) -> Operation:
    dtype = s.type()
    return Operation(integers.insert_field, (dtype, dtype, U32, U32), dtype)


def _lop3(s: Suffixes) -> Operation:
    dtype = s.type()
    compute = lambda a, b, c, rows: integers.table(a, b, c, int(rows[0]))  # noqa: E731
    return Operation(compute, (dtype, dtype, dtype, U32), dtype)


def _selp(s: Suffixes) -> Operation:
    dtype = s.type()
    return Operation(lambda a, b, p: np.where(p, a, b), (dtype, dtype, BOOL), dtype)


def _slct(s: Suffixes) -> Operation:
    result, test = map(dtype_of, s.types(2))
    return Operation(lambda a, b, c: np.where(c >= 0, a, b), (result, result, test), result)


def _copysign(s: Suffixes) -> Operation:
    return _same(lambda sign, value: np.copysign(value, sign), s.type(), 2)


_TESTS: dict[str, Callable[[Array], Array]] = {
    "finite": np.isfinite,
    "infinite": np.isinf,
    "number": lambda a: a == a,
    "notanumber": np.isnan,
    "normal": lambda a: np.isfinite(a) & (np.abs(a) >= np.finfo(a.dtype).smallest_normal),
    "subnormal": lambda a: (a != 0) & (np.abs(a) < np.finfo(a.dtype).smallest_normal),
}


def _testp(s: Suffixes) -> Operation:
    compute = _TESTS[s.choice(_TESTS)]
    return Operation(compute, (s.type(),), BOOL)


def _cvt(s: Suffixes) -> Operation:
    mode, saturate = s.choice((*floats.MODES, "rni", "rzi", "rmi", "rpi"), "none"), s.flag("sat")
    to_name, from_name = s.types(2)
    to, source = dtype_of(to_name), dtype_of(from_name)
    convert = _conversion(to_name, from_name, to, source, mode, saturate)
    if convert is None:
        raise s.unsupported()
    return Operation(convert, (source,), to)


def _conversion(
    to_name: str, from_name: str, to: np.dtype, source: np.dtype, mode: str, saturate: bool
) -> Callable[[Array], Array] | None:
    if "bf16" in (to_name, from_name):
        if (to_name, mode, saturate) == ("f32", "none", False):
            return lambda a: (a.astype(np.uint32) << np.uint32(16)).view(np.float32)
        return floats.to_bfloat16 if (from_name, mode, saturate) == ("f32", "rn", False) else None
    if source.kind != "f" and to.kind != "f":
        if mode != "none":
            return None
        return (lambda a: integers.clamp(a, to)) if saturate else (lambda a: a.astype(to))
    if to.kind != "f":
        return (lambda a: floats.to_integer(a, to, mode)) if mode.endswith("i") else None
    return _to_float(to, source, mode, saturate)


def _to_float(to: np.dtype, source: np.dtype, mode: str, saturate: bool) -> Callable[[Array], Array] | None:
    def convert(a: Array) -> Array:
        if mode.endswith("i"):
            result = floats.integral(a, mode)
        elif to == source:
            result = a
        else:
            result = floats.narrowed(a, to, "rn" if mode == "none" else mode)
        return np.where(result > 0, np.minimum(result, to.type(1)), to.type(0)) if saturate else result

    return None if mode.endswith("i") and to != source else convert


OPERATIONS: dict[str, Callable[[Suffixes], Operation]] = {
    "abs": _sign(np.abs, flips=False),
    "add": _rounding(np.add, floats.add),
    "and": _plain(np.bitwise_and, 2),
    "bfe": _bfe,
    "bfi": _bfi,
    "bfind": _bfind,
    "brev": _plain(integers.reverse, 1),
    "clz": _counting(integers.leading_zeros),
    "cnot": _plain(lambda a: (a == 0).astype(a.dtype), 1),
    "copysign": _copysign,
    "cvt": _cvt,
    "div": _div,
    "fma": _fma,
    "lop3": _lop3,
    "mad": _mad,
    "max": _extremum(np.maximum, floats.maximum),
    "min": _extremum(np.minimum, floats.minimum),
    "mul": _mul,
    "neg": _sign(np.negative, flips=True),
    "not": _plain(np.invert, 1),
    "or": _plain(np.bitwise_or, 2),
    "popc": _counting(integers.ones),
    "prmt": _plain(integers.permute, 3),
    "rcp": _rcp,
    "rem": _plain(integers.remainder, 2),
    "selp": _selp,
    "shf": _shf,
    "shl": _shift(integers.shift_left),
    "shr": _shift(integers.shift_right),
    "slct": _slct,
    "sqrt": _sqrt,
    "sub": _rounding(np.subtract, floats.subtract),
    "testp": _testp,
    "xor": _plain(np.bitwise_xor, 2),
}

"""Instructions that move data: mov, ld, st, atom, red, cvta, setp."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from ptx_arithmetic import BOOL, dtype_of
from ptx_decode import Context, Handler, Step, constant
from ptx_lanes import Active, Array, Reader, Writer
from ptx_memory import LOCAL_WINDOW, SHARED_WINDOW, Generic, Memory
from ptx_model import Address, Group, Integer, Symbol

U64 = np.dtype(np.uint64)
_WINDOWS = {"global": 0, "const": 0, "shared": SHARED_WINDOW, "local": LOCAL_WINDOW}
_CACHING = {"ca", "cg", "cs", "lu", "cv", "wb", "wt", "nc", "L1::no_allocate", "L1::evict_first", "L1::evict_last"}
_CACHING |= {"L1::evict_normal", "L1::evict_unchanged", "L2::64B", "L2::128B", "L2::256B"}
_ORDERING = {"weak", "volatile", "relaxed", "acquire", "release", "acq_rel", "cta", "gpu", "sys", "cluster"}
_VECTORS = {"v2": 2, "v4": 4, "v8": 8, "": 1}


def _unsigned(dtype: np.dtype) -> np.dtype:
    return np.dtype(f"u{dtype.itemsize}")


def _mov(c: Context) -> Step:
    c.want(2)
    dtype = dtype_of(c.suffixes().types()[0])
    dtype = dtype if dtype == BOOL else _unsigned(dtype)
    target, source = c.operands
    if isinstance(target, Group):
        return _unpack(c, target, c.reader(source, dtype))
    if isinstance(source, Group):
        return _pack(c, c.writer(target, dtype), dtype, source)
    read, write = c.reader(source, dtype), c.writer(target, dtype)
    return lambda active: write(active, read(active))


def _part(c: Context, group: Group, whole: np.dtype) -> np.dtype:
    if len(group.items) not in (2, 4) or whole.itemsize < 2 * len(group.items):
        raise c.unsupported()
    return np.dtype(f"u{whole.itemsize // len(group.items)}")


def _unpack(c: Context, target: Group, read: Reader) -> Step:
    """``mov.b64 {low, high}, x``"""
    whole = _unsigned(dtype_of(c.instruction.parts[-1]))
    part = _part(c, target, whole)
    writes = [c.writer(item, part) for item in target.items]

    def step(active: Active) -> None:
        parts = np.ascontiguousarray(read(active))[:, None].view(part)
        for k, write in enumerate(writes):
            write(active, parts[:, k])

    return step


def _pack(c: Context, write: Writer, whole: np.dtype, source: Group) -> Step:
    """``mov.b64 x, {low, high}``"""
    part = _part(c, source, whole)
    reads = [c.reader(item, part) for item in source.items]
    bits = 8 * part.itemsize

    def step(active: Active) -> None:
        value = np.zeros(1, whole)
        for k, read in enumerate(reads):
            value = value | read(active).astype(whole) << whole.type(k * bits)
        write(active, value)

    return step


def _address(c: Context, address: Address) -> Reader:
    """The address as uint64, in the instruction's space."""
    base = address.base
    if isinstance(base, Symbol):
        return constant(np.array([c.place(base).address + address.offset], U64))
    if isinstance(base, Integer):
        return constant(np.array([base.value + address.offset], U64))
    narrow = c.register(base).bits.itemsize == 4
    read = c.reader(base, np.dtype(np.uint32) if narrow else U64)
    if not narrow and not address.offset:
        return read
    offset = np.uint64(address.offset & (2**64 - 1))
    return lambda active: read(active).astype(U64) + offset


def _memory(c: Context, space: str, address: Address) -> Memory | Generic:
    if isinstance(address.base, Symbol):
        return c.place(address.base).memory  # the parameters of kernels and of functions lie in different memories
    if space == "param" and not c.frame.entry:
        raise c.unsupported()
    return c.state.spaces["global" if space == "const" else space]


def _space(c: Context) -> tuple[str, int, np.dtype]:
    """Space, number of items and type of a load or store."""
    s = c.suffixes()
    s.ignore(_CACHING | _ORDERING)
    parts = {"shared::cta": "shared", "param::entry": "param", "param::func": "param"}
    space = s.choice((*_WINDOWS, "param", *parts), "generic")
    count = s.choice(("v2", "v4", "v8"), "none")
    dtype = dtype_of(s.types()[0])
    return parts.get(space, "" if space == "generic" else space), _VECTORS["" if count == "none" else count], dtype


def _items(c: Context, operand: object, count: int) -> tuple:
    items = operand.items if isinstance(operand, Group) else (operand,)
    if len(items) != count:
        raise c.unsupported()
    return items


def _ld(c: Context) -> Step:
    c.want(2)
    space, count, dtype = _space(c)
    address = c.operands[1]
    if not isinstance(address, Address):
        raise c.unsupported()
    memory, where, item = _memory(c, space, address), _address(c, address), dtype.itemsize
    writes = [c.writer(o, _loaded(dtype)) for o in _items(c, c.operands[0], count)]

    def step(active: Active) -> None:
        values = memory.load(where(active), item, count, active.index)
        for write, value in zip(writes, values, strict=True):
            write(active, value.view(_loaded(dtype)))

    return step


def _loaded(dtype: np.dtype) -> np.dtype:
    """Signed integers fill a wider register with their sign; of floats only the bits matter."""
    return dtype if dtype.kind == "i" else _unsigned(dtype)


def _st(c: Context) -> Step:
    c.want(2)
    space, count, dtype = _space(c)
    address = c.operands[0]
    if not isinstance(address, Address):
        raise c.unsupported()
    memory, where, bits = _memory(c, space, address), _address(c, address), _unsigned(dtype)
    reads = [c.reader(o, bits) for o in _items(c, c.operands[1], count)]

    def step(active: Active) -> None:
        memory.store(where(active), [read(active) for read in reads], active.index)

    return step


Update = Callable[[np.generic, np.generic], np.generic]
_UPDATES: dict[str, Update] = {
    "add": lambda old, b: old + b,
    "min": min,
    "max": max,
    "and": lambda old, b: old & b,
    "or": lambda old, b: old | b,
    "xor": lambda old, b: old ^ b,
    "exch": lambda old, b: b,
    "inc": lambda old, b: old * 0 if old >= b else old + old.dtype.type(1),
    "dec": lambda old, b: b if old == 0 or old > b else old - old.dtype.type(1),
}


def _atomic(c: Context) -> Step:
    """atom and red on integers, one thread after the other."""
    s = c.suffixes()
    s.ignore(_ORDERING | {"noftz"})
    space = s.choice(("global", "shared", "shared::cta"), "generic").removesuffix("::cta")
    name, dtype = s.choice((*_UPDATES, "cas")), s.type()
    operands = list(c.operands)
    write = c.writer(operands.pop(0), dtype) if c.instruction.parts[0] == "atom" else None
    if dtype.kind == "f" or len(operands) != (3 if name == "cas" else 2) or not isinstance(operands[0], Address):
        raise c.unsupported()
    where = _address(c, operands[0])
    memory = _memory(c, "" if space == "generic" else space, operands[0])
    reads = [c.reader(o, dtype) for o in operands[1:]]

    def step(active: Active) -> None:
        words, at = memory.cells(where(active), dtype.itemsize, active.index)
        arguments = [np.broadcast_to(read(active), at.shape) for read in reads]
        old = _one_by_one(words.view(dtype), at, name, arguments)
        if write is not None:
            write(active, old)

    return step


def _one_by_one(words: Array, at: Array, name: str, arguments: list[Array]) -> Array:
    old = np.empty(at.shape, words.dtype)
    for k, where in enumerate(at.tolist()):
        old[k] = words[where]
        if name != "cas":
            words[where] = _UPDATES[name](words[where], arguments[0][k])
        elif words[where] == arguments[0][k]:
            words[where] = arguments[1][k]
    return old


def _cvta(c: Context) -> Step:
    c.want(2)
    s = c.suffixes()
    down = s.flag("to")
    window = np.uint64(_WINDOWS[s.choice(_WINDOWS)])
    dtype = s.type()
    if dtype != U64:
        raise c.unsupported()
    read, write = c.reader(c.operands[1], dtype), c.writer(c.operands[0], dtype)
    if down:
        return lambda active: write(active, read(active) - window)
    return lambda active: write(active, read(active) + window)


_ORDERED = {"eq": np.equal, "lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal}
_UNSIGNED = {"lo": "lt", "ls": "le", "hi": "gt", "hs": "ge"}
_BOOLEANS = {"and": np.logical_and, "or": np.logical_or, "xor": np.logical_xor}
_NAMES = (*_ORDERED, *_UNSIGNED, "ne", "equ", "neu", "ltu", "leu", "gtu", "geu", "num", "nan")


def _unordered(a: Array, b: Array) -> Array:
    return (a != a) | (b != b)


def _comparison(name: str, floating: bool) -> Callable[[Array, Array], Array] | None:
    if name in _ORDERED:
        return _ORDERED[name]  # false if an operand is a NaN, as wanted
    if not floating:
        return np.not_equal if name == "ne" else _ORDERED.get(_UNSIGNED.get(name, ""))
    if name == "ne":
        return lambda a, b: (a != b) & ~_unordered(a, b)
    if name == "neu":
        return np.not_equal  # true if an operand is a NaN, as wanted
    if name in ("num", "nan"):
        return _unordered if name == "nan" else lambda a, b: ~_unordered(a, b)
    compare = _ORDERED.get(name.removesuffix("u"))
    return None if compare is None else lambda a, b: compare(a, b) | _unordered(a, b)


def _setp(c: Context) -> Step:
    """``setp.lt.and.f64 p|q, a, b, c``: p = (a < b) and c, q = not (a < b) and c."""
    s = c.suffixes()
    name = s.choice(_NAMES)
    join = s.choice(_BOOLEANS, "none")
    dtype = s.type()
    compare = _comparison(name, dtype.kind == "f")
    c.want(3 if join == "none" else 4)
    if compare is None:
        raise c.unsupported()
    targets = c.operands[0].items if isinstance(c.operands[0], Group) else (c.operands[0],)
    writes = [c.writer(t, BOOL) for t in targets]
    a, b = (c.reader(o, dtype) for o in c.operands[1:3])
    if join == "none":
        return _comparing(compare, a, b, writes)
    third, combine = c.reader(c.operands[3], BOOL), _BOOLEANS[join]
    return _comparing(compare, a, b, [_joined(write, combine, third) for write in writes])


def _joined(write: Writer, combine: np.ufunc, third: Reader) -> Writer:
    return lambda active, values: write(active, combine(values, third(active)))


def _comparing(compare: Callable[[Array, Array], Array], a: Reader, b: Reader, writes: list[Writer]) -> Step:
    if len(writes) == 1:
        (write,) = writes
        return lambda active: write(active, compare(a(active), b(active)))

    def step(active: Active) -> None:
        result = compare(a(active), b(active))
        writes[0](active, result)
        writes[1](active, ~result)

    return step


HANDLERS: dict[str, Handler] = {
    "mov": _mov,
    "ld": _ld,
    "ldu": _ld,
    "st": _st,
    "atom": _atomic,
    "red": _atomic,
    "cvta": _cvta,
    "setp": _setp,
}

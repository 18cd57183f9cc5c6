"""Conversions between types: one rounding, or none; what no type can hold is an error (numerics §2, class 2)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from vtrain.engine.aliases import same_memory, shifted
from vtrain.engine.core import F32, F64, Engine
from vtrain.engine.listener import round_result
from vtrain.engine.optable import OpClass, register
from vtrain.rounding.formats import FLOAT32, Format

Tensor = torch.Tensor
aten = torch.ops.aten
SIXTEEN = frozenset((torch.bfloat16, torch.float16))
_FLOATS = frozenset((F32, F64, *SIXTEEN))
_NARROW = frozenset((torch.bool, torch.uint8, torch.int8, torch.int16, torch.uint16))  # exact in float32
_WHOLE = 2**53  # integers below it are exact in float64


def as_number(value: float, dtype: torch.dtype) -> float:
    """A Python number as a tensor of ``dtype`` holds it: by way of float32 where that has 16 bits."""
    return value if value == 0 else torch.tensor(value, dtype=dtype).item()


def _one_rounding(source: torch.dtype, target: torch.dtype) -> bool:
    """Whether torch's own conversion is right on every device: exact, one rounding, or bits cut off an integer."""
    if source.is_complex or target.is_complex:
        return False
    if target is F32:
        return source in _FLOATS or not source.is_floating_point
    if target in SIXTEEN:
        return source is F32 or source in SIXTEEN or source in _NARROW
    if target is F64:
        return source in _FLOATS or not source.is_floating_point
    if target is torch.bool:
        return source in _FLOATS or not source.is_floating_point
    return not (target.is_floating_point or source.is_floating_point)


_NATIVE = {
    (a, b): _one_rounding(a, b)
    for a in vars(torch).values() if isinstance(a, torch.dtype)
    for b in vars(torch).values() if isinstance(b, torch.dtype)
}  # fmt: skip


def convert(engine: Engine, x: Tensor, dtype: torch.dtype) -> Tensor:
    """x in ``dtype``: floats rounded once to its target, integers cut to their low bits, floats to integers towards 0.

    Raises:
        UnsupportedOperation: a float that is NaN or out of an integer type's range, unless it lies below int32 or int64
            and becomes their lowest number; float8, complex.
    """
    if dtype is x.dtype:
        return x
    if dtype is F32 and engine.restricted:
        return round_once(x, engine.formats[F32])
    if _NATIVE[x.dtype, dtype]:
        return x.to(dtype)
    odd = x.dtype.is_complex or dtype.is_complex or (x.dtype.is_floating_point and x.dtype not in _FLOATS)
    if odd or x.dtype is torch.uint64:
        engine.refuse(f"a conversion of {x.dtype} to {dtype}")
    if dtype.is_floating_point:
        return round_once(x, engine.format(dtype))
    return _to_integer(engine, x, dtype)


def round_once(x: Tensor, fmt: Format) -> Tensor:
    """x of any real type rounded to ``fmt``, once; a new tensor."""
    if fmt == FLOAT32:
        return x.to(F32, copy=True)
    wide = x.contiguous() if x.dtype in (F32, F64) else _exactly_or_odd(x)
    return round_result(wide.contiguous(), fmt)


def _exactly_or_odd(x: Tensor) -> Tensor:
    """x in float64, exactly; integers of more than 53 bits cut so that they still lie on their side of every tie."""
    if x.is_floating_point() or x.element_size() < 8:
        return x.to(F64)
    sticky = (x >> 11 << 11) | ((x & 0x7FF) != 0).to(x.dtype) << 11  # 42 bits are left: far more than a target has
    return torch.where((x > -_WHOLE) & (x < _WHOLE), x, sticky).to(F64)


def _to_integer(engine: Engine, x: Tensor, dtype: torch.dtype) -> Tensor:
    info, wide = torch.iinfo(dtype), x.to(F64)
    # the numbers whose integral part fits; the bounds are exact in float64
    above = wide >= float(info.min) if info.bits == 64 else wide > float(info.min - 1)
    inside = above & (wide < float(info.max + 1))
    if bool(inside.all()):
        return x.to(dtype)
    # what lies below the lowest number becomes it, on every processor: log(0).long(), masked later
    sinks = info.min < 0 and info.bits >= 32
    below = (wide < float(info.min)) & sinks
    if not bool((inside | below).all()):
        bad = x[~(inside | below)].reshape(-1)[0].item()
        engine.refuse(
            f"{bad!r} to {dtype}: a number that the type can't hold becomes another one on other hardware; "
            f"clamp it (torch.clamp, torch.nan_to_num) before"
        )
    return torch.where(below, torch.full((), info.min, dtype=dtype, device=x.device), x.to(dtype))


def _keeps_type(x: Tensor, *args: object, dtype: torch.dtype | None = None, **kwargs: object) -> bool:
    return dtype is None or dtype is x.dtype or _NATIVE[x.dtype, dtype]


def _elsewhere(x: Tensor, device: torch.device | None) -> bool:
    """Whether x is not there: a move, which is no operation where it is, and so rounds nothing."""
    return device is not None and (
        device.type != x.device.type or (device.index is not None and device.index != x.device.index)
    )


def _copies_type(x: Tensor, *, non_blocking: bool = False, **kwargs: Any) -> bool:
    return not non_blocking and _keeps_type(x, **kwargs)


@register("_to_copy.default", cls=OpClass.ROUNDED, native_when=_copies_type, version=2)
def to_copy(engine: Engine, x: Tensor, *, dtype: torch.dtype | None = None, **kwargs: Any) -> Tensor:
    """x in another type, device or layout, in memory of its own; it is there when the operation is done."""
    kwargs.pop("non_blocking", None)
    moves = (dtype is None or dtype is x.dtype) and _elsewhere(x, kwargs.get("device"))
    if moves or (not engine.restricted and _keeps_type(x, dtype=dtype)):
        return aten._to_copy.default(x, dtype=dtype, **kwargs)
    target = dtype or x.dtype
    if target.is_floating_point and target is not F64:
        engine.format(target)
    rounded = target is F32 and engine.restricted  # what enters a step is not rounded; what is copied there is
    y = round_once(x, engine.formats[F32]) if rounded else convert(engine, x, target)
    if y is not x and y.stride() != x.stride():
        y = torch.empty_like(x, dtype=target).copy_(y)
    return aten._to_copy.default(y, **kwargs) if y is x or kwargs else y


# ---- operations that convert an operand on the way ------------------------------------------------------------------
def _copies(x: Tensor, source: Tensor, non_blocking: bool = False) -> bool:
    return x.dtype is source.dtype and not non_blocking and not same_memory(x, source)


@register("copy_.default", cls=OpClass.EXACT, native_when=_copies, version=2)
def copy_(engine: Engine, x: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
    """x becomes source, as it was before the first element was written; it is there when the operation is done."""
    if shifted(x, source):
        source = source.clone()
    return x.copy_(convert(engine, source, x.dtype))


def _replaced(at: int) -> Callable[..., bool]:
    return lambda *args, **kwargs: len(args) > at and args[0].dtype is args[at].dtype


def _with_operand(name: str, at: int) -> None:
    """Register an operation that puts values of operand ``at``, which it converts, into the first one's."""
    native = getattr(getattr(aten, name.split(".")[0]), name.split(".")[1])

    def handler(engine: Engine, *args: Any, **kwargs: Any) -> Tensor:
        return native(*args[:at], convert(engine, args[at], args[0].dtype), *args[at + 1 :], **kwargs)

    handler.__doc__ = f"{name}, operand {at} converted to the first one's type as ``convert`` does."
    register(name, cls=OpClass.EXACT, native_when=_replaced(at), version=2)(handler)


for _name, _at in (("fill.Tensor", 1), ("fill_.Tensor", 1), ("slice_scatter.default", 1), ("select_scatter.default", 1),
                   ("index_fill.int_Tensor", 3), ("masked_fill.Tensor", 2)):  # fmt: skip
    _with_operand(_name, _at)


@register("where.self", cls=OpClass.EXACT, native_when=lambda c, x, y: x.dtype is y.dtype, version=2)
def where(engine: Engine, condition: Tensor, x: Tensor, other: Tensor) -> Tensor:
    """x where the condition holds, else other; both in their common type."""
    dtype = torch.result_type(x, other)
    return torch.where(condition, convert(engine, x, dtype), convert(engine, other, dtype))


def _one_type(tensors: Sequence[Tensor], dim: int = 0) -> bool:
    first = tensors[0].dtype if len(tensors) else None
    return all(t.dtype is first for t in tensors)


def _common(engine: Engine, tensors: Sequence[Tensor]) -> list[Tensor]:
    dtype = tensors[0].dtype
    for t in tensors[1:]:
        dtype = torch.promote_types(dtype, t.dtype)
    return [convert(engine, t, dtype) for t in tensors]


@register("cat.default", cls=OpClass.EXACT, native_when=_one_type, version=2)
def cat(engine: Engine, tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    """The tensors one after another along dim, in their common type."""
    return torch.cat(_common(engine, tensors), dim)


@register("stack.default", cls=OpClass.EXACT, native_when=_one_type, version=2)
def stack(engine: Engine, tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    """The tensors along a new dimension, in their common type."""
    return torch.stack(_common(engine, tensors), dim)

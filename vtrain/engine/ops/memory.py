"""New memory, and memory seen in two ways (numerics §2, class 1; §7)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from vtrain.engine.aliases import one_nan, overlapping
from vtrain.engine.core import Engine
from vtrain.engine.optable import OpClass, register

Tensor = torch.Tensor
aten = torch.ops.aten
EXACT = OpClass.EXACT


def _zeroed(x: Tensor, since: int = 0) -> Tensor:
    """x with every byte of its storage from ``since`` on zero: what was never written is +0."""
    size = x.untyped_storage().nbytes() if x.layout is torch.strided else 0
    if size > since:
        torch.empty(0, dtype=torch.uint8, device=x.device).set_(
            x.untyped_storage(), since, (size - since,), (1,)
        ).zero_()
    return x


def _new(name: str) -> None:
    packet, overload = name.split(".")
    native = getattr(getattr(aten, packet), overload)

    def handler(engine: Engine, *args: Any, **kwargs: Any) -> Tensor:
        return _zeroed(native(*args, **kwargs))

    handler.__doc__ = f"{name}, which holds zeros."
    register(name, cls=EXACT, version=2)(handler)


for _name in ("empty.memory_format", "empty_like.default", "empty_strided.default", "new_empty.default",
              "new_empty_strided.default", "empty_permuted.default"):  # fmt: skip
    _new(_name)


@register("resize_.default", cls=EXACT, version=2)
def resize_(engine: Engine, x: Tensor, size: Sequence[int], **kwargs: Any) -> Tensor:
    """x in another shape; elements that its memory did not hold before are zero."""
    before = x.untyped_storage().nbytes()
    return _zeroed(x.resize_(size, **kwargs), before)


@register("is_pinned.default", cls=EXACT, version=2)
def is_pinned(engine: Engine, x: Tensor, device: torch.device | None = None) -> bool:
    """False: where memory lies is no part of a computation."""
    return False


@register("_pin_memory.default", cls=EXACT, version=2)
def pin_memory(engine: Engine, x: Tensor, device: torch.device | None = None) -> Tensor:
    """A copy, pinned or not."""
    return x.clone()


# ---- bits and overlaps ----------------------------------------------------------------------------------------------
@register("view.dtype", cls=EXACT, version=2)
def view_dtype(engine: Engine, x: Tensor, dtype: torch.dtype) -> Tensor:
    """x's bits as another type; a NaN has the canonical bits, and keeps them while the memory is shared."""
    if x.dtype is not dtype and (x.is_floating_point() or dtype.is_floating_point):
        if x.is_floating_point():
            one_nan(x)
        engine.watched.bits(x)
    return aten.view.dtype(x, dtype)


@register("_local_scalar_dense.default", cls=EXACT, version=2)
def item(engine: Engine, x: Tensor) -> float:
    """The value as a Python number; a NaN is the canonical one, since Python can tell its sign."""
    value = aten._local_scalar_dense.default(x)
    return float("nan") if isinstance(value, float) and value != value else value


def _strided(name: str) -> None:
    packet, overload = name.split(".")
    native = getattr(getattr(aten, packet), overload)

    def handler(engine: Engine, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        out = native(x, *args, **kwargs)
        if overlapping(out.shape, out.stride()):
            engine.watched.shared(out)
        return out

    handler.__doc__ = f"{name}; where its indices meet in an element, it can't be written to."
    register(name, cls=EXACT, version=2)(handler)


# a storage given to a tensor is memory that it sees from now on: as ``torch.load`` and ``copy.deepcopy`` make tensors
for _name in ("as_strided.default", "as_strided_.default", "unfold.default", "set_.source_Storage_storage_offset"):
    _strided(_name)

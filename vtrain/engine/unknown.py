"""What is said of an operation that the table does not know: what it is, and whether it could round (numerics §2)."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import _disable_current_modes

from vtrain.engine.callsite import unsupported
from vtrain.errors import UnsupportedOperation

NO_ROUNDING = (
    "not in the operation table; it can't round, as it {what}, but nobody has said yet what it gives in every case "
    "(zeros' signs, NaN, equal elements)"
)


def unknown(func: Any, args: tuple, kwargs: dict) -> UnsupportedOperation:
    """The error for an operation that has no entry.

    Args:
        func: the overload, called with ``args`` and ``kwargs``.
    """
    name = str(func)
    if func.namespace in ("c10d", "_c10d_functional"):
        return unsupported(
            name,
            "it sums or sends tensors between processes, in an order that no run repeats; train the module itself, in "
            "one process: give record and replay what DistributedDataParallel(...) or FSDP wraps (model.module)",
            register=False,
        )
    if torch.Tag.nondeterministic_seeded in func.tags:
        return unsupported(name, "no definition of this draw is part of the contract")
    if func.is_view:
        return unsupported(name, NO_ROUNDING.format(what="gives a view"))
    if not _gives_floats(func, args, kwargs):
        return unsupported(name, NO_ROUNDING.format(what="gives no floating-point numbers"))
    return unsupported(name, "not in the operation table; it may round differently on other hardware")


def _gives_floats(func: Any, args: tuple, kwargs: dict) -> bool:
    """Whether a result is a floating-point number, as far as can be told without computing it."""
    returns = [str(r.type) for r in func._schema.returns]
    if not any(word in kind for kind in returns for word in ("Tensor", "float", "number", "Any")):
        return bool(func._schema.is_mutable)

    def bare(value: Any) -> Any:
        return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")

    try:
        with _disable_current_modes():
            args, kwargs = pytree.tree_map_only(torch.Tensor, bare, (args, kwargs))
            found = pytree.tree_leaves(func(*args, **kwargs))
    except Exception:  # no shape can be told, or other arguments
        return True
    return any(t.is_floating_point() or t.is_complex() for t in found if isinstance(t, torch.Tensor)) or any(
        isinstance(t, float) for t in found
    )

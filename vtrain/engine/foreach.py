"""``_foreach_`` operations as one ordinary operation a tensor, in order (numerics §2, class 4)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

aten = torch.ops.aten
_ARITHMETIC = ("add", "sub", "mul", "div")
_UNARY_SCALAR = {"pow": "Tensor_Scalar", "lerp": "Scalar"}


def single(func: Any) -> tuple[Any, bool] | None:
    """The per-tensor overload of a ``_foreach_`` overload and whether it works in place; None if there is none."""
    name, overload = str(func).removeprefix("aten._foreach_").rsplit(".", 1)
    inplace = name.endswith("_")
    base = name.rstrip("_")
    if base == "norm":
        return aten.linalg_vector_norm.default, False
    extremum = base in ("maximum", "minimum")  # which have no form in place
    packet = getattr(aten, base + ("_" if inplace and not extremum else ""), None)
    if packet is None:
        return None
    if extremum:
        wanted = "default"
    elif base in _ARITHMETIC or base in ("clamp_min", "clamp_max"):
        wanted = "Tensor" if base in _ARITHMETIC or overload in ("List", "Tensor") else "default"
    elif overload in ("Scalar", "ScalarList"):
        wanted = _UNARY_SCALAR.get(base, "default")
    elif base == "lerp":
        wanted = "Tensor" if overload == "List" else "Scalar"
    else:
        wanted = "default"
    found = getattr(packet, wanted, None)
    return None if found is None else (found, inplace)


def run(dispatch: Callable[[Any, tuple, dict], Any], func: Any, args: tuple, kwargs: dict) -> Any:
    """Apply a ``_foreach_`` operation tensor by tensor through ``dispatch``."""
    found = single(func)
    if found is None:
        raise NotImplementedError(str(func))
    op, inplace = found
    tensors = args[0]
    overload = func._overloadname
    takes_value = "addc" in str(func)

    def pick(value: Any, i: int) -> Any:
        return value[i] if isinstance(value, list | tuple) else value

    results = []
    for i, x in enumerate(tensors):
        rest = [pick(a, i) for a in args[1:]]
        words = {k: pick(v, i) for k, v in kwargs.items() if k != "dtype" or v is not None}
        if takes_value and len(rest) == 3:
            words["value"] = rest.pop()
        elif overload in ("ScalarList",) and "scalars" in words:
            value = words.pop("scalars")
            if takes_value:
                words["value"] = value
            else:
                rest.append(value)
        if op in (aten.maximum.default, aten.minimum.default) and inplace:
            results.append(x.copy_(dispatch(op, (x, *rest), words)))
        else:
            results.append(dispatch(op, (x, *rest), words))
    return None if inplace else results

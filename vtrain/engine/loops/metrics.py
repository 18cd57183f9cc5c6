"""What a step may be given as a metric: one number (protocol §3)."""

from __future__ import annotations

import numbers
from typing import TypeAlias

import numpy as np
import torch

from vtrain.errors import UsageError

Number: TypeAlias = torch.Tensor | float | int
_LARGEST = 2**53  # up to it float64 has every integer


def one_number(name: str, value: object) -> Number:
    """A metric's value: a tensor of one element, a float or an int, from any of torch's, Python's or NumPy's.

    Args:
        name: how errors call it.

    Raises:
        UsageError: it is not one real number.
    """
    if isinstance(value, np.ndarray | np.generic):
        if value.size == 1 and value.dtype.kind in "fiub":
            value = value.item()
        else:
            raise UsageError(f"metric {name!r} is an array of {value.dtype}, shape {value.shape}; {_WANTED}")
    elif not isinstance(value, torch.Tensor) and callable(getattr(value, "item", None)):
        value = value.item()  # type: ignore[attr-defined]  # a loss in an object, as libraries for private gradients have
    if isinstance(value, torch.Tensor):
        if value.numel() != 1:
            raise UsageError(f"metric {name!r} is a tensor of shape {tuple(value.shape)}; {_WANTED}")
        if value.is_complex() or (value.is_floating_point() and value.element_size() == 1):
            raise UsageError(f"metric {name!r} is a tensor of {value.dtype}; want a real number of 16 bits or more")
        return value
    if not isinstance(value, numbers.Real):  # bool is an int, and a fraction a number
        raise UsageError(f"metric {name!r} is {_named(value)}; {_WANTED}")
    if isinstance(value, numbers.Integral):
        if abs(int(value)) > _LARGEST:
            raise UsageError(f"metric {name!r} is an integer of more than 53 bits; give it as an int64 tensor")
        return int(value)
    return float(value)


_WANTED = "want one number: reduce it with .mean() or .sum(), or take one element with .item()"


def _named(value: object) -> str:
    return "None" if value is None else f"a {type(value).__module__}.{type(value).__qualname__}"

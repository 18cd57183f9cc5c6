"""What a settled result is exactly: the function that a referee evaluates for single elements (protocol §8.3).

Kinds, their parameters and operands (floats are C99 hexadecimal; ``c`` is the dtype that the result was computed in, or
``integer2`` or ``integer3``: exact integers of so many signed bytes, numerics §10):

- ``product``: alpha * a @ b + beta * bias. ``a`` is ``(batch, m, k)``, ``bt`` is b transposed, ``(batch, n, k)``, so
  that a column is as short a piece of memory as a row; ``bias`` is broadcast to ``(batch, m, n)``.
- ``convolution`` of ``x (n, c, h, w)`` by ``weight (o, c / groups, kh, kw)``, plus ``bias (o)``; ``input_gradient`` of
  ``grad (n, o, oh, ow)`` and ``weight``; ``weight_gradient`` of ``grad`` and ``x``. ``geometry`` lists n, c, h, w, o,
  kh, kw, strides, paddings, dilations and output size (two each), and groups.
- ``sum`` over ``dims`` of ``x``, of its squares where ``square`` is true, over ``divisor``.
- ``function``: ``name`` of each element of ``x``; ``exponent`` for ``pow``. With ``c`` = ``rounded`` the result is the
  value of its format that is nearest to the exact one (numerics §3); without, one within the bound.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Definition:
    """A result's exact value as a function of tensors.

    Attributes:
        kind: which function, see above.
        params: its parameters, JSON without floats.
        operands: its tensors by name.
    """

    kind: str
    params: Mapping[str, Any]
    operands: Mapping[str, torch.Tensor]


DefinitionFn = Callable[[], Definition]


def dtype_name(dtype: torch.dtype) -> str:
    """A dtype as parameters have it, such as ``float64``."""
    return str(dtype).removeprefix("torch.")

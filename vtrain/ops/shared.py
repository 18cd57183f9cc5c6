"""What operators share."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils._python_dispatch import _disable_current_modes

from vtrain.errors import OperandError

Tensor = torch.Tensor
F32 = torch.float32
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def lifted(*tensors: Tensor | None) -> list[Any]:
    """In float32, exactly."""
    return [t if t is None or t.dtype is F32 else t.to(F32) for t in tensors]


def check_heads(operator: str, q: Tensor, k: Tensor, v: Tensor) -> None:
    """q, k and v are of one dtype that operators take, each of a batch's heads."""
    for name, t in (("q", q), ("k", k), ("v", v)):
        if t.dtype not in DTYPES or t.dtype is not q.dtype:
            raise OperandError(f"{operator}: {name} is {t.dtype}; want float32, bfloat16 or float16, and all the same")
        if t.dim() != 4:
            raise OperandError(f"{operator}: {name} is {list(t.shape)}; want (batch, heads, length, width)")


@contextlib.contextmanager
def constants() -> Iterator[None]:
    """Within: tensors that are the same in every call, and kept.

    No step sees how they are made, as it would in the first call only, and another process elsewhere; and they serve in
    training though it may be inference that made them.
    """
    with torch._C.DisableTorchFunction(), _disable_current_modes(), torch.inference_mode(False), torch.no_grad():
        yield

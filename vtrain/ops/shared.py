"""What operators share."""

from __future__ import annotations

from typing import Any

import torch

Tensor = torch.Tensor
F32 = torch.float32
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def lifted(*tensors: Tensor | None) -> list[Any]:
    """In float32, exactly."""
    return [t if t is None or t.dtype is F32 else t.to(F32) for t in tensors]

"""Running results along a dimension."""

from __future__ import annotations

import math

import torch

from vtrain.kernels import launch
from vtrain.kernels.canonical.checks import F64, Tensor, checked


def running_sum(x: Tensor, dim: int) -> Tensor:
    """Running sums along dim in float64, in ascending order."""
    checked("running_sum", x, x=x)
    x = x.contiguous()
    y = torch.empty(x.shape, dtype=F64, device=x.device)
    if x.numel():
        n = x.shape[dim] if x.dim() else 1
        inner = math.prod(x.shape[dim % x.dim() + 1 :]) if x.dim() else 1
        launch.launch("running_sum", x, y, x.numel() // (n * inner), n, inner)
    return y

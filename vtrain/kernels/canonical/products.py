"""Products of matrices."""

from __future__ import annotations

import torch

from vtrain.errors import OperandError
from vtrain.kernels import launch
from vtrain.kernels.canonical.checks import F32, Tensor, checked


def product(
    a: Tensor, b: Tensor, bias: Tensor | None = None, alpha: float = 1.0, beta: float = 1.0, wide: bool = False
) -> Tensor:
    """alpha * a @ b + beta * bias: each element one chain of fused multiply-adds over k, ascending (product.hpp).

    Args:
        a: ``(batch, m, k)``.
        b: ``(batch, k, n)``.
        bias: broadcastable to ``(batch, m, n)``.
        wide: accumulate in float64 and round to float32 once.
    """
    name = "product_wide" if wide else "product"
    checked(name, a, a=a, b=b, bias=bias)
    if a.dim() != 3 or b.dim() != 3 or a.shape[0] != b.shape[0] or a.shape[2] != b.shape[1]:
        raise OperandError(f"kernel {name}: a {list(a.shape)} and b {list(b.shape)}, want (batch, m, k), (batch, k, n)")
    batch, m, k = a.shape
    n = b.shape[2]
    y = torch.empty((batch, m, n), dtype=F32, device=a.device)
    if bias is not None:
        try:
            bias = bias.expand(y.shape)
        except RuntimeError as error:
            raise OperandError(f"kernel {name}: bias is {list(bias.shape)}, want {list(y.shape)} or less") from error
    at = (0, 0, 0) if bias is None else (bias.stride(1), bias.stride(2), bias.stride(0))
    if y.numel():
        launch.launch(
            name, a, b, bias, y, m, n, k, batch, a.stride(1), a.stride(2), a.stride(0), b.stride(2), b.stride(1),
            b.stride(0), n, m * n, *at, float(alpha), float(beta),
        )  # fmt: skip
    return y

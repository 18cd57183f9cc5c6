"""Functions of each element, and activations."""

from __future__ import annotations

import torch

from vtrain.kernels import launch
from vtrain.kernels.canonical.checks import F32, F64, Tensor, checked, same_shape
from vtrain.rounding.functions import CORRECT

FUNCTIONS = CORRECT  # pow has its own form


def function(name: str, x: Tensor, to: torch.dtype = F32, exponent: float = 0.0) -> Tensor:
    """One of ``FUNCTIONS``, or ``pow``, of each element, in float64 within an ulp; then rounded to ``to``.

    Args:
        x: float32 or float64.
        to: float32 or float64.
    """
    checked(name, x, (F32, F64), x=x)
    x = x.contiguous()
    out = torch.empty(x.shape, dtype=to, device=x.device)
    if x.numel():
        launch.launch(name, x, None, out, x.numel(), int(x.dtype is F64), int(to is F64), exponent, 0.0)
    return out


def power(x: Tensor, exponent: Tensor, to: torch.dtype = F32) -> Tensor:
    """x ** exponent elementwise in float64 within an ulp, then rounded to ``to``; both float64, of one shape."""
    checked("power", x, (F64,), x=x, exponent=exponent)
    same_shape("power", x, exponent=exponent)
    out = torch.empty(x.shape, dtype=to, device=x.device)
    if x.numel():
        launch.launch("power", x.contiguous(), exponent.contiguous(), out, x.numel(), 1, int(to is F64), 0.0, 0.0)
    return out


def activation(name: str, x: Tensor, grad: Tensor | None = None, p: float = 0.0, q: float = 0.0) -> Tensor:
    """``gelu_erf``, ``gelu_tanh``, ``silu`` or ``softplus`` (p: beta, q: threshold); with grad, its gradient."""
    name = name if grad is None else f"{name}_backward"
    checked(name, x, x=x, grad=grad)
    x = x.contiguous()
    if grad is not None:
        same_shape(name, x, grad=grad)
        grad = grad.contiguous()
    out = torch.empty_like(x)
    if x.numel():
        launch.launch(name, x, grad, out, x.numel(), 0, 0, p, q)
    return out

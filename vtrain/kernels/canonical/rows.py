"""Softmax, layer norm and RMS norm, of rows."""

from __future__ import annotations

import torch

from vtrain.errors import OperandError
from vtrain.kernels import launch
from vtrain.kernels.canonical.checks import Tensor, checked, same_shape, sized


def _rows_of(x: Tensor, dim: int) -> Tensor:
    return (x.movedim(dim, -1) if x.dim() else x.view(1)).contiguous()


def softmax(
    name: str, dim: int, x: Tensor | None = None, y: Tensor | None = None, grad: Tensor | None = None
) -> Tensor:
    """``softmax`` or ``log_softmax`` of x along dim, or, from y and grad, its gradient."""
    like = x if x is not None else y
    assert like is not None
    name = name if grad is None else f"{name}_backward"
    checked(name, like, x=x, y=y, grad=grad)
    if grad is not None:
        same_shape(name, like, grad=grad)
    x, y, grad = (None if t is None else _rows_of(t, dim) for t in (x, y, grad))
    rows = x if x is not None else y
    assert rows is not None
    out = torch.empty_like(rows)
    n = rows.shape[-1]
    if rows.numel():
        launch.launch(name, x, y, grad, None, None, None, None, out, rows.numel() // n, n, 0.0)
    return out.movedim(-1, dim).contiguous() if like.dim() else out.view(())


def _check_rows(
    kernel: str, x: Tensor, n: int, grad: Tensor | None, per_row: tuple[Tensor, ...], *per_element: Tensor | None
) -> None:
    if n < 0 or (x.numel() and (n == 0 or x.numel() % n)):
        raise OperandError(f"kernel {kernel}: x has {x.numel()} elements, no multiple of rows of {n}")
    if grad is not None:
        same_shape(kernel, x, grad=grad)
    for i, t in enumerate(per_row):
        sized(kernel, x.numel() // max(1, n), **{("mean", "rstd")[i - len(per_row)]: t})
    for name, weight in zip(("weight", "bias"), per_element, strict=False):
        sized(kernel, n, **{name: weight})


def layer_norm(
    x: Tensor, n: int, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """(x - mean) * rstd * weight + bias over the last n elements; mean and rstd ``(rows,)``."""
    checked("layer_norm", x, x=x, weight=weight, bias=bias)
    _check_rows("layer_norm", x, n, None, (), weight, bias)
    x, weight, bias = (None if t is None else t.contiguous() for t in (x, weight, bias))  # type: ignore[assignment]
    out, rows = torch.empty_like(x), x.numel() // max(1, n)
    mean, rstd = torch.empty(rows, device=x.device), torch.empty(rows, device=x.device)
    if x.numel():
        launch.launch("layer_norm", x, None, None, weight, bias, mean, rstd, out, rows, n, eps)
    return out, mean, rstd


def layer_norm_backward(x: Tensor, n: int, grad: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor | None) -> Tensor:
    """Gradient of x of ``layer_norm``."""
    checked("layer_norm_backward", x, x=x, grad=grad, mean=mean, rstd=rstd, weight=weight)
    _check_rows("layer_norm_backward", x, n, grad, (mean, rstd), weight)
    x, grad = x.contiguous(), grad.contiguous()
    weight = None if weight is None else weight.contiguous()
    out = torch.empty_like(x)
    if x.numel():
        launch.launch("layer_norm_backward", x, None, grad, weight, None, mean.contiguous(), rstd.contiguous(), out,
               x.numel() // n, n, 0.0)  # fmt: skip
    return out


def rms_norm(x: Tensor, n: int, weight: Tensor | None, eps: float) -> tuple[Tensor, Tensor]:
    """x * rstd * weight over the last n elements; rstd ``(rows,)``."""
    checked("rms_norm", x, x=x, weight=weight)
    _check_rows("rms_norm", x, n, None, (), weight)
    x = x.contiguous()
    weight = None if weight is None else weight.contiguous()
    out, rows = torch.empty_like(x), x.numel() // max(1, n)
    rstd = torch.empty(rows, device=x.device)
    if x.numel():
        launch.launch("rms_norm", x, None, None, weight, None, None, rstd, out, rows, n, eps)
    return out, rstd


def rms_norm_backward(x: Tensor, n: int, grad: Tensor, rstd: Tensor, weight: Tensor | None) -> Tensor:
    """Gradient of x of ``rms_norm``."""
    checked("rms_norm_backward", x, x=x, grad=grad, rstd=rstd, weight=weight)
    _check_rows("rms_norm_backward", x, n, grad, (rstd,), weight)
    x, grad = x.contiguous(), grad.contiguous()
    weight = None if weight is None else weight.contiguous()
    out = torch.empty_like(x)
    if x.numel():
        launch.launch(
            "rms_norm_backward", x, None, grad, weight, None, None, rstd.contiguous(), out, x.numel() // n, n, 0.0
        )
    return out

"""Convolutions of channels with filters of their own, short with a state and as long as the sequence (numerics §3)."""

from __future__ import annotations

from typing import Any

import torch

from vtrain.errors import OperandError
from vtrain.kernels import canonical
from vtrain.ops.shared import DTYPES, Tensor, lifted


def short_conv(
    u: Tensor, w: Tensor, bias: Tensor | None = None, *, before: Tensor | None = None, centred: bool = False
) -> tuple[Tensor, Tensor]:
    """y[t] = sum over i of w[i] u[t - taps + 1 + i], + bias, for each channel by itself; causal, with a state.

    Each element is a chain of fused multiply-adds over ascending positions in float32, then the bias, an operation of
    its own (``kernels/reductions/depthwise.hpp``). A sequence may be cut anywhere by passing the state on.

    Args:
        u: ``(batch, channels, length)``; float32, bfloat16 or float16.
        w: ``(channels, taps)``, of any of these dtypes.
        bias: ``(channels,)``.
        before: the last taps - 1 inputs before u, ``(batch, channels, taps - 1)``; nothing by default.
        centred: y[t] reads from (taps - 1) // 2 positions before t on instead; has no state.

    Returns:
        y ``(batch, channels, length)`` of u's dtype, and the state after: the last taps - 1 inputs.

    Raises:
        OperandError: shapes or dtypes that don't fit; names them.
    """
    _check("short_conv", u, w)
    taps = w.shape[1]
    if taps < 1:
        raise OperandError("short_conv: w has no taps, want 1 or more")
    if centred:
        if before is not None:
            raise OperandError("short_conv: before with centred; want one")
        y = torch.ops.vtrain.depthwise(u, w, u.shape[2], (taps - 1) // 2)
        return _biased(y, bias), u[..., :0]
    if before is not None and (before.shape != (*u.shape[:2], taps - 1) or before.dtype is not u.dtype):
        raise OperandError(
            f"short_conv: before is {before.dtype} {list(before.shape)}, want {u.dtype} {[*u.shape[:2], taps - 1]}"
        )
    whole = u if before is None else torch.cat([before, u], 2)
    y = torch.ops.vtrain.depthwise(whole, w, u.shape[2], taps - 1 if before is None else 0)
    held = whole if whole.shape[2] >= taps - 1 else torch.nn.functional.pad(whole, (taps - 1 - whole.shape[2], 0))
    return _biased(y, bias), held[..., held.shape[2] - (taps - 1) :]


def long_conv(u: Tensor, w: Tensor) -> Tensor:
    """y[t] = sum over s <= t of w[t - s] u[s], for each channel by itself: a filter up to the sequence's length.

    A product with a triangular Toeplitz matrix that is never made, in the order of ``short_conv``: chains over
    ascending positions, length^2 / 2 multiply-adds a channel. No Fourier transform, whose rounding depends on its size.

    Args:
        u: ``(batch, channels, length)``; float32, bfloat16 or float16.
        w: ``(channels, taps)``: w[:, 0] is for the position itself.

    Returns:
        ``(batch, channels, length)`` of u's dtype.

    Raises:
        OperandError: shapes or dtypes that don't fit; names them.
    """
    _check("long_conv", u, w)
    return torch.ops.vtrain.depthwise(u, w.flip(1), u.shape[2], w.shape[1] - 1)


def _biased(y: Tensor, bias: Tensor | None) -> Tensor:
    return y if bias is None else y + bias.unsqueeze(1)


def _check(name: str, u: Tensor, w: Tensor) -> None:
    for what, t in (("u", u), ("w", w)):
        if t.dtype not in DTYPES:
            raise OperandError(f"{name}: {what} is {t.dtype}; want float32, bfloat16 or float16")
    if u.dim() != 3 or w.dim() != 2 or u.shape[1] != w.shape[0]:
        raise OperandError(
            f"{name}: u is {list(u.shape)} and w {list(w.shape)}; want (batch, channels, length) and (channels, taps)"
        )


def backward(grad: Tensor, u: Tensor, w: Tensor, shift: int) -> tuple[Tensor, Tensor]:
    """Gradients of u and w in float32."""
    grad, u, w = lifted(grad, u, w)
    du = canonical.depthwise_input(grad, w, u.shape[2], shift)
    return du, canonical.depthwise_weight(grad, u, w.shape[1], shift)


@torch.library.custom_op("vtrain::depthwise", mutates_args=())
def depthwise_op(u: Tensor, w: Tensor, length: int, shift: int) -> Tensor:
    """y[t] = sum over i of w[i] u[t + i - shift]."""
    wide_u, wide_w = lifted(u, w)
    return canonical.depthwise(wide_u, wide_w, length, shift).to(u.dtype)


@depthwise_op.register_fake
def _(u: Tensor, w: Tensor, length: int, shift: int) -> Tensor:
    return u.new_empty((u.shape[0], u.shape[1], length))


@torch.library.custom_op("vtrain::depthwise_backward", mutates_args=())
def depthwise_backward_op(grad: Tensor, u: Tensor, w: Tensor, shift: int) -> tuple[Tensor, Tensor]:
    """Gradients of u and w."""
    du, dw = backward(grad, u, w, shift)
    return du.to(u.dtype), dw.to(w.dtype)


@depthwise_backward_op.register_fake
def _(grad: Tensor, u: Tensor, w: Tensor, shift: int) -> tuple[Tensor, Tensor]:
    return u.new_empty(u.shape), w.new_empty(w.shape)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:2])
    ctx.shift = inputs[3]


def _back(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
    du, dw = torch.ops.vtrain.depthwise_backward(grad, *ctx.saved_tensors, ctx.shift)
    return du, dw, None, None


depthwise_op.register_autograd(_back, setup_context=_keep)

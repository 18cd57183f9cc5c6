"""Convolutions of channels with filters of their own (``reductions/depthwise.hpp``)."""

from __future__ import annotations

import torch

from vtrain.errors import OperandError
from vtrain.kernels import launch
from vtrain.kernels.canonical.checks import F32, Tensor, checked

OUTPUT, INPUT, WEIGHT = range(3)


def _shaped(name: str, t: Tensor | None, dims: int) -> None:
    if t is not None and t.dim() != dims:
        raise OperandError(f"kernel depthwise: {name} is {list(t.shape)}, want {dims} dimensions")


def depthwise(u: Tensor, w: Tensor, length: int, shift: int) -> Tensor:
    """y[b, c, t] = sum over i of w[c, i] u[b, c, t + i - shift]: ``(batch, channels, length)``.

    Args:
        u: ``(batch, channels, n)``; nothing lies outside.
        w: ``(channels, taps)``.
        length: positions of the result.
        shift: how far its first position's first tap lies before u.
    """
    return _run(OUTPUT, u, w, None, u.shape[0], u.shape[-1], w.shape[-1], length, shift)


def depthwise_input(grad: Tensor, w: Tensor, n: int, shift: int) -> Tensor:
    """Gradient of u ``(batch, channels, n)`` from that of the result, ``(batch, channels, length)``."""
    return _run(INPUT, None, w, grad, grad.shape[0], n, w.shape[-1], grad.shape[-1], shift)


def depthwise_weight(grad: Tensor, u: Tensor, taps: int, shift: int) -> Tensor:
    """Gradient of w ``(channels, taps)``."""
    return _run(WEIGHT, u, None, grad, u.shape[0], u.shape[-1], taps, grad.shape[-1], shift)


def _run(
    kind: int, u: Tensor | None, w: Tensor | None, grad: Tensor | None, batch: int, n: int, taps: int, length: int,
    shift: int,
) -> Tensor:  # fmt: skip
    for name, t, dims in (("u", u, 3), ("w", w, 2), ("grad", grad, 3)):
        _shaped(name, t, dims)
    like = next(t for t in (u, grad) if t is not None)
    checked("depthwise", like, u=u, w=w, grad=grad)
    channels = like.shape[1]
    wrong = w is not None and w.shape[0] != channels
    wrong |= u is not None and grad is not None and grad.shape[:2] != u.shape[:2]
    if wrong or min(taps, length, n) < 0:
        named = {"u": u, "w": w, "grad": grad}
        shapes = ", ".join(f"{name} is {list(t.shape)}" for name, t in named.items() if t is not None)
        raise OperandError(f"kernel depthwise: {shapes}, which don't fit")
    shape = ((batch, channels, length), (batch, channels, n), (channels, taps))[kind]
    out = torch.empty(shape, dtype=F32, device=like.device)
    u, w, grad = (None if t is None else t.contiguous() for t in (u, w, grad))
    if out.numel():
        launch.launch("depthwise", u, w, grad, out, batch, channels, n, taps, length, shift, kind)
    return out

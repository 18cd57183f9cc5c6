"""Convolutions of channels with filters of their own, as one operation (numerics §3)."""

from __future__ import annotations

import torch

from vtrain.engine.core import Engine
from vtrain.engine.optable import register
from vtrain.kernels import canonical
from vtrain.ops.convolutions import backward
from vtrain.ops.shared import lifted

Tensor = torch.Tensor


@register("vtrain.depthwise.default")
def depthwise(engine: Engine, u: Tensor, w: Tensor, length: int, shift: int) -> Tensor:
    """Rounded once."""
    wide_u, wide_w = lifted(u, w)
    return engine.rounded("", canonical.depthwise(wide_u, wide_w, length, shift), u.dtype)


@register("vtrain.depthwise_backward.default")
def depthwise_backward(engine: Engine, grad: Tensor, u: Tensor, w: Tensor, shift: int) -> tuple[Tensor, Tensor]:
    """Gradients of u and w, each rounded once."""
    du, dw = backward(grad, u, w, shift)
    du = engine.rounded("du", du, u.dtype)
    return du, engine.rounded("dw", dw, w.dtype)

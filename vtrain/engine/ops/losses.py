"""Cross entropy over a large vocabulary, as one operation (numerics §3)."""

from __future__ import annotations

import torch

from vtrain.engine.core import Engine
from vtrain.engine.optable import register
from vtrain.ops.losses import backward, forward
from vtrain.rounding.formats import FLOAT32

Tensor = torch.Tensor


@register("vtrain.linear_cross_entropy.default")
def linear_cross_entropy(engine: Engine, x: Tensor, weight: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Losses rounded once; what is kept for the backward pass stays in float32."""
    losses, top, shift = forward(x, weight, target)
    losses = engine.rounded("", losses, torch.float32)
    return losses, engine.fixed("top", top, FLOAT32), engine.fixed("shift", shift, FLOAT32)


@register("vtrain.linear_cross_entropy_backward.default")
def linear_cross_entropy_backward(
    engine: Engine, grad: Tensor, x: Tensor, weight: Tensor, target: Tensor, top: Tensor, shift: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients of x and weight, each rounded once."""
    dx, dw = backward(grad, x, weight, target, top, shift)
    dx = engine.rounded("dx", dx, x.dtype)
    return dx, engine.rounded("dw", dw, weight.dtype)

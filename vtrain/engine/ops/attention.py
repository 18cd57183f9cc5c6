"""Attention, as one operation (numerics §3)."""

from __future__ import annotations

import numpy as np
import torch

from vtrain.engine.core import Engine
from vtrain.engine.optable import OpClass, register
from vtrain.ops import softmax
from vtrain.rounding.formats import FLOAT32

Tensor = torch.Tensor


@register("vtrain.attention.default")
def attention(
    engine: Engine, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, mask: Tensor | None, padding: Tensor | None,
    draw: Tensor | None, *sight: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Rounded once; what is kept for the backward pass stays in float32."""
    out, top, total = softmax.forward(q, k, v, bias, mask, padding, draw, *sight)
    top, total = engine.fixed("top", top, FLOAT32), engine.fixed("total", total, FLOAT32)
    return engine.rounded("", out, q.dtype), top, total


@register("vtrain.attention_backward.default")
def attention_backward(
    engine: Engine, grad: Tensor, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, mask: Tensor | None,
    padding: Tensor | None, draw: Tensor | None, top: Tensor, total: Tensor, *sight: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of q, k and v, each rounded once."""
    found = softmax.backward(grad, q, k, v, bias, mask, padding, draw, top, total, *sight)
    dq, dk, dv = (engine.rounded(n, t.contiguous(), q.dtype) for n, t in zip(("dq", "dk", "dv"), found, strict=True))
    return dq, dk, dv


@register("vtrain.draw.default", cls=OpClass.RANDOM)
def draw(engine: Engine, like: Tensor) -> Tensor:
    """The name of the step's next draw."""
    source, (step, site) = engine.next_draw()
    words = source.key.key
    numbers = np.array([words[0] | words[1] << 32, site, step], dtype=np.uint64)
    return torch.from_numpy(numbers.view(np.int64))

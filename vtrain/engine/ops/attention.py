"""Attention, as one operation (numerics §3)."""

from __future__ import annotations

import numpy as np
import torch

from vtrain.engine.core import Engine
from vtrain.engine.optable import OpClass, register
from vtrain.kernels import canonical
from vtrain.ops.shared import lifted
from vtrain.ops.softmax import over_groups, sight_of
from vtrain.rounding.formats import FLOAT32

Tensor = torch.Tensor


@register("vtrain.attention.default")
def attention(
    engine: Engine, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, mask: Tensor | None, padding: Tensor | None,
    draw: Tensor | None, *sight: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Rounded once; what is kept for the backward pass stays in float32."""
    wide_q, wide_k, wide_v, wide_bias = lifted(q, k, v, bias)
    seen = sight_of(draw, *sight)  # type: ignore[arg-type]
    out, top, total = canonical.attention(wide_q, wide_k, wide_v, seen, wide_bias, mask, padding)
    top, total = engine.fixed("top", top, FLOAT32), engine.fixed("total", total, FLOAT32)
    return engine.finish(engine.fixed("", out, FLOAT32), q.dtype), top, total


@register("vtrain.attention_backward.default")
def attention_backward(
    engine: Engine, grad: Tensor, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, mask: Tensor | None,
    padding: Tensor | None, draw: Tensor | None, top: Tensor, total: Tensor, *sight: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of q, k and v, each rounded once."""
    wide_grad, wide_q, wide_k, wide_v, wide_bias = lifted(grad, q, k, v, bias)
    seen = sight_of(draw, *sight)  # type: ignore[arg-type]
    dq, dk, dv, _ = canonical.attention_backward(
        wide_grad, wide_q, wide_k, wide_v, top, total, seen, wide_bias, mask, padding
    )
    dk, dv = over_groups(dk, k.shape[1]), over_groups(dv, k.shape[1])
    found = [engine.fixed(part, t.contiguous(), FLOAT32) for part, t in (("dq", dq), ("dk", dk), ("dv", dv))]
    return tuple(engine.finish(t, q.dtype) for t in found)  # type: ignore[return-value]


@register("vtrain.draw.default", cls=OpClass.RANDOM)
def draw(engine: Engine, like: Tensor) -> Tensor:
    """The name of the step's next draw."""
    source, (step, site) = engine.next_draw()
    words = source.key.key
    numbers = np.array([words[0] | words[1] << 32, site, step], dtype=np.uint64)
    return torch.from_numpy(numbers.view(np.int64))

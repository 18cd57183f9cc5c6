"""Linear attention's scan, as one operation (numerics §3)."""

from __future__ import annotations

import torch

from vtrain.engine.core import Engine
from vtrain.engine.optable import register
from vtrain.ops import linear
from vtrain.rounding.formats import FLOAT32

Tensor = torch.Tensor


@register("vtrain.scan.default")
def scan(
    engine: Engine,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor | None,
    initial: Tensor | None,
    kind: int,
    span: int,
) -> tuple[Tensor, Tensor]:
    """y rounded once; the final state stays in float32."""
    y, state = linear.forward(q, k, v, log_decay, initial, kind, span)
    return engine.rounded("", y, q.dtype), engine.fixed("state", state, FLOAT32)


@register("vtrain.scan_backward.default")
def scan_backward(
    engine: Engine, grad: Tensor, state_grad: Tensor | None, q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor | None,
    *rest: object,
) -> list[Tensor]:  # fmt: skip
    """Each gradient rounded once, but the state's."""
    found = linear.backward(grad, state_grad, q, k, v, log_decay, *rest)  # type: ignore[arg-type]
    names = ("dq", "dk", "dv", "state", "decay")
    fixed = [engine.fixed(name, t, FLOAT32) for name, t in zip(names, found, strict=False)]
    done = [engine.finish(t, q.dtype) for t in fixed[:3]] + fixed[3:4]
    return done if log_decay is None else [*done, engine.finish(fixed[4], log_decay.dtype)]

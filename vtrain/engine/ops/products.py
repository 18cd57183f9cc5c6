"""Products that are canonical under every policy (numerics §3)."""

from __future__ import annotations

import torch

from vtrain.engine.core import Engine
from vtrain.engine.optable import register
from vtrain.kernels import canonical
from vtrain.ops.products import backward
from vtrain.ops.shared import lifted

Tensor = torch.Tensor


@register("vtrain.chain_product.default")
def chain_product(engine: Engine, a: Tensor, b: Tensor) -> Tensor:
    """Rounded once."""
    wide_a, wide_b = lifted(a, b)
    return engine.rounded("", canonical.product(wide_a, wide_b), a.dtype)


@register("vtrain.chain_product_backward.default")
def chain_product_backward(engine: Engine, grad: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of a and b, each rounded once."""
    da, db = backward(grad, a, b)
    da = engine.rounded("da", da, a.dtype)
    return da, engine.rounded("db", db, b.dtype)

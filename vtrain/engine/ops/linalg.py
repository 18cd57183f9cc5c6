"""Factorisations, as fixed sequences of products, differences and norms in float32 (numerics §2, class 4)."""

from __future__ import annotations

import torch

from vtrain.engine.core import F32, Engine
from vtrain.engine.ops.functions import settle_function
from vtrain.engine.ops.matmul import product
from vtrain.engine.ops.reduction import mean_square
from vtrain.engine.optable import register

Tensor = torch.Tensor


@register("linalg_qr.default")
def qr(engine: Engine, a: Tensor, mode: str = "reduced") -> tuple[Tensor, Tensor]:
    """a = Q R by classical Gram-Schmidt, each column twice (Giraud et al. 2005); diag R >= 0.

    What ``nn.init.orthogonal_`` needs; LAPACK's Q has other signs, which that function undoes.
    """
    if mode != "reduced" or a.dim() != 2 or a.shape[0] < a.shape[1]:
        engine.refuse(f"mode {mode!r} of shape {tuple(a.shape)}; only the reduced mode of a tall matrix is covered")
    rows, columns = a.shape
    wide = engine.lift(a)
    q = torch.zeros(rows, columns, device=a.device)
    r = torch.zeros(columns, columns, device=a.device)
    for j in range(columns):
        v = wide[:, j].contiguous()
        for part in ("first", "second"):
            if j:
                shares = _product(engine, q[:, :j].t(), v, f"{part}_shares")
                v = torch.sub(v, _product(engine, q[:, :j], shares, f"{part}_projection"))
                r[:j, j] = torch.add(r[:j, j], shares)
        square = mean_square(engine, v, [0], 1.0, "square")
        norm = settle_function(engine, "sqrt", square, part="norm")
        r[j, j] = norm
        q[:, j] = torch.where(norm > 0, torch.div(v, norm), torch.zeros_like(v))
    return engine.finish(q, a.dtype), engine.finish(r, a.dtype)


def _product(engine: Engine, a: Tensor, x: Tensor, part: str) -> Tensor:
    return product(engine, a.to(F32), x.unsqueeze(1), part=part).squeeze(1)

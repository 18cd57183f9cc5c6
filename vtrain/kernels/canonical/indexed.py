"""Sums at indices."""

from __future__ import annotations

import torch

from vtrain.errors import OperandError
from vtrain.kernels import launch
from vtrain.kernels.canonical.checks import F64, Tensor, checked


def scatter(values: Tensor, index: Tensor, rows: int, x: Tensor | None = None, alpha: float = 1.0) -> Tensor:
    """y[r] = x[r] + the sum of alpha * values[t] over t with index[t] = r, ascending, in float64: ``(rows, width)``.

    Args:
        values: ``(terms, width)``.
        index: int64 ``(terms,)``, in [0, rows).
        x: ``(rows, width)``; none: zeros.

    Raises:
        OperandError: an index out of range.
    """
    checked("scatter", values, values=values, x=x)
    checked("scatter", values, (torch.int64,), index=index)
    if values.dim() != 2 or index.shape != values.shape[:1]:
        raise OperandError(f"kernel scatter: index is {list(index.shape)}, values {list(values.shape)}: want one a row")
    if x is not None and x.shape != (rows, values.shape[1]):
        raise OperandError(f"kernel scatter: x is {list(x.shape)}, want {[rows, values.shape[1]]}")
    if index.numel():
        least, greatest = torch.stack(torch.aminmax(index)).tolist()  # in one go: a device is waited for once
        if least < 0 or greatest >= rows:
            raise OperandError(f"kernel scatter: index from {least} to {greatest}, want 0 to {rows - 1}")
    values = values.contiguous()
    y = torch.zeros((rows, values.shape[1]), dtype=F64, device=values.device) if x is None else x.to(F64).contiguous()
    if not values.numel() or not y.numel():
        return y
    sorted_index, order = torch.sort(index, stable=True)
    used, counts = torch.unique_consecutive(sorted_index, return_counts=True)
    starts = torch.zeros(used.numel() + 1, dtype=torch.int64, device=values.device)
    starts[1:] = counts.cumsum(0)
    base = None if x is None else x.contiguous()
    launch.launch("scatter", values, order, starts, used, base, y, used.numel(), values.shape[1], alpha)
    return y

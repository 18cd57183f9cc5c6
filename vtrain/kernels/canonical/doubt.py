"""Settling where the log is made elsewhere: rounding, and the elements in doubt."""

from __future__ import annotations

import torch

from vtrain.kernels import launch
from vtrain.kernels.canonical.checks import F32, F64, Tensor, checked
from vtrain.rounding.formats import Format
from vtrain.rounding.generic import container
from vtrain.rounding.scale import Scale

_HOLDERS = {"float32": 0, "bfloat16": 1, "float16": 2}
STRIP = 4096  # elements counted together (tile/elements.hpp)


def _doubt(
    name: str, y: Tensor, out: Tensor | None, fmt: Format, scale: Scale | None, tau: float, eta: float, signed: bool,
    *found: Tensor | None,
) -> None:  # fmt: skip
    vectors = (None,) * 4 if scale is None else (scale.row, scale.col, scale.bias, scale.full)
    shape = (1, 1, y.numel()) if scale is None else scale.shape
    launch.launch(
        name, y, out, *vectors, *found, int(y.dtype is F64), _HOLDERS[fmt.container], fmt.p, fmt.emin, fmt.emax, *shape,
        int(scale is not None and scale.relative), tau, eta, -0.0 if signed else 0.0,
    )  # fmt: skip


def round_to(y: Tensor, fmt: Format, signed: bool = True) -> Tensor:
    """y (float32 or float64, contiguous) rounded to ``fmt``, in its container; unsigned: all zeros become +0."""
    checked("round", y, (F32, F64), y=y)
    out = torch.empty(y.shape, dtype=container(fmt), device=y.device)
    if y.numel():
        _doubt("round", y.contiguous(), out, fmt, None, 0.0, 0.0, signed, None, None, None, None)
    return out


def in_doubt(
    y: Tensor, scale: Scale, tau: float, eta: float, fmt: Format, signed: bool = True
) -> tuple[Tensor, Tensor, Tensor]:
    """Flat indices (int64, ascending), values and half-widths (float64) of the elements in doubt."""
    checked("doubt_count", y, (F32, F64), y=y)
    y = y.contiguous()
    counts = torch.zeros(-(-y.numel() // STRIP), dtype=torch.int64, device=y.device)
    if not y.numel():
        return counts, torch.empty(0, dtype=F64, device=y.device), torch.empty(0, dtype=F64, device=y.device)
    _doubt("doubt_count", y, None, fmt, scale, tau, eta, signed, counts, None, None, None)
    ends = counts.cumsum(0)
    total, starts = int(ends[-1]), ends - counts
    index = torch.empty(total, dtype=torch.int64, device=y.device)
    value, width = (torch.empty(total, dtype=F64, device=y.device) for _ in range(2))
    if total:
        _doubt("doubt_write", y, None, fmt, scale, tau, eta, signed, starts, index, value, width)
    return index, value, width

"""Rotary position embeddings (Su et al., RoFormer, arXiv 2104.09864), with tables that every machine makes alike."""

from __future__ import annotations

import torch
from torch.utils._python_dispatch import _disable_current_modes

from vtrain.errors import OperandError
from vtrain.kernels import canonical
from vtrain.ops.shared import F32, Tensor


def rotary(
    x: Tensor, *, start: int = 0, base: float = 10000.0, interleaved: bool = False, positions: Tensor | None = None
) -> Tensor:
    """x with pairs of features turned by position * base^(-2 i / d), i the pair's number.

    Cosines and sines are canonical functions of float64 angles, rounded to float32 once; x cos + turned x sin is three
    operations, rounded each, as models write it. Positions are absolute, so a sequence may be cut anywhere.

    Args:
        x: ``(..., length, d)``, d even; floating-point.
        start: position of the first row.
        base: of the frequencies.
        interleaved: pairs are (0, 1), (2, 3), ...; otherwise (0, d / 2), (1, d / 2 + 1), ...
        positions: of the rows instead, int64 ``(length,)``.

    Returns:
        x's shape and dtype; the gradient is turned back.

    Raises:
        OperandError: an odd d, or positions of another length.
    """
    if x.dim() < 2 or x.shape[-1] % 2:
        raise OperandError(f"rotary: x is {list(x.shape)}; want (..., length, d) with an even d")
    at = torch.arange(start, start + x.shape[-2]) if positions is None else positions
    if at.shape != (x.shape[-2],):
        raise OperandError(f"rotary: positions are {list(at.shape)}, want {[x.shape[-2]]}")
    cos, sin = (t.to(x.device, x.dtype) for t in tables(at.cpu(), x.shape[-1], base))
    if interleaved:
        cos, sin = (t.repeat_interleave(2, -1) for t in (cos, sin))
        even, odd = x[..., ::2], x[..., 1::2]
        turned = torch.stack([-odd, even], -1).flatten(-2)
    else:
        cos, sin = (torch.cat([t, t], -1) for t in (cos, sin))
        low, high = x.chunk(2, -1)
        turned = torch.cat([-high, low], -1)
    return x * cos + turned * sin


@torch.no_grad()
def tables(positions: Tensor, d: int, base: float) -> tuple[Tensor, Tensor]:
    """Cosines and sines ``(length, d / 2)``, float32; positions int64 on the CPU.

    Constants: single float64 operations and canonical functions of integers, so no step needs to see how they are made.
    """
    with _disable_current_modes():
        exponents = torch.arange(0, d, 2, dtype=torch.float64) / -d
        frequencies = canonical.power(torch.full_like(exponents, base), exponents, torch.float64)
        angles = positions.to(torch.float64).unsqueeze(1) * frequencies
        return canonical.function("cos", angles, F32), canonical.function("sin", angles, F32)

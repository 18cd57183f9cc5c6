"""Rotary position embeddings (Su et al., RoFormer, arXiv 2104.09864), with tables that every machine makes alike."""

from __future__ import annotations

import functools

import torch

from vtrain.errors import OperandError
from vtrain.kernels import canonical
from vtrain.ops.shared import F32, Tensor, constants


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
    length, d = x.shape[-2:]
    if positions is None:
        found = _consecutive(start, length, d, base)
    elif positions.shape != (length,):
        raise OperandError(f"rotary: positions are {list(positions.shape)}, want {[length]}")
    else:
        found = tables(positions.cpu(), d, base)
    cos, sin = (t.to(x.device, x.dtype) for t in found)
    if interleaved:
        cos, sin = (t.repeat_interleave(2, -1) for t in (cos, sin))
        even, odd = x[..., ::2], x[..., 1::2]
        turned = torch.stack([-odd, even], -1).flatten(-2)
    else:
        cos, sin = (torch.cat([t, t], -1) for t in (cos, sin))
        low, high = x.chunk(2, -1)
        turned = torch.cat([-high, low], -1)
    return x * cos + turned * sin


def tables(positions: Tensor, d: int, base: float) -> tuple[Tensor, Tensor]:
    """Cosines and sines ``(length, d / 2)``, float32; positions int64 on the CPU.

    Single float64 operations and canonical functions of integers.
    """
    with constants():
        exponents = torch.arange(0, d, 2, dtype=torch.float64) / -d
        frequencies = canonical.power(torch.full_like(exponents, base), exponents, torch.float64)
        angles = positions.to(torch.float64).unsqueeze(1) * frequencies
        return canonical.function("cos", angles, F32), canonical.function("sin", angles, F32)


@functools.lru_cache(maxsize=16)
def _consecutive(start: int, length: int, d: int, base: float) -> tuple[Tensor, Tensor]:
    """The tables of positions that follow each other: one for all layers and steps."""
    with constants():
        return tables(torch.arange(start, start + length), d, base)

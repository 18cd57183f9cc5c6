"""Real Fourier transforms as Monarch products, and convolutions by them (numerics §3).

With N = a b, n = b n1 + n2 and k = k1 + a k2, a transform of N points is one of a points over n1, a twiddle
exp(-2 pi i k1 n2 / N), and one of b points over n2 (Cooley and Tukey 1965; as Monarch products: Fu et al., Monarch
Mixer, arXiv 2310.12109). Here each is a product with tables of cosines and sines. Their angles are reduced as integers,
their values canonical and rounded to float32 once. N, a and b decide the bits: they are part of what is computed.
"""

from __future__ import annotations

import functools
import math

import torch

from vtrain.errors import OperandError
from vtrain.kernels import canonical
from vtrain.ops.products import chain_product
from vtrain.ops.shared import DTYPES, F32, Tensor, constants

Complex = tuple[Tensor, Tensor]


@functools.lru_cache(maxsize=64)
def _tables(rows: int, columns: int, period: int) -> Complex:
    """cos and sin of 2 pi r c / period, ``(rows, columns)``."""
    with constants():
        turns = torch.arange(rows).unsqueeze(1) * torch.arange(columns) % period
        angles = turns.to(torch.float64) * (2 * math.pi) / period
        return canonical.function("cos", angles, F32), canonical.function("sin", angles, F32)


def _over(x: Tensor, table: Tensor) -> Tensor:
    """x ``(..., n)`` times a table ``(n, m)``."""
    flat = x.reshape(1, -1, x.shape[-1])
    return chain_product(flat, table.to(x.device).unsqueeze(0)).view(*x.shape[:-1], table.shape[1])


def _turned(real: Tensor, imaginary: Tensor | None, cos: Tensor, sin: Tensor) -> Complex:
    """(real + i imaginary)(cos - i sin), summed over the last dimension by the tables."""
    re, im = _over(real, cos), -_over(real, sin)
    return (re, im) if imaginary is None else (re + _over(imaginary, sin), im + _over(imaginary, cos))


def monarch_dft(real: Tensor, imaginary: Tensor | None, order: tuple[int, int]) -> Complex:
    """The discrete Fourier transform X[k] = sum over n of x[n] exp(-2 pi i k n / N) in two stages, N = a b.

    Args:
        real: ``(..., N)``, float32.
        imaginary: the same, or None for real input.
        order: a and b.

    Returns:
        Real and imaginary parts, ``(..., N)``, in ascending k.

    Raises:
        OperandError: another length than the order's, or dtypes that don't fit.
    """
    a, b = order
    for name, t in (("real", real), ("imaginary", imaginary)):
        if t is not None and (t.dtype is not F32 or t.shape != real.shape or t.shape[-1] != a * b):
            raise OperandError(f"monarch_dft: {name} is {t.dtype} {list(t.shape)}; want float32 (..., {a} * {b})")
    first = real.unflatten(-1, (a, b)).mT  # (..., n2, n1)
    second = None if imaginary is None else imaginary.unflatten(-1, (a, b)).mT
    re, im = _turned(first, second, *_tables(a, a, a))  # (..., n2, k1)
    cos, sin = (t.to(re.device) for t in _tables(b, a, a * b))
    re, im = re * cos + im * sin, im * cos - re * sin
    re, im = _turned(re.mT, im.mT, *_tables(b, b, b))  # (..., k1, k2)
    return re.mT.flatten(-2), im.mT.flatten(-2)  # k = k1 + a k2


def monarch_conv(u: Tensor, w: Tensor, order: tuple[int, int]) -> Tensor:
    """y[t] = sum over s <= t of w[t - s] u[s] for each channel, by transforms of N = order[0] order[1] points.

    Rounding reaches every position, also those before: what is computed here is causal but for that, and a prefix has
    other bits. ``long_conv`` is exactly causal; this takes fewer operations from about 8,000 positions on.

    Args:
        u: ``(batch, channels, length)``; float32, bfloat16 or float16, computed in float32 and rounded once.
        w: ``(channels, taps)`` of u's dtype; length + taps - 1 may not be beyond N.
        order: the transforms' stages; part of what is computed.

    Returns:
        ``(batch, channels, length)`` of u's dtype.

    Raises:
        OperandError: operands that don't fit, or a transform that is too short: it would wrap around.
    """
    points = order[0] * order[1]
    if u.dtype not in DTYPES or w.dtype is not u.dtype or u.dim() != 3 or w.dim() != 2 or u.shape[1] != w.shape[0]:
        shapes = f"u is {u.dtype} {list(u.shape)} and w {w.dtype} {list(w.shape)}"
        raise OperandError(f"monarch_conv: {shapes}; want (batch, channels, length), (channels, taps), one dtype")
    length = u.shape[2]
    if length + w.shape[1] - 1 > points:
        wanted = length + w.shape[1] - 1
        raise OperandError(f"monarch_conv: {length} positions and {w.shape[1]} taps take {wanted} points of {points}")
    padded = [torch.nn.functional.pad(t.to(F32), (0, points - t.shape[-1])) for t in (u, w)]
    (ur, ui), (wr, wi) = (monarch_dft(t, None, order) for t in padded)
    re, im = ur * wr - ui * wi, ur * wi + ui * wr
    back, _ = monarch_dft(re, -im, order)  # the inverse is the conjugate's transform over N
    return (back / points)[..., :length].to(u.dtype)

"""Gradients of padding, and patches added up where they came from (numerics §2, class 4)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from vtrain.engine.core import Engine
from vtrain.engine.ops.axes import Axis, apply, full, reflected, replicated, taps
from vtrain.engine.optable import OpClass, register

Tensor = torch.Tensor


def transposed(engine: Engine, grad: Tensor, axes: Sequence[Axis], dtype: torch.dtype | None = None) -> Tensor:
    """The gradient of a map along the last dimensions, rounded once, to ``dtype`` or grad's own."""
    wanted = [axis.rows for axis in axes]
    if list(grad.shape[grad.dim() - len(axes) :]) != wanted:
        engine.refuse(f"a gradient of {list(grad.shape)}; want {wanted} in the last dimensions")
    return engine.fixed("", apply(grad, [axis.transposed for axis in axes]), engine.format(dtype or grad.dtype))


def _enter(name: str, axis: Callable[[int, int, int], Axis]) -> None:
    """Register the gradient of a padding by copies of elements; the numbers come for the last dimension first."""

    @register(*(f"{name}_pad{dims}d_backward.default" for dims in (1, 2, 3)), cls=OpClass.COMPOSITE, version=2)
    def backward(engine: Engine, grad: Tensor, x: Tensor, padding: Sequence[int]) -> Tensor:
        """Sum over the positions that show each input."""
        pairs = list(zip(padding[::2], padding[1::2], strict=True))[::-1]
        sizes = x.shape[x.dim() - len(pairs) :]
        return transposed(engine, grad, [axis(n, *pair) for n, pair in zip(sizes, pairs, strict=True)])


_enter("reflection", reflected)
_enter("replication", replicated)


@register("col2im.default", cls=OpClass.COMPOSITE, version=2)
def fold(
    engine: Engine,
    x: Tensor,
    size: Sequence[int],
    kernel: Sequence[int],
    dilation: Sequence[int],
    padding: Sequence[int],
    stride: Sequence[int],
) -> Tensor:
    """Sum of the columns' ``(..., channels * taps, positions)`` elements that each element of an image was read by."""
    wide = [full(v, 2) for v in (size, kernel, dilation, padding, stride)]
    out = [
        (n + 2 * p - d * (k - 1) - 1) // s + 1 if k > 0 and d > 0 and p >= 0 and s > 0 else 0
        for n, k, d, p, s in zip(*wide, strict=True)
    ]
    if (
        x.dim() not in (2, 3)
        or min(out) < 1
        or x.shape[-1] != out[0] * out[1]
        or x.shape[-2] % (wide[1][0] * wide[1][1])
    ):
        engine.refuse(
            f"columns of {list(x.shape)}; a picture of {wide[0]} has {out[0]} x {out[1]} patches of {wide[1]}"
        )
    (kh, kw), channels = wide[1], x.shape[-2] // (wide[1][0] * wide[1][1])
    patches = x.reshape(*x.shape[:-2], channels, kh, kw, *out).transpose(-3, -2)
    axes = [taps(n, o, k, s, p, d) for n, k, d, p, s, o in zip(*wide, out, strict=True)]
    return transposed(engine, patches.reshape(*x.shape[:-2], channels, kh * out[0], kw * out[1]), axes)


@register("unfold_backward.default", cls=OpClass.COMPOSITE)
def unfold_backward(engine: Engine, grad: Tensor, shape: Sequence[int], dim: int, size: int, step: int) -> Tensor:
    """Sum over the windows of ``size`` elements along dim, ``step`` apart, that show each element."""
    if not shape:
        return grad.reshape(())
    dim %= len(shape)
    out = (shape[dim] - size) // step + 1
    rows = grad.movedim(-1, dim).movedim(dim + 1, -1).movedim(dim, -2)  # (..., place in the window, window)
    flat = rows.reshape(*rows.shape[:-2], size * out)
    y = transposed(engine, flat, [taps(shape[dim], out, size, step, 0, 1)])
    return y.movedim(-1, dim).contiguous()

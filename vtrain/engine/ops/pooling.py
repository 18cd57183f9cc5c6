"""Pooling: averages of windows, and gradients of averages and of largest elements (numerics §2)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from vtrain.engine.core import F32, F64, Engine
from vtrain.engine.ops.axes import Axis, adaptive_windows, apply, full, windows
from vtrain.engine.ops.padding import transposed
from vtrain.engine.ops.scatter import settle_linear
from vtrain.engine.optable import OpClass, register
from vtrain.kernels import canonical

Tensor = torch.Tensor
aten = torch.ops.aten


def _extents(counts: Sequence[np.ndarray], x: Tensor) -> Tensor:
    """Positions of each window: the products of their numbers along the dimensions, float64."""
    y = torch.ones((), dtype=F64, device=x.device)
    for count in counts:
        y = y.unsqueeze(-1) * torch.from_numpy(count).to(x.device, F64)
    return y


def _pooled(
    x: Tensor, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], out: Sequence[int], whole: bool,
    divisor: int | None, dims: int,
) -> tuple[list[Axis], Tensor]:  # fmt: skip
    """The windows along each dimension, and what each window's sum is divided by, float64.

    Args:
        out: size of the result, as PyTorch has it (ceil_mode decides).
        whole: whether padding counts.
    """
    kernel, padding = full(kernel, dims), full(padding, dims)
    stride = full(stride, dims) if len(stride) else kernel
    found = [windows(*v) for v in zip(x.shape[-dims:], out, kernel, stride, padding, strict=True)]
    axes = [axis for axis, _ in found]
    if divisor is not None:
        return axes, torch.full((), float(divisor), dtype=F64, device=x.device)
    # an empty window is a sum of nothing: 0, whatever it is divided by
    return axes, _extents([extent if whole else np.maximum(axis.counts, 1) for axis, extent in found], x)


def _enter_average(dims: int) -> None:
    pool = getattr(aten, f"avg_pool{dims}d").default
    adaptive = getattr(aten, f"_adaptive_avg_pool{dims}d").default

    @register(f"avg_pool{dims}d.default", cls=OpClass.COMPOSITE, version=2)
    def average(
        engine: Engine, x: Tensor, kernel: Sequence[int], stride: Sequence[int] = (), padding: Sequence[int] = (0,),
        ceil_mode: bool = False, count_include_pad: bool = True, divisor: int | None = None,
    ) -> Tensor:  # fmt: skip
        """Mean of each window: sums in float64, a dimension after the other, and one division."""
        like = torch.empty(x.shape, device="meta")
        out = pool(like, kernel, stride, padding, ceil_mode, count_include_pad, divisor).shape[-dims:]
        axes, over = _pooled(x, kernel, stride, padding, out, count_include_pad, divisor, dims)
        return engine.fixed("", torch.div(apply(x, axes), over), engine.format(x.dtype))

    @register(f"avg_pool{dims}d_backward.default", cls=OpClass.COMPOSITE, version=2)
    def average_backward(
        engine: Engine, grad: Tensor, x: Tensor, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int],
        ceil_mode: bool, count_include_pad: bool, divisor: int | None,
    ) -> Tensor:  # fmt: skip
        """Each window's share of its gradient: one division in float64, and sums of these."""
        axes, over = _pooled(x, kernel, stride, padding, grad.shape[-dims:], count_include_pad, divisor, dims)
        return _spread(engine, grad, axes, over)

    @register(f"_adaptive_avg_pool{dims}d.default", cls=OpClass.COMPOSITE, version=2)
    def adaptive_average(engine: Engine, x: Tensor, size: Sequence[int]) -> Tensor:
        """Mean of each of ``size`` windows."""
        out = adaptive(torch.empty(x.shape, device="meta"), size).shape[-dims:]
        axes = [adaptive_windows(n, o) for n, o in zip(x.shape[-dims:], out, strict=True)]
        over = _extents([axis.counts for axis in axes], x)
        return engine.fixed("", torch.div(apply(x, axes), over), engine.format(x.dtype))

    @register(f"_adaptive_avg_pool{dims}d_backward.default", cls=OpClass.COMPOSITE, version=3)
    def adaptive_average_backward(engine: Engine, grad: Tensor, x: Tensor) -> Tensor:
        """Each window's share of its gradient."""
        axes = [adaptive_windows(n, o) for n, o in zip(x.shape[-dims:], grad.shape[-dims:], strict=True)]
        return _spread(engine, grad, axes, _extents([axis.counts for axis in axes], grad))


def _spread(engine: Engine, grad: Tensor, axes: Sequence[Axis], over: Tensor) -> Tensor:
    share = torch.div(grad.to(F64), over)
    return transposed(engine, share, axes, grad.dtype)


_enter_average(2)
_enter_average(3)


# ---- gradients of maxima --------------------------------------------------------------------------------------------
def _to_maxima(engine: Engine, grad: Tensor, shape: Sequence[int], indices: Tensor, dims: int) -> Tensor:
    """Each gradient to its window's largest element, whose position in the plane is ``indices``, in ascending order."""
    area, windows_ = math.prod(shape[len(shape) - dims :]), math.prod(grad.shape[grad.dim() - dims :])
    planes = math.prod(shape[: len(shape) - dims])
    offset = torch.arange(planes, device=grad.device).view(-1, 1) * area
    flat = (indices.reshape(planes, windows_) + offset).reshape(-1)
    y = canonical.scatter(grad.to(F32).reshape(-1, 1), flat, planes * area)
    return engine.fixed("", y.view(list(shape)), engine.format(grad.dtype))


def _enter_maximum(dims: int) -> None:
    pool = getattr(aten, f"max_pool{dims}d_with_indices_backward").default
    adaptive = getattr(aten, f"adaptive_max_pool{dims}d_backward").default

    @register(f"max_pool{dims}d_with_indices_backward.default", cls=OpClass.VARYING)
    def maximum_backward(engine: Engine, grad: Tensor, x: Tensor, *args: Sequence[int] | bool | Tensor) -> Tensor:
        """Each gradient to its window's maximum; overlapping windows add up."""
        *window, indices = args
        assert isinstance(indices, Tensor)
        if engine.canonical:
            return _to_maxima(engine, grad, x.shape, indices, dims)
        wide, kernel = x.to(F64), window[0]
        assert isinstance(kernel, Sequence)
        f = lambda g: pool(g, wide, *window, indices)  # noqa: E731
        return settle_linear(engine, f, grad, math.prod(full(kernel, dims)), grad.dtype, extra=0)

    @register(f"adaptive_max_pool{dims}d_backward.default", cls=OpClass.VARYING)
    def adaptive_maximum_backward(engine: Engine, grad: Tensor, x: Tensor, indices: Tensor) -> Tensor:
        """Each gradient to its window's maximum; overlapping windows add up."""
        if engine.canonical:
            return _to_maxima(engine, grad, x.shape, indices, dims)
        wide = x.to(F64)
        f = lambda g: adaptive(g, wide, indices)  # noqa: E731
        return settle_linear(engine, f, grad, math.prod(grad.shape[-dims:]), grad.dtype, extra=0)


_enter_maximum(2)
_enter_maximum(3)

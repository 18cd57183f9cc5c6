"""Batch norm's passes, with a value a channel."""

from __future__ import annotations

import torch

from vtrain.kernels import launch
from vtrain.kernels.canonical.checks import Tensor, checked, same_shape, sized

_SMALL_AREA = 64


def _by_channel(x: Tensor, *values: Tensor | None) -> tuple[tuple[int, int, int], tuple[Tensor | None, ...]]:
    """samples, channels, area of x, and values a channel; small areas as channels of their own, for long rows."""
    samples, channels = x.shape[:2]
    area = x.numel() // (samples * channels)
    if area >= _SMALL_AREA:
        return (samples, channels, area), tuple(None if v is None else v.contiguous() for v in values)
    return (samples, channels * area, 1), tuple(None if v is None else v.repeat_interleave(area) for v in values)


def channel_norm(x: Tensor, mean: Tensor, gain: Tensor, bias: Tensor | None) -> Tensor:
    """(x - mean) * gain + bias by channel of x ``(samples, channels, ...)``."""
    checked("channel_norm", x, x=x, mean=mean, gain=gain, bias=bias)
    sized("channel_norm", x.shape[1], mean=mean, gain=gain, bias=bias)
    x = x.contiguous()
    out = torch.empty_like(x)
    if x.numel():
        layout, values = _by_channel(x, mean, gain, bias)
        launch.launch("channel_norm", x, None, *values, None, None, out, *layout)
    return out


def channel_norm_backward(x: Tensor, grad: Tensor, mean: Tensor, offset: Tensor, slope: Tensor, gain: Tensor) -> Tensor:
    """((grad - offset) - (x - mean) * slope) * gain by channel of x ``(samples, channels, ...)``."""
    checked("channel_norm_backward", x, x=x, grad=grad, mean=mean, offset=offset, slope=slope, gain=gain)
    same_shape("channel_norm_backward", x, grad=grad)
    sized("channel_norm_backward", x.shape[1], mean=mean, offset=offset, slope=slope, gain=gain)
    x, grad = x.contiguous(), grad.contiguous()
    out = torch.empty_like(x)
    if x.numel():
        layout, values = _by_channel(x, mean, gain, None, offset, slope)
        launch.launch("channel_norm_backward", x, grad, *values, out, *layout)
    return out

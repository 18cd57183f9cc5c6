"""Batch norm's passes, in NumPy's float32, one operation at a time."""

from __future__ import annotations

from naive.bits import Array, quietly


def _by_channel(v: Array, x: Array) -> Array:
    return v.reshape(1, -1, *[1] * (x.ndim - 2))


@quietly
def channel_norm(x: Array, mean: Array, gain: Array, bias: Array | None) -> Array:
    """(x - mean) * gain + bias."""
    y = (x - _by_channel(mean, x)) * _by_channel(gain, x)
    return y if bias is None else y + _by_channel(bias, x)


@quietly
def channel_norm_backward(x: Array, grad: Array, mean: Array, offset: Array, slope: Array, gain: Array) -> Array:
    """((grad - offset) - (x - mean) * slope) * gain."""
    back = (x - _by_channel(mean, x)) * _by_channel(slope, x)
    return ((grad - _by_channel(offset, x)) - back) * _by_channel(gain, x)

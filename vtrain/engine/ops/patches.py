"""Patches of images as columns of matrices, and back: what convolutions multiply (numerics §2, class 3)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from vtrain import kernels
from vtrain.engine.core import F32, Engine
from vtrain.engine.ops.geometry import Shape

Tensor = torch.Tensor


def columns(engine: Engine, x: Tensor, s: Shape, dtype: torch.dtype, name: str = "a") -> Tensor:
    """Patches of x ``(samples, channels, h, w)`` in C: ``(channels * kh * kw, samples * area)``."""
    samples, channels = x.shape[:2]
    out = engine.workspace.get(name, (channels * s.kh * s.kw, samples * s.area), dtype, x.device)
    if x.device.type == "cpu":
        source = x.contiguous()
        kernels.to_columns(source.to(F32) if source.dtype is torch.float16 else source, out, s.key(samples, channels))
        return out
    return out.copy_(unfolded(x.to(dtype), s).transpose(0, 1).reshape(out.shape))


def unfolded(x: Tensor, s: Shape) -> Tensor:
    """Patches of x by tensor operations, for other devices: ``(samples, channels * kh * kw, area)``."""
    patches = F.unfold(x, (s.kh, s.kw), s.dilation, s.padding, s.stride).unflatten(2, s.most)
    return patches[..., : s.out[0], : s.out[1]].flatten(2)


def folded(patches: Tensor, s: Shape) -> Tensor:
    """Transpose of ``unfolded``."""
    missing = (0, s.most[1] - s.out[1], 0, s.most[0] - s.out[0])
    whole = F.pad(patches.unflatten(2, s.out), missing).flatten(2)
    return F.fold(whole, (s.h, s.w), (s.kh, s.kw), s.dilation, s.padding, s.stride)


def image(cols: Tensor, out: Tensor, s: Shape) -> None:
    """Transpose of ``columns``, into out ``(samples, channels, h, w)``."""
    samples, channels = out.shape[:2]
    if cols.device.type == "cpu":
        kernels.from_columns(cols, out, s.key(samples, channels))
        return
    out.copy_(folded(cols.view(-1, samples, s.area).transpose(0, 1), s))


def by_channel(engine: Engine, y: Tensor, dtype: torch.dtype, name: str = "b") -> Tensor:
    """y ``(samples, o, oh, ow)`` in C with the channels first: ``(o, samples * area)``."""
    samples, o = y.shape[:2]
    area = math.prod(y.shape[2:])
    out = engine.workspace.get(name, (o, samples, area), dtype, y.device)
    return out.copy_(y.reshape(samples, o, area).transpose(0, 1)).view(o, samples * area)

"""Convolutions and their gradients as exact integer products over columns of patches (numerics §10)."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F

from vtrain.engine import integers
from vtrain.engine.carriers import carrier
from vtrain.engine.core import F32, F64, Engine
from vtrain.engine.listener import round_result
from vtrain.engine.ops.geometry import Shape, defined
from vtrain.engine.ops.patches import by_channel, columns
from vtrain.rounding.fixed import LONGEST, digits_for
from vtrain.rounding.formats import FLOAT32, Format

Tensor = torch.Tensor


def forward(engine: Engine, x: Tensor, weight: Tensor, bias: Tensor | None, s: Shape, part: str) -> Tensor:
    """y[o] = sum over the patch of weight[o] * x, rounded once; with a bias to float32, then one addition."""
    y = _sums(engine, x, weight, s)
    if bias is not None:
        y = round_result(y, FLOAT32).add_(engine.lift(bias).view(1, -1, 1, 1))
    fmt = engine.format(x.dtype)
    exactly = defined("convolution", s, _c(fmt), x=x, weight=weight, bias=bias)
    return engine.fixed(part, y, fmt, signed=True, definition=exactly)


def _c(fmt: Format) -> str:
    return f"integer{digits_for(fmt)}"


def _sums(engine: Engine, x: Tensor, weight: Tensor, s: Shape) -> Tensor:
    """Sums over patches before their rounding, float64 ``(n, o, oh, ow)``; each patch has its own scale."""
    g = s.groups
    digits, by = digits_for(engine.format(x.dtype)), carrier(x.device)
    y = engine.workspace.get("sums", (s.n, s.o, s.area), F64, x.device)
    w = weight.reshape(g, s.o // g, s.depth)
    for at, to in s.chunks(F64):
        cols = columns(engine, x[at:to], s, F32, "columns").view(g, s.depth, -1)
        found = integers.product(engine.workspace, w, cols, digits, by)
        y[at:to].copy_(found.view(s.o, to - at, s.area).transpose(0, 1))
    return y.view(s.n, s.o, *s.out)


def input_gradient(engine: Engine, grad: Tensor, weight: Tensor, s: Shape, part: str) -> Tensor:
    """dx = sum over outputs that read x of weight * grad, rounded once: a convolution of grad, spread out.

    Between positions of grad lie stride - 1 zeros, around it as many as the kernel reaches over; the kernel is turned
    round. Zeros are terms, as padding is.
    """
    g, og, cg = s.groups, s.o // s.groups, s.c // s.groups
    whole = [((out - 1) * step + 1) for out, step in zip(s.out, s.stride, strict=True)]
    reach = [d * (k - 1) for d, k in zip(s.dilation, (s.kh, s.kw), strict=True)]
    spread = grad.new_zeros((s.n, s.o, *whole))
    spread[:, :, :: s.stride[0], :: s.stride[1]] = grad
    sizes = (s.h + reach[0], s.w + reach[1])
    before = [over - padding for over, padding in zip(reach, s.padding, strict=True)]
    edges = [(first, size - first - inner) for size, inner, first in zip(sizes, whole, before, strict=True)]
    spread = F.pad(spread, [max(0, end) for pair in reversed(edges) for end in pair])
    cut = [slice(max(0, -first), max(0, -first) + size) for size, first in zip(sizes, before, strict=True)]
    turned = weight.reshape(g, og, cg, s.kh, s.kw).flip(3, 4).transpose(1, 2).reshape(s.c, og, s.kh, s.kw)
    back = replace(s, c=s.o, h=sizes[0], w=sizes[1], o=s.c, stride=(1, 1), padding=(0, 0), out=(s.h, s.w))
    y = _sums(engine, spread[:, :, cut[0], cut[1]], turned, back)
    fmt = engine.format(grad.dtype)
    exactly = defined("input_gradient", s, _c(fmt), grad=grad, weight=weight)
    return engine.fixed(part, y, fmt, signed=True, definition=exactly)


def weight_gradient(engine: Engine, grad: Tensor, x: Tensor, s: Shape, part: str) -> Tensor:
    """dw[o, c, ky, kx] = sum over samples and positions of grad[o] * x, rounded once.

    A channel of grad has one scale, and what a tap reads of a channel of x has one: so two passes over the patches.
    """
    if s.n * s.area >= LONGEST:
        engine.refuse(f"sums of {s.n * s.area} terms; with matmul='integer' fewer than {LONGEST} are covered")
    g, og = s.groups, s.o // s.groups
    ranges = list(s.chunks(F64))

    def patches(at: int, to: int) -> Tensor:
        return columns(engine, x[at:to], s, F32, "columns").view(g, s.depth, -1)

    top_x = torch.zeros((g, s.depth, 1), dtype=F64, device=x.device)
    for at, to in ranges:
        top_x = torch.maximum(top_x, integers.tops(patches(at, to), 2))
    channels = by_channel(engine, grad, F32, "channels").view(g, og, -1)
    digits, by = digits_for(engine.format(grad.dtype)), carrier(x.device)
    found = integers.Product(engine.workspace, integers.tops(channels, 2), top_x.mT, digits, by)
    for at, to in ranges:
        found.add(channels[:, :, at * s.area : to * s.area], patches(at, to).mT, last=len(ranges) == 1)
    y = found.value()
    if not found.finite:
        whole = columns(engine, x, s, F32, "columns").view(g, s.depth, -1)
        y = integers.specials(y, channels, whole.mT)
    fmt = engine.format(grad.dtype)
    exactly = defined("weight_gradient", s, _c(fmt), grad=grad, x=x)
    return engine.fixed(part, y.reshape(s.o, s.c // g, s.kh, s.kw), fmt, signed=True, definition=exactly)

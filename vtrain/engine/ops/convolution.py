"""Convolutions as matrix products in C over columns of patches (numerics §2, class 3).

One chunk of samples at a time, so that the columns stay in the cache and memory stays bounded. Algorithms that trade
accuracy for speed (Winograd, FFT) can't be reached from here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F

from vtrain import kernels
from vtrain.engine.core import F32, F64, Engine
from vtrain.engine.definition import dtype_name
from vtrain.engine.ops import integer_convolution
from vtrain.engine.ops.geometry import Shape, as_2d, defined, shape_of, transposed_shape
from vtrain.engine.ops.matmul import permutation, row_norms
from vtrain.engine.ops.patches import by_channel, columns, image, unfolded
from vtrain.engine.ops.reduction import settled_sum
from vtrain.engine.optable import OpClass, register
from vtrain.kernels import canonical
from vtrain.rounding.bounds import forward_kappa, gradient_kappa
from vtrain.rounding.scale import Scale

Tensor = torch.Tensor


def _simple(s: Shape) -> bool:
    """Whether average pooling can add up a patch: no dilation, padding at most half the kernel, all that fits."""
    return s.dilation == (1, 1) and 2 * s.padding[0] <= s.kh and 2 * s.padding[1] <= s.kw and s.out == s.most


def _group_squares(x: Tensor, groups: int) -> Tensor:
    """Sum of squares over each group's channels: ``(samples * groups, 1, h, w)``, float64."""
    wide = x.to(F64).square_()
    return wide.reshape(x.shape[0] * groups, x.shape[1] // groups, *x.shape[2:]).sum(1, keepdim=True)


def patch_norms(engine: Engine, x: Tensor, s: Shape) -> Tensor:
    """Norm of each patch of each group: ``(samples * groups, area)``, float64."""
    squares = _group_squares(x, s.groups)
    if _simple(s):
        return F.avg_pool2d(squares, (s.kh, s.kw), s.stride, s.padding, divisor_override=1).flatten(1).sqrt()
    return columns(engine, squares, s, F64, "squares").sum(0).view(squares.shape[0], -1).sqrt()


def spread_norms(engine: Engine, grad: Tensor, s: Shape) -> Tensor:
    """For each input position the norm of the output gradients that reach it: ``(samples * groups, h * w)``."""
    squares = _group_squares(grad, s.groups)
    shape = (squares.shape[0], 1, s.h, s.w)
    if _simple(s):
        like = squares.new_empty(shape)
        args = ([s.kh, s.kw], list(s.stride), list(s.padding), False, True, 1)
        return torch.ops.aten.avg_pool2d_backward(squares, like, *args).flatten(1).sqrt()
    rows = squares.view(1, -1).expand(s.kh * s.kw, -1).contiguous()
    out = squares.new_empty(shape)
    image(rows, out, s)
    return out.flatten(1).sqrt()


def _chain(
    engine: Engine, kind: str, x: Tensor | None, weight: Tensor | None, grad: Tensor | None, bias: Tensor | None,
    s: Shape, part: str,
) -> Tensor:  # fmt: skip
    """One of the three products in its canonical order; the one of x, weight and grad that is None is computed."""
    given = next(t for t in (x, weight, grad) if t is not None)
    shapes = ((s.n, s.c, s.h, s.w), (s.o, s.c // s.groups, s.kh, s.kw), (s.n, s.o, *s.out))
    operands = tuple(
        torch.empty(shape, device=given.device) if t is None else engine.lift(t).contiguous()
        for t, shape in zip((x, weight, grad), shapes, strict=True)
    )
    key = (s.n, s.c, s.h, s.w, s.o, s.kh, s.kw, *s.stride, *s.padding, *s.dilation, *s.out, s.groups)
    plus = None if bias is None else engine.lift(bias)
    y = canonical.convolution(kind, operands[0], operands[1], operands[2], plus, key, engine.wide_chain)
    return engine.fixed(part, y, engine.format(given.dtype), signed=True)


def forward(engine: Engine, x: Tensor, weight: Tensor, bias: Tensor | None, s: Shape, part: str = "") -> Tensor:
    """y[o] = sum over the patch of weight[o] * x, + bias[o], rounded once: ``(n, o, oh, ow)``."""
    if engine.chain:
        return _chain(engine, "convolution", x, weight, None, bias, s, part)
    if engine.integer:
        return integer_convolution.forward(engine, x, weight, bias, s, part)
    c = engine.product_dtype_of(s.depth, x, weight, bias)
    g = s.groups
    y = engine.workspace.get("y", (s.n, s.o, s.area), c, x.device)

    def compute(into: Tensor, order: Tensor | None) -> None:
        w = engine.workspace.widen("w", weight.contiguous(), c).view(g, s.o // g, s.depth)
        for at, to in s.chunks(c):
            cols = columns(engine, x[at:to], s, c).view(g, s.depth, -1)
            if order is not None:
                w2, cols = w[:, :, order], cols[:, order]
            else:
                w2 = w
            out = engine.workspace.get("chunk", (g, s.o // g, cols.shape[-1]), c, x.device)
            torch.bmm(w2, cols, out=out)
            into[at:to].copy_(out.view(s.o, to - at, s.area).transpose(0, 1))
        if bias is not None:
            into.add_(bias.to(c).view(1, -1, 1))

    def scale() -> Scale:
        kappa = forward_kappa(s.depth, dtype_name(c))
        rows = row_norms(weight.reshape(s.o, s.depth)).view(1, -1).expand(s.n, -1).contiguous()
        shape = (s.n * g, s.o // g, s.area)
        cols = patch_norms(engine, x, s)
        found = Scale("conv", s.depth, kappa, shape, row=rows, col=cols, compute=dtype_name(c))
        if bias is None:
            return found
        full = found.dense(y).view(s.n, s.o, s.area).add_(bias.to(F64).abs().view(1, -1, 1))
        return replace(found, row=None, col=None, full=full)

    def vary() -> Tensor:
        other = torch.empty_like(y)
        compute(other, permutation(s.depth, x.device))
        return other

    compute(y, None)
    exactly = defined("convolution", s, dtype_name(c), x=x, weight=weight, bias=bias)
    y = engine.settle(part, y, scale, engine.format(x.dtype), vary, definition=exactly)
    return y.view(s.n, s.o, *s.out)


def input_gradient(engine: Engine, grad: Tensor, weight: Tensor, s: Shape, part: str) -> Tensor:
    """dx = sum over outputs that read x of weight * grad, rounded once: ``(n, c, h, w)``."""
    if engine.chain:
        return _chain(engine, "input_gradient", None, weight, grad, None, s, part)
    if engine.integer:
        return integer_convolution.input_gradient(engine, grad, weight, s, part)
    c = engine.product_dtype_of(s.o // s.groups * s.kh * s.kw, grad, weight)
    g, og, cg = s.groups, s.o // s.groups, s.c // s.groups
    y = engine.workspace.get("y", (s.n, s.c, s.h, s.w), c, grad.device)

    def compute(into: Tensor, order: Tensor | None) -> None:
        w = engine.workspace.widen("w", weight.contiguous(), c).view(g, og, s.depth).transpose(1, 2)
        for at, to in s.chunks(c):
            dy = by_channel(engine, grad[at:to], c).view(g, og, -1)
            w2, dy = (w, dy) if order is None else (w[:, :, order], dy[:, order])
            cols = engine.workspace.get("a", (g, s.depth, dy.shape[-1]), c, grad.device)
            torch.bmm(w2, dy, out=cols)
            image(cols.view(-1, dy.shape[-1]), into[at:to], s)

    terms = og * s.kh * s.kw

    def scale() -> Scale:
        by_input = weight.view(g, og, cg, -1).transpose(1, 2).reshape(s.c, -1)
        norms = row_norms(by_input)
        if not bool(norms.isfinite().all()):  # an element that an infinite tap does not reach is finite
            norms = row_norms(by_input.nan_to_num(0.0, 0.0, 0.0))
        rows = norms.view(1, -1).expand(s.n, -1).contiguous()
        kappa, shape = gradient_kappa(terms, dtype_name(c)), (s.n * g, cg, s.h * s.w)
        cols = spread_norms(engine, grad, s)
        return Scale("conv", terms, kappa, shape, row=rows, col=cols, compute=dtype_name(c))

    def vary() -> Tensor:
        other = torch.empty_like(y)
        compute(other, permutation(og, grad.device))
        return other

    compute(y, None)
    exactly = defined("input_gradient", s, dtype_name(c), grad=grad, weight=weight)
    return engine.settle(part, y, scale, engine.format(grad.dtype), vary, definition=exactly)


def weight_gradient(engine: Engine, grad: Tensor, x: Tensor, s: Shape, part: str) -> Tensor:
    """dw[o, c, ky, kx] = sum over samples and positions of grad[o] * x, rounded once: ``(o, c / groups, kh, kw)``."""
    if engine.chain:
        return _chain(engine, "weight_gradient", x, None, grad, None, s, part)
    if engine.integer:
        return integer_convolution.weight_gradient(engine, grad, x, s, part)
    c = engine.product_dtype_of(s.n * s.area, grad, x)
    g, og, cg = s.groups, s.o // s.groups, s.c // s.groups
    y = engine.workspace.get("y", (g, og, s.depth), c, grad.device)

    def compute(into: Tensor, backwards: bool) -> None:
        into.zero_()
        ranges = list(s.chunks(c))
        for at, to in reversed(ranges) if backwards else ranges:
            dy = by_channel(engine, grad[at:to], c).view(g, og, -1)
            cols = columns(engine, x[at:to], s, c).view(g, s.depth, -1)
            if backwards:
                order = permutation(dy.shape[-1], grad.device)
                dy, cols = dy[:, :, order], cols[:, :, order]
            into.baddbmm_(dy, cols.transpose(1, 2))

    terms = s.n * s.area

    def scale() -> Scale:
        rows = _channel_norms(grad)
        cols = _tap_norms(x, s).view(g, s.depth)
        kappa = gradient_kappa(terms, dtype_name(c))
        return Scale("conv", terms, kappa, (g, og, s.depth), row=rows, col=cols, compute=dtype_name(c))

    def vary() -> Tensor:
        other = torch.empty_like(y)
        compute(other, True)
        return other

    compute(y, False)
    exactly = defined("weight_gradient", s, dtype_name(c), grad=grad, x=x)
    y = engine.settle(part, y, scale, engine.format(grad.dtype), vary, definition=exactly)
    return y.view(s.o, cg, s.kh, s.kw)


def _channel_norms(x: Tensor) -> Tensor:
    """Norm of each channel over samples and positions, float64."""
    flat = x.reshape(*x.shape[:2], math.prod(x.shape[2:]))
    by_sample = row_norms(flat.contiguous())
    return by_sample.square_().sum(0).sqrt_()


def _tap_norms(x: Tensor, s: Shape) -> Tensor:
    """Norm of what each kernel tap reads of each channel, float64 ``(c, kh * kw)``; 0 where it only reads padding."""
    if x.device.type == "cpu":
        source = x.contiguous()
        source = source.to(F32) if source.dtype is torch.float16 else source
        return kernels.tap_squares(source, s.key(s.n, s.c)).sqrt_()
    return unfolded(x.to(F64), s).square_().sum((0, 2)).sqrt_().view(s.c, -1)


@register("convolution.default", cls=OpClass.VARYING, version=2)
def convolution(
    engine: Engine,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
) -> Tensor:
    """1-D and 2-D convolutions, grouped, dilated, transposed."""
    flat = x.dim() == 3
    x, weight, args = as_2d(engine, x, weight, (stride, padding, dilation))
    wanted = weight.shape[1] * groups if transposed else weight.shape[0]
    if bias is not None and list(bias.shape) != [wanted]:
        engine.refuse(f"a bias of {list(bias.shape)}; want {[wanted]}")
    if transposed:
        s = transposed_shape(engine, x.shape, weight, args, output_padding, groups)
        y = input_gradient(engine, x, weight, s, "transposed")
        if bias is not None:
            y = engine.finish(torch.add(engine.lift(y), engine.lift(bias).view(1, -1, 1, 1)), x.dtype)
    else:
        y = forward(engine, x, weight, bias, shape_of(engine, x.shape, weight, args, groups))
    return y.squeeze(2) if flat else y


def _want_gradient(engine: Engine, grad: Tensor, shape: tuple[int, ...]) -> None:
    if tuple(grad.shape) != shape:
        engine.refuse(f"a gradient of {list(grad.shape)}; want {list(shape)}")


@register("convolution_backward.default", cls=OpClass.VARYING, version=2)
def convolution_backward(
    engine: Engine,
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    bias_sizes: Sequence[int] | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
    mask: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of input, weight and bias."""
    flat = x.dim() == 3
    x, weight, args = as_2d(engine, x, weight, (stride, padding, dilation))
    grad = (grad.unsqueeze(2) if flat else grad).contiguous()
    dx = dw = db = None
    if transposed:
        s = transposed_shape(engine, x.shape, weight, args, output_padding, groups)
        _want_gradient(engine, grad, (s.n, s.c, s.h, s.w))
        dx = forward(engine, grad, weight, None, s, "dx") if mask[0] else None
        dw = weight_gradient(engine, x, grad, s, "dw") if mask[1] else None
    else:
        s = shape_of(engine, x.shape, weight, args, groups)
        _want_gradient(engine, grad, (s.n, s.o, *s.out))
        dx = input_gradient(engine, grad, weight, s, "dx") if mask[0] else None
        dw = weight_gradient(engine, grad, x, s, "dw") if mask[1] else None
    if mask[2]:
        db = settled_sum(engine, grad, [0, 2, 3], engine.format(grad.dtype), part="db")
    if flat:
        dx, dw = (None if t is None else t.squeeze(2) for t in (dx, dw))
    return dx, dw, db

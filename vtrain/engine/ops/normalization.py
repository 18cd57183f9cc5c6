"""Layer, batch, group and RMS norm (numerics §2, class 4): float32, a rounding after each operation."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from vtrain.engine.core import F32, Engine, over
from vtrain.engine.ops.functions import settle_function
from vtrain.engine.ops.reduction import mean_square, moments, product_sum, settled_sum
from vtrain.engine.optable import register
from vtrain.kernels import canonical
from vtrain.rounding.formats import FLOAT32

Tensor = torch.Tensor
Maybe = Tensor | None


def inverse_std(engine: Engine, variance: Tensor, eps: float) -> Tensor:
    """1 / sqrt(var + eps)."""
    return settle_function(engine, "rsqrt", torch.add(variance, eps), part="rsqrt")


@register("native_layer_norm.default")
def layer_norm(
    engine: Engine, x: Tensor, shape: Sequence[int], weight: Maybe, bias: Maybe, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """(x - mean) * rstd * weight + bias over the last dimensions; also mean and rstd, float32."""
    dims = list(range(x.dim() - len(shape), x.dim()))
    if engine.canonical:
        gain, shift = (None if t is None else engine.lift(t) for t in (weight, bias))
        y, mean, rstd = canonical.layer_norm(engine.lift(x), math.prod(shape), gain, shift, eps)
        kept = [*x.shape[: dims[0]], *[1] * len(dims)]
        return engine.rounded("", y, x.dtype), mean.view(kept), rstd.view(kept)
    mean, y, var = moments(engine, engine.lift(x).contiguous(), dims)
    rstd = inverse_std(engine, var, eps)
    y.mul_(rstd)
    if weight is not None:
        y.mul_(engine.lift(weight))
    if bias is not None:
        y.add_(engine.lift(bias))
    return engine.finish(y, x.dtype), mean, rstd


@register("native_layer_norm_backward.default")
def layer_norm_backward(
    engine: Engine,
    grad: Tensor,
    x: Tensor,
    shape: Sequence[int],
    mean: Tensor,
    rstd: Tensor,
    weight: Maybe,
    bias: Maybe,
    mask: Sequence[bool],
) -> tuple[Maybe, Maybe, Maybe]:
    """dx = rstd * (g - mean(g) - xhat * mean(g * xhat)), g = grad * weight; dw = sum(grad * xhat); db = sum(grad)."""
    inner = list(range(x.dim() - len(shape), x.dim()))
    outer = list(range(x.dim() - len(shape)))
    grad32 = engine.lift(grad).contiguous()
    if engine.canonical:
        return _fixed_layer_norm_backward(engine, grad32, x, math.prod(shape), mean, rstd, weight, bias, mask)
    xhat = torch.sub(engine.lift(x), engine.lift(mean)).mul_(engine.lift(rstd))
    dx = dw = db = None
    if mask[1] and weight is not None:
        dw = engine.finish(product_sum(engine, grad32, xhat, outer, "dw"), weight.dtype)
    if mask[2] and bias is not None:
        db = engine.finish(settled_sum(engine, grad32, outer, part="db"), bias.dtype)
    if mask[0]:
        g = grad32 if weight is None else torch.mul(grad32, engine.lift(weight))
        n = math.prod(shape)
        kept = mean.shape
        mean_g = settled_sum(engine, g, inner, part="mean_g", divisor=n).view(kept)
        mean_gx = settled_sum(engine, torch.mul(g, xhat), inner, part="mean_gx", divisor=n).view(kept)
        dx = engine.finish(torch.sub(g, mean_g).sub_(xhat.mul_(mean_gx)).mul_(engine.lift(rstd)), x.dtype)
    return dx, dw, db


def _fixed_layer_norm_backward(
    engine: Engine, grad: Tensor, x: Tensor, n: int, mean: Tensor, rstd: Tensor, weight: Maybe, bias: Maybe,
    mask: Sequence[bool],
) -> tuple[Maybe, Maybe, Maybe]:  # fmt: skip
    """The same bits in three passes over grad and x."""
    rows, inputs = grad.view(-1, n), engine.lift(x).reshape(-1, n)
    mean, rstd = engine.lift(mean).view(-1), engine.lift(rstd).view(-1)
    dx = dw = db = None
    if mask[1] and weight is not None:
        sums = canonical.sum_terms("normalised", [0], rows, inputs, mean, rstd)
        dw = engine.rounded("dw", sums, weight.dtype).view(weight.shape)
    if mask[2] and bias is not None:
        db = engine.rounded("db", canonical.sum_terms("value", [0], rows), bias.dtype)
        db = db.view(bias.shape)
    if mask[0]:
        gain = None if weight is None else engine.lift(weight)
        y = canonical.layer_norm_backward(inputs, n, rows, mean, rstd, gain)
        dx = engine.rounded("dx", y, x.dtype).view(x.shape)
    return dx, dw, db


@register("_fused_rms_norm.default")
def rms_norm(
    engine: Engine, x: Tensor, shape: Sequence[int], weight: Maybe, eps: float | None
) -> tuple[Tensor, Tensor]:
    """x / sqrt(mean(x^2) + eps) * weight; also rstd, float32."""
    dims = list(range(x.dim() - len(shape), x.dim()))
    x32 = engine.lift(x).contiguous()
    eps = torch.finfo(x.dtype).eps if eps is None else eps
    if engine.canonical:
        y, rstd = canonical.rms_norm(x32, math.prod(shape), None if weight is None else engine.lift(weight), eps)
        kept = [*x.shape[: dims[0]], *[1] * len(dims)]
        return engine.rounded("", y, x.dtype), rstd.view(kept)
    square = mean_square(engine, x32, dims, math.prod(shape), "mean_square")
    rstd = inverse_std(engine, square, eps).view([*x.shape[: dims[0]], *[1] * len(dims)])
    y = torch.mul(x32, rstd)
    if weight is not None:
        y.mul_(engine.lift(weight))
    return engine.finish(y, x.dtype), rstd


@register("_fused_rms_norm_backward.default")
def rms_norm_backward(
    engine: Engine, grad: Tensor, x: Tensor, shape: Sequence[int], rstd: Tensor, weight: Maybe, mask: Sequence[bool]
) -> tuple[Maybe, Maybe]:
    """dx = rstd * (g - xhat * mean(g * xhat)), g = grad * weight; dw = sum(grad * xhat)."""
    inner = list(range(x.dim() - len(shape), x.dim()))
    outer = list(range(x.dim() - len(shape)))
    grad32 = engine.lift(grad).contiguous()
    xhat = torch.mul(engine.lift(x), rstd)
    dw = None
    if mask[1] and weight is not None:
        dw = engine.finish(product_sum(engine, grad32, xhat, outer, "dw"), weight.dtype)
    if not mask[0]:
        return None, dw
    if engine.canonical:
        gain = None if weight is None else engine.lift(weight)
        y = canonical.rms_norm_backward(engine.lift(x), math.prod(shape), grad32, rstd, gain)
        return engine.rounded("dx", y, x.dtype), dw
    g = grad32 if weight is None else torch.mul(grad32, engine.lift(weight))
    mean_gx = settled_sum(engine, torch.mul(g, xhat), inner, part="mean_gx", divisor=math.prod(shape)).view(rstd.shape)
    return engine.finish(torch.sub(g, xhat.mul_(mean_gx)).mul_(rstd), x.dtype), dw


def _channels(v: Tensor, x: Tensor) -> Tensor:
    return v.view([1, -1] + [1] * (x.dim() - 2))


def _blend(running: Tensor, fresh: Tensor, momentum: float) -> None:
    """running = (1 - momentum) * running + momentum * fresh, in place."""
    running.copy_(torch.add(torch.mul(running.to(F32), 1 - momentum), torch.mul(fresh, momentum)))


def _batch_norm(
    engine: Engine,
    x: Tensor,
    weight: Maybe,
    bias: Maybe,
    mean: Maybe,
    var: Maybe,
    training: bool,
    momentum: float,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    dims = [0, *range(2, x.dim())]
    x32 = engine.lift(x).contiguous()
    if training:
        m, y, v = _channel_moments(engine, x32) if engine.canonical else moments(engine, x32, dims)
        n = x.numel() // x.shape[1]
        if mean is not None:
            _blend(mean, m.view(-1), momentum)
        if var is not None:
            _blend(var, torch.mul(v.view(-1), n / max(1, n - 1)), momentum)
        invstd = inverse_std(engine, v.view(-1), eps)
        saved = (m.view(-1), invstd)
    else:
        assert mean is not None and var is not None
        m, y = engine.lift(mean), x32 if engine.canonical else torch.sub(x32, _channels(engine.lift(mean), x))
        invstd = inverse_std(engine, engine.lift(var), eps)
        saved = (torch.empty(0, device=x.device), torch.empty(0, device=x.device))
    gain = invstd if weight is None else torch.mul(invstd, engine.lift(weight))
    if engine.canonical:
        y = canonical.channel_norm(x32, m.view(-1), gain, None if bias is None else engine.lift(bias))
        return engine.rounded("", y, x.dtype), *saved
    y.mul_(_channels(gain, x))
    if bias is not None:
        y.add_(_channels(engine.lift(bias), x))
    return engine.finish(y, x.dtype), *saved


def _channel_moments(engine: Engine, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """``moments`` over all but the channels, without the centred values (x stands for them)."""
    dims, n = [0, *range(2, x.dim())], x.numel() // max(1, x.shape[1])
    mean = engine.fixed("mean", over(canonical.sum_terms("value", dims, x), n), FLOAT32)
    var = engine.fixed("var", over(canonical.sum_terms("centred_square", dims, x, mean), n), FLOAT32)
    return mean, x, var


@register("native_batch_norm.default", "_native_batch_norm_legit.default")
def batch_norm(
    engine: Engine,
    x: Tensor,
    weight: Maybe,
    bias: Maybe,
    mean: Maybe,
    var: Maybe,
    training: bool,
    momentum: float,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """(x - mean) * (invstd * weight) + bias per channel; updates the running statistics in place."""
    return _batch_norm(engine, x, weight, bias, mean, var, training, momentum, eps)


@register("_native_batch_norm_legit.no_stats")
def batch_norm_no_stats(
    engine: Engine, x: Tensor, weight: Maybe, bias: Maybe, training: bool, momentum: float, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Batch norm without running statistics."""
    return _batch_norm(engine, x, weight, bias, None, None, training, momentum, eps)


@register("native_batch_norm_backward.default")
def batch_norm_backward(
    engine: Engine,
    grad: Tensor,
    x: Tensor,
    weight: Maybe,
    mean: Maybe,
    var: Maybe,
    save_mean: Maybe,
    save_invstd: Maybe,
    training: bool,
    eps: float,
    mask: Sequence[bool],
) -> tuple[Maybe, Maybe, Maybe]:
    """dx = (g - mean(g) - c * dot * invstd^2 / n) * (invstd * w), c = x - mean, dot = sum(g * c); dw = dot * invstd."""
    dims = [0, *range(2, x.dim())]
    n = x.numel() // x.shape[1]
    g = engine.lift(grad).contiguous()
    if training:
        assert save_mean is not None and save_invstd is not None
        centre, invstd = save_mean, save_invstd
    else:
        assert mean is not None and var is not None
        centre, invstd = engine.lift(mean), inverse_std(engine, engine.lift(var), eps)
    x32 = engine.lift(x).contiguous()
    total = settled_sum(engine, g, dims, part="sum")
    if engine.canonical:
        dot = engine.fixed("dot", canonical.sum_terms("centred_product", dims, g, x32, centre), FLOAT32)
    else:
        c = torch.sub(x32, _channels(centre, x)).contiguous()
        dot = product_sum(engine, g, c, dims, "dot")
    dw = engine.finish(torch.mul(dot, invstd), weight.dtype) if mask[1] and weight is not None else None
    db = engine.finish(total, x.dtype if weight is None else weight.dtype) if mask[2] else None
    if not mask[0]:
        return None, dw, db
    gain = invstd if weight is None else torch.mul(invstd, engine.lift(weight))
    if not training:
        return engine.finish(torch.mul(g, _channels(gain, x)), x.dtype), dw, db
    slope = over(torch.mul(torch.mul(dot, invstd), invstd), n)
    if engine.canonical:
        y = canonical.channel_norm_backward(x32, g, centre, over(total, n), slope, gain)
        return engine.rounded("dx", y, x.dtype), dw, db
    dx = torch.sub(g, _channels(over(total, n), x)).sub_(c.mul_(_channels(slope, x))).mul_(_channels(gain, x))
    return engine.finish(dx, x.dtype), dw, db


@register("native_group_norm.default")
def group_norm(
    engine: Engine, x: Tensor, weight: Maybe, bias: Maybe, n: int, channels: int, area: int, groups: int, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Layer norm within each sample's groups of channels, then weight and bias per channel."""
    grouped = engine.lift(x).contiguous().view(n, groups, channels // groups * area)
    mean, y, var = moments(engine, grouped, [2])
    rstd = inverse_std(engine, var, eps)
    y = y.mul_(rstd).view(n, channels, area)
    if weight is not None:
        y.mul_(_channels(engine.lift(weight), y))
    if bias is not None:
        y.add_(_channels(engine.lift(bias), y))
    return engine.finish(y.view(x.shape), x.dtype), mean.view(n, groups), rstd.view(n, groups)


@register("native_group_norm_backward.default")
def group_norm_backward(
    engine: Engine,
    grad: Tensor,
    x: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Maybe,
    n: int,
    channels: int,
    area: int,
    groups: int,
    mask: Sequence[bool],
) -> tuple[Maybe, Maybe, Maybe]:
    """As layer norm within each group; dw and db per channel."""
    g = engine.lift(grad).contiguous().view(n, channels, area)
    grouped = engine.lift(x).contiguous().view(n, groups, channels // groups * area)
    xhat = torch.sub(grouped, mean.view(n, groups, 1)).mul_(rstd.view(n, groups, 1)).view(n, channels, area)
    dw = db = None
    if mask[1] and weight is not None:
        dw = engine.finish(product_sum(engine, g, xhat, [0, 2], "dw"), weight.dtype)
    if mask[2]:
        db = engine.finish(settled_sum(engine, g, [0, 2], part="db"), x.dtype if weight is None else weight.dtype)
    if not mask[0]:
        return None, dw, db
    gw = (g if weight is None else torch.mul(g, _channels(engine.lift(weight), g))).view(grouped.shape)
    xhat = xhat.view(grouped.shape)
    count = gw.shape[2]
    mean_g = settled_sum(engine, gw, [2], part="mean_g", divisor=count).unsqueeze(2)
    mean_gx = settled_sum(engine, torch.mul(gw, xhat), [2], part="mean_gx", divisor=count).unsqueeze(2)
    dx = torch.sub(gw, mean_g).sub_(xhat.mul_(mean_gx)).mul_(rstd.view(n, groups, 1))
    return engine.finish(dx.view(x.shape), x.dtype), dw, db


@register("_weight_norm_interface_backward.default")
def weight_norm_backward(
    engine: Engine, grad: Tensor, v: Tensor, g: Tensor, norms: Tensor, dim: int
) -> tuple[Tensor, Tensor]:
    """Of w = v * (g / |v|): dg = dot / |v|, dv = (grad - v * (dot / |v|^2)) * (g / |v|), dot = sum(grad * v)."""
    dims = [d for d in range(v.dim()) if d != dim % v.dim()]
    grad32, v32, norm = engine.lift(grad), engine.lift(v), engine.lift(norms)
    dot = product_sum(engine, grad32, v32, dims, "dot").view(norm.shape)
    slope = torch.div(dot, torch.mul(norm, norm))
    dv = torch.sub(grad32, torch.mul(v32, slope)).mul_(torch.div(engine.lift(g), norm))
    return engine.finish(dv, v.dtype), engine.finish(torch.div(dot, norm), g.dtype)

"""Softmax, log-softmax and the losses on them (numerics §2, class 4).

All compute in float32 with a rounding after each operation, whatever the tensors' dtype, and round once at the end.
"""

from __future__ import annotations

import torch

from vtrain.engine.core import Engine, over
from vtrain.engine.ops.functions import exp32, log32, settle_function
from vtrain.engine.ops.reduction import normal_dims, settled_sum
from vtrain.engine.optable import register
from vtrain.kernels import canonical

Tensor = torch.Tensor


def _shifted(engine: Engine, x: Tensor, dim: int) -> Tensor:
    x = engine.lift(x)
    return torch.sub(x, x.amax(dim, keepdim=True).add_(0.0))  # a zero is +0, whichever one was found


def _sum_keep(engine: Engine, x: Tensor, dim: int, part: str) -> Tensor:
    total = settled_sum(engine, x, normal_dims(x, dim), part=part)
    return total.unsqueeze(dim) if x.dim() else total


def _out_dtype(x: Tensor, half_to_float: bool) -> torch.dtype:
    return torch.float32 if half_to_float else x.dtype


@register("_softmax.default", version=2)
def softmax(engine: Engine, x: Tensor, dim: int, half_to_float: bool) -> Tensor:
    """exp(x - max) / sum(exp(x - max))."""
    normal_dims(x, dim)
    if x.numel() == 0:
        return x.clone()
    if engine.canonical:
        return engine.rounded("", canonical.softmax("softmax", dim, x=engine.lift(x)), _out_dtype(x, half_to_float))
    e = exp32(engine, _shifted(engine, x, dim), "exp")
    return engine.finish(e.div_(_sum_keep(engine, e, dim, "sum")), _out_dtype(x, half_to_float))


@register("_safe_softmax.default")
def safe_softmax(engine: Engine, x: Tensor, dim: int, dtype: torch.dtype | None = None) -> Tensor:
    """Softmax that is 0 where a whole row is -inf."""
    y = softmax(engine, x if dtype is None else x.to(dtype), dim, False)
    return torch.where((x == float("-inf")).all(dim, keepdim=True), torch.zeros((), dtype=y.dtype, device=y.device), y)


@register("_log_softmax.default", version=2)
def log_softmax(engine: Engine, x: Tensor, dim: int, half_to_float: bool) -> Tensor:
    """(x - max) - log(sum(exp(x - max)))."""
    normal_dims(x, dim)
    if x.numel() == 0:
        return x.clone()
    if engine.canonical:
        return engine.rounded("", canonical.softmax("log_softmax", dim, x=engine.lift(x)), _out_dtype(x, half_to_float))
    shifted = _shifted(engine, x, dim)
    total = _sum_keep(engine, exp32(engine, shifted, "exp"), dim, "sum")
    return engine.finish(shifted.sub_(log32(engine, total, "log")), _out_dtype(x, half_to_float))


@register("_softmax_backward_data.default")
def softmax_backward(engine: Engine, grad: Tensor, y: Tensor, dim: int, dtype: torch.dtype) -> Tensor:
    """grad * y - y * sum(grad * y)."""
    grad, y = engine.lift(grad), engine.lift(y)
    if engine.canonical:
        return engine.rounded("", canonical.softmax("softmax", dim, y=y, grad=grad), dtype)
    gy = torch.mul(grad, y)
    return engine.finish(gy.sub_(torch.mul(y, _sum_keep(engine, gy, dim, "sum"))), dtype)


@register("_log_softmax_backward_data.default")
def log_softmax_backward(engine: Engine, grad: Tensor, y: Tensor, dim: int, dtype: torch.dtype) -> Tensor:
    """grad - exp(y) * sum(grad)."""
    grad = engine.lift(grad)
    if engine.canonical:
        return engine.rounded("", canonical.softmax("log_softmax", dim, y=engine.lift(y), grad=grad), dtype)
    e = exp32(engine, engine.lift(y), "exp")
    return engine.finish(torch.sub(grad, e.mul_(_sum_keep(engine, grad, dim, "sum"))), dtype)


def _picked(x: Tensor, target: Tensor, weight: Tensor | None, ignore: int) -> tuple[Tensor, Tensor, Tensor]:
    """(safe targets, mask of counted ones, weight of each) with the class dimension, 1, kept."""
    t = target.unsqueeze(1) if x.dim() > 1 else target.unsqueeze(0)
    mask = t != ignore
    safe = torch.where(mask, t, torch.zeros_like(t))
    shape = [1] * t.dim()
    shape[1 if x.dim() > 1 else 0] = -1
    w = (
        torch.ones(t.shape, dtype=torch.float32, device=x.device)
        if weight is None
        else (weight.to(torch.float32).view(shape).expand(x.shape).gather(1 if x.dim() > 1 else 0, safe))
    )
    return safe, mask, torch.where(mask, w, torch.zeros_like(w))


@register("nll_loss_forward.default", "nll_loss2d_forward.default")
def nll_loss_forward(
    engine: Engine, x: Tensor, target: Tensor, weight: Tensor | None, reduction: int, ignore_index: int
) -> tuple[Tensor, Tensor]:
    """-w[t] * x[t], its sum, or its sum over the sum of weights."""
    dim = 1 if x.dim() > 1 else 0
    safe, mask, w = _picked(x, target, weight, ignore_index)
    losses = torch.mul(w, -engine.lift(x).gather(dim, safe)).masked_fill_(~mask, 0.0).squeeze(dim)
    zero = torch.zeros((), dtype=x.dtype, device=x.device)
    if reduction == 0:
        return engine.finish(losses, x.dtype), zero
    total_weight = settled_sum(engine, w, list(range(w.dim())), part="weight")
    total = settled_sum(engine, losses, list(range(losses.dim())), part="sum")
    if reduction == 1:
        total = torch.div(total, total_weight)
    return engine.finish(total, x.dtype), engine.finish(total_weight, x.dtype)


@register("nll_loss_backward.default", "nll_loss2d_backward.default")
def nll_loss_backward(
    engine: Engine,
    grad: Tensor,
    x: Tensor,
    target: Tensor,
    weight: Tensor | None,
    reduction: int,
    ignore_index: int,
    total_weight: Tensor,
) -> Tensor:
    """-w[t] * grad at the targets, over the sum of weights for the mean; 0 elsewhere."""
    dim = 1 if x.dim() > 1 else 0
    safe, _, w = _picked(x, target, weight, ignore_index)
    g = engine.lift(grad)
    if reduction == 1:
        g = torch.div(g, engine.lift(total_weight))
    g = g.unsqueeze(dim) if reduction == 0 and x.dim() > 1 else g
    values = torch.mul(w, g).neg_()
    out = torch.zeros(x.shape, dtype=torch.float32, device=x.device).scatter_(dim, safe, values)
    return engine.finish(out, x.dtype)


def _reduce(engine: Engine, losses: Tensor, reduction: int, dtype: torch.dtype) -> Tensor:
    if reduction == 0:
        return engine.finish(losses, dtype)
    dims = list(range(losses.dim()))
    total = settled_sum(engine, losses, dims, part="sum", divisor=losses.numel() if reduction == 1 else 1.0)
    return engine.finish(total, dtype)


def _share(grad: Tensor, count: int, reduction: int) -> Tensor:
    return over(grad, count) if reduction == 1 else grad


@register("mse_loss.default")
def mse_loss(engine: Engine, x: Tensor, target: Tensor, reduction: int = 1) -> Tensor:
    """(x - target)^2, its sum or mean."""
    d = torch.sub(engine.lift(x), engine.lift(target))
    return _reduce(engine, torch.mul(d, d), reduction, x.dtype)


@register("mse_loss_backward.default")
def mse_loss_backward(engine: Engine, grad: Tensor, x: Tensor, target: Tensor, reduction: int) -> Tensor:
    """2 * (x - target) * grad."""
    d = torch.sub(engine.lift(x), engine.lift(target))
    return engine.finish(d.mul_(2.0).mul_(_share(engine.lift(grad), x.numel(), reduction)), x.dtype)


@register("smooth_l1_loss.default")
def smooth_l1_loss(engine: Engine, x: Tensor, target: Tensor, reduction: int = 1, beta: float = 1.0) -> Tensor:
    """d^2 / (2 beta) where |d| < beta, else |d| - beta / 2."""
    d = torch.sub(engine.lift(x), engine.lift(target)).abs_()
    near = over(torch.mul(torch.mul(d, d), 0.5), max(beta, 1e-45))
    return _reduce(engine, torch.where(d < beta, near, torch.sub(d, 0.5 * beta)), reduction, x.dtype)


@register("smooth_l1_loss_backward.default")
def smooth_l1_loss_backward(
    engine: Engine, grad: Tensor, x: Tensor, target: Tensor, reduction: int, beta: float
) -> Tensor:
    """grad * clamp(d / beta, -1, 1)."""
    d = torch.sub(engine.lift(x), engine.lift(target))
    slope = torch.where(d.abs() < beta, over(d, max(beta, 1e-45)), d.sign())
    return engine.finish(slope.mul_(_share(engine.lift(grad), x.numel(), reduction)), x.dtype)


@register("binary_cross_entropy_with_logits.default")
def bce_with_logits(
    engine: Engine,
    x: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    pos_weight: Tensor | None = None,
    reduction: int = 1,
) -> Tensor:
    """(1 - t) * x + w * (log1p(exp(-|x|)) + max(-x, 0)), w = 1 + (pos_weight - 1) * t."""
    x32, t = engine.lift(x), engine.lift(target)
    soft = settle_function(engine, "log1p", exp32(engine, -x32.abs(), "exp"), part="log1p")
    soft = soft.add_((-x32).clamp_min_(0.0))
    if pos_weight is not None:
        soft = torch.mul(soft, torch.add(torch.mul(torch.sub(engine.lift(pos_weight), 1.0), t), 1.0))
    losses = torch.add(torch.mul(torch.rsub(t, 1.0), x32), soft)
    if weight is not None:
        losses = torch.mul(losses, engine.lift(weight))
    return _reduce(engine, losses, reduction, x.dtype)

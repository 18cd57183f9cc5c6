"""Activations and fused multiply-adds as sequences of class 1-3 operations in float32 (numerics §2, class 4)."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from vtrain.engine.core import Engine, over
from vtrain.engine.ops.functions import exp32, settle_function
from vtrain.engine.optable import register
from vtrain.kernels import canonical
from vtrain.rounding.formats import FLOAT32

Tensor = torch.Tensor
SQRT_HALF, SQRT_2_OVER_PI, CUBIC = math.sqrt(0.5), math.sqrt(2 / math.pi), 0.044715
INV_SQRT_2PI = 1 / math.sqrt(2 * math.pi)


def _sigmoid(engine: Engine, x: Tensor) -> Tensor:
    return settle_function(engine, "sigmoid", x, part="sigmoid")


def _tanh(engine: Engine, x: Tensor) -> Tensor:
    return settle_function(engine, "tanh", x, part="tanh")


def unary(name: str, version: int = 1) -> Callable[[Callable[..., Tensor]], Callable[..., Tensor]]:
    """Register f(engine, float32 x, *args) -> float32 as an operation on x of any target."""

    def decorate(f: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def handler(engine: Engine, x: Tensor, *args: object, **kwargs: object) -> Tensor:
            return engine.finish(f(engine, engine.lift(x), *args, **kwargs), x.dtype)

        handler.__doc__ = f.__doc__
        register(f"{name}.default", version=version)(handler)
        return f

    return decorate


def binary(name: str, version: int = 1) -> Callable[[Callable[..., Tensor]], Callable[..., Tensor]]:
    """Register f(engine, float32 grad, float32 x, *args) -> float32: an activation's gradient."""

    def decorate(f: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def handler(engine: Engine, grad: Tensor, x: Tensor, *args: object, **kwargs: object) -> Tensor:
            return engine.finish(f(engine, engine.lift(grad), engine.lift(x), *args, **kwargs), x.dtype)

        handler.__doc__ = f.__doc__
        register(f"{name}.default", version=version)(handler)
        return f

    return decorate


def _gelu_kernel(approximate: str) -> str:
    return "gelu_erf" if approximate == "none" else "gelu_tanh"


@unary("gelu")
def gelu(engine: Engine, x: Tensor, approximate: str = "none") -> Tensor:
    """x/2 * (1 + erf(x / sqrt 2)), or x/2 * (1 + tanh(sqrt(2/pi) * (x + 0.044715 x^3)))."""
    if engine.canonical:
        return engine.fixed("", canonical.activation(_gelu_kernel(approximate), x), FLOAT32)
    if approximate == "none":
        inner = settle_function(engine, "erf", torch.mul(x, SQRT_HALF), part="erf")
    else:
        cube = torch.mul(x, x).mul_(x).mul_(CUBIC)
        inner = _tanh(engine, cube.add_(x).mul_(SQRT_2_OVER_PI))
    return inner.add_(1.0).mul_(torch.mul(x, 0.5))


@binary("gelu_backward")
def gelu_backward(engine: Engine, grad: Tensor, x: Tensor, approximate: str = "none") -> Tensor:
    """grad * d gelu / dx."""
    if engine.canonical:
        return engine.fixed("", canonical.activation(_gelu_kernel(approximate), x, grad), FLOAT32)
    if approximate == "none":
        cdf = settle_function(engine, "erf", torch.mul(x, SQRT_HALF), part="erf").add_(1.0).mul_(0.5)
        pdf = exp32(engine, torch.mul(x, x).mul_(-0.5), "exp").mul_(INV_SQRT_2PI)
        return cdf.add_(pdf.mul_(x)).mul_(grad)
    square = torch.mul(x, x)
    t = _tanh(engine, torch.mul(square, x).mul_(CUBIC).add_(x).mul_(SQRT_2_OVER_PI))
    left = torch.add(t, 1.0).mul_(0.5)
    slope = square.mul_(3 * CUBIC).add_(1.0).mul_(SQRT_2_OVER_PI)
    right = torch.rsub(t.mul_(t), 1.0).mul_(slope).mul_(torch.mul(x, 0.5))
    return left.add_(right).mul_(grad)


@binary("tanh_backward")
def tanh_backward(engine: Engine, grad: Tensor, y: Tensor) -> Tensor:
    """grad * (1 - y^2)."""
    return torch.mul(y, y).neg_().add_(1.0).mul_(grad)


@binary("sigmoid_backward")
def sigmoid_backward(engine: Engine, grad: Tensor, y: Tensor) -> Tensor:
    """grad * (1 - y) * y."""
    return torch.rsub(y, 1.0).mul_(y).mul_(grad)


@unary("silu", version=2)
def silu(engine: Engine, x: Tensor) -> Tensor:
    """x * sigmoid(x)."""
    if engine.canonical:
        return engine.fixed("", canonical.activation("silu", x), FLOAT32)
    return _sigmoid(engine, x).mul_(x)


@binary("silu_backward", version=2)
def silu_backward(engine: Engine, grad: Tensor, x: Tensor) -> Tensor:
    """grad * s * (1 + x * (1 - s)), s = sigmoid(x)."""
    if engine.canonical:
        return engine.fixed("", canonical.activation("silu", x, grad), FLOAT32)
    s = _sigmoid(engine, x)
    return torch.rsub(s, 1.0).mul_(x).add_(1.0).mul_(s).mul_(grad)


@unary("hardsigmoid")
def hardsigmoid(engine: Engine, x: Tensor) -> Tensor:
    """clamp(x + 3, 0, 6) / 6."""
    return over(torch.add(x, 3.0).clamp_(0.0, 6.0), 6.0)


@binary("hardsigmoid_backward")
def hardsigmoid_backward(engine: Engine, grad: Tensor, x: Tensor) -> Tensor:
    """grad / 6 where -3 < x < 3."""
    return over(grad, 6.0).masked_fill_((x <= -3) | (x >= 3), 0.0)


@unary("hardswish")
def hardswish(engine: Engine, x: Tensor) -> Tensor:
    """x * clamp(x + 3, 0, 6) / 6."""
    return over(torch.add(x, 3.0).clamp_(0.0, 6.0).mul_(x), 6.0)


@binary("hardswish_backward")
def hardswish_backward(engine: Engine, grad: Tensor, x: Tensor) -> Tensor:
    """0 below -3, grad above 3, grad * (x / 3 + 1/2) between."""
    inside = over(x, 3.0).add_(0.5).mul_(grad)
    return torch.where(x < -3, torch.zeros((), device=x.device), torch.where(x <= 3, inside, grad))


@unary("leaky_relu")
def leaky_relu(engine: Engine, x: Tensor, slope: float = 0.01) -> Tensor:
    """x above 0, slope * x below."""
    return torch.where(x > 0, x, torch.mul(x, slope))


@binary("leaky_relu_backward")
def leaky_relu_backward(engine: Engine, grad: Tensor, x: Tensor, slope: float, is_result: bool) -> Tensor:
    """grad above 0, slope * grad below."""
    return torch.where(x > 0, grad, torch.mul(grad, slope))


@unary("elu")
def elu(engine: Engine, x: Tensor, alpha: float = 1, scale: float = 1, input_scale: float = 1) -> Tensor:
    """scale * x above 0, scale * alpha * (exp(input_scale * x) - 1) below."""
    below = settle_function(engine, "expm1", torch.mul(x, input_scale), part="expm1").mul_(alpha * scale)
    return torch.where(x > 0, torch.mul(x, scale), below)


@register("elu_backward.default")
def elu_backward(
    engine: Engine, grad: Tensor, alpha: float, scale: float, input_scale: float, is_result: bool, x: Tensor
) -> Tensor:
    """grad * scale above 0, grad * input_scale * scale * alpha * exp(input_scale * x) below."""
    g, v = engine.lift(grad), engine.lift(x)
    if is_result:
        below = torch.add(v, alpha * scale).mul_(input_scale)
    else:
        below = exp32(engine, torch.mul(v, input_scale), "exp").mul_(input_scale * scale * alpha)
    return engine.finish(torch.where(v > 0, torch.mul(g, scale), below.mul_(g)), grad.dtype)


@unary("softplus")
def softplus(engine: Engine, x: Tensor, beta: float = 1, threshold: float = 20) -> Tensor:
    """log1p(exp(beta * x)) / beta, x where beta * x is above the threshold."""
    if engine.canonical:
        return engine.fixed("", canonical.activation("softplus", x, None, float(beta), float(threshold)), FLOAT32)
    z = torch.mul(x, beta)
    soft = settle_function(engine, "log1p", exp32(engine, z, "exp"), part="log1p")
    return torch.where(z > threshold, x, over(soft, beta))


@binary("softplus_backward", version=2)
def softplus_backward(engine: Engine, grad: Tensor, x: Tensor, beta: float, threshold: float) -> Tensor:
    """grad * sigmoid(beta * x), grad above the threshold."""
    if engine.canonical:
        return engine.fixed("", canonical.activation("softplus", x, grad, float(beta), float(threshold)), FLOAT32)
    z = torch.mul(x, beta)
    return torch.where(z > threshold, grad, _sigmoid(engine, z).mul_(grad))


@unary("mish")
def mish(engine: Engine, x: Tensor) -> Tensor:
    """x * tanh(log1p(exp(x)))."""
    soft = softplus(engine, x)
    return _tanh(engine, soft).mul_(x)


@binary("mish_backward", version=2)
def mish_backward(engine: Engine, grad: Tensor, x: Tensor) -> Tensor:
    """grad * (t + x * s * (1 - t^2)), t = tanh(softplus(x)), s = sigmoid(x)."""
    t, s = _tanh(engine, softplus(engine, x)), _sigmoid(engine, x)
    return torch.mul(t, t).neg_().add_(1.0).mul_(s).mul_(x).add_(t).mul_(grad)


@register("log_sigmoid_forward.default")
def log_sigmoid(engine: Engine, x: Tensor) -> tuple[Tensor, Tensor]:
    """min(x, 0) - log1p(exp(-|x|)); the second result is unused."""
    v = engine.lift(x)
    soft = settle_function(engine, "log1p", exp32(engine, v.abs().neg_(), "exp"), part="log1p")
    return engine.finish(v.clamp_max(0.0).sub_(soft), x.dtype), torch.empty(0, dtype=x.dtype, device=x.device)


@register("log_sigmoid_backward.default", version=2)
def log_sigmoid_backward(engine: Engine, grad: Tensor, x: Tensor, buffer: Tensor) -> Tensor:
    """grad * sigmoid(-x)."""
    return engine.finish(_sigmoid(engine, -engine.lift(x)).mul_(engine.lift(grad)), x.dtype)


@register("addcmul.default")
def addcmul(engine: Engine, x: Tensor, a: Tensor, b: Tensor, value: float = 1) -> Tensor:
    """x + (value * a) * b, unfused."""
    return engine.finish(torch.add(engine.lift(x), torch.mul(engine.lift(a), value).mul(engine.lift(b))), x.dtype)


@register("addcdiv.default")
def addcdiv(engine: Engine, x: Tensor, a: Tensor, b: Tensor, value: float = 1) -> Tensor:
    """x + (value * a) / b, unfused."""
    return engine.finish(torch.add(engine.lift(x), torch.mul(engine.lift(a), value).div(engine.lift(b))), x.dtype)


@register("lerp.Scalar", "lerp.Tensor")
def lerp(engine: Engine, x: Tensor, end: Tensor, weight: float | Tensor) -> Tensor:
    """x + weight * (end - x), from the nearer end: end - (end - x) * (1 - weight) where weight >= 1/2; unfused."""
    a, b = engine.lift(x), engine.lift(end)
    d = torch.sub(b, a)
    if isinstance(weight, Tensor):
        w = engine.lift(weight)
        y = torch.where(w.abs() < 0.5, torch.add(a, torch.mul(d, w)), torch.sub(b, torch.mul(d, torch.rsub(w, 1.0))))
    elif abs(weight) < 0.5:
        y = d.mul_(weight).add_(a)
    else:
        y = torch.sub(b, d.mul_(1 - weight))
    return engine.finish(y, x.dtype)


@register("native_dropout_backward.default")
def dropout_backward(engine: Engine, grad: Tensor, mask: Tensor, scale: float) -> Tensor:
    """grad * mask * scale."""
    return engine.finish(torch.mul(engine.lift(grad), mask.to(torch.float32)).mul_(scale), grad.dtype)


@register("glu.default", version=2)
def glu(engine: Engine, x: Tensor, dim: int = -1) -> Tensor:
    """First half times the sigmoid of the second."""
    a, b = engine.lift(x).chunk(2, dim)
    return engine.finish(_sigmoid(engine, b.contiguous()).mul_(a), x.dtype)


@register("glu_backward.default", version=2)
def glu_backward(engine: Engine, grad: Tensor, x: Tensor, dim: int) -> Tensor:
    """(grad * s, grad * a * s * (1 - s))."""
    g = engine.lift(grad)
    a, b = engine.lift(x).chunk(2, dim)
    s = _sigmoid(engine, b.contiguous())
    left = torch.mul(g, s)
    right = torch.rsub(s, 1.0).mul_(s).mul_(a).mul_(g)
    return engine.finish(torch.cat([left, right], dim), x.dtype)

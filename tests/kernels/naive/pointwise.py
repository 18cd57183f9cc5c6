"""Functions, which are the kernels' own, with tests of their own, and activations made of them in float32."""

from __future__ import annotations

import math

import numpy as np
import torch

from naive.bits import F32, Array, quietly
from vtrain.kernels import canonical


def function(name: str, x: Array) -> Array:
    """The kernels' own function in float64, rounded to float32."""
    wide = canonical.function(name, torch.from_numpy(np.ascontiguousarray(x)), torch.float64)
    return wide.numpy().astype(F32)


_SQRT_HALF, _SQRT_2_OVER_PI, _CUBIC = F32(math.sqrt(0.5)), F32(math.sqrt(2 / math.pi)), F32(0.044715)
_INV_SQRT_2PI, _THREE_CUBIC = F32(1 / math.sqrt(2 * math.pi)), F32(3 * 0.044715)
_HALF, _ONE = F32(0.5), F32(1.0)


def _gelu_erf(x: Array, grad: Array | None) -> Array:
    inner = function("erf", x * _SQRT_HALF) + _ONE
    if grad is None:
        return inner * (x * _HALF)
    pdf = function("exp", (x * x) * -_HALF) * _INV_SQRT_2PI
    return (inner * _HALF + pdf * x) * grad


def _gelu_tanh(x: Array, grad: Array | None) -> Array:
    square = x * x
    t = function("tanh", ((square * x) * _CUBIC + x) * _SQRT_2_OVER_PI)
    if grad is None:
        return (t + _ONE) * (x * _HALF)
    slope = (square * _THREE_CUBIC + _ONE) * _SQRT_2_OVER_PI
    right = ((_ONE - t * t) * slope) * (x * _HALF)
    return ((t + _ONE) * _HALF + right) * grad


def _silu(x: Array, grad: Array | None) -> Array:
    s = function("sigmoid", x)
    return s * x if grad is None else (((_ONE - s) * x + _ONE) * s) * grad


@quietly
def activation(name: str, x: Array, grad: Array | None) -> Array:
    """``gelu_erf``, ``gelu_tanh`` or ``silu``; with grad, its gradient."""
    return {"gelu_erf": _gelu_erf, "gelu_tanh": _gelu_tanh, "silu": _silu}[name](x, grad)


@quietly
def softplus(x: Array, grad: Array | None, beta: float, threshold: float) -> Array:
    """log1p(exp(beta * x)) / beta, x above the threshold; with grad, its gradient."""
    z = x * F32(beta)
    if grad is None:
        return np.where(z > F32(threshold), x, function("log1p", function("exp", z)) / F32(beta))
    return np.where(z > F32(threshold), grad, function("sigmoid", z) * grad)

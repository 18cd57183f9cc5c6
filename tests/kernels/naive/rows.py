"""Softmax and the norms of rows, in NumPy's float32, one operation at a time."""

from __future__ import annotations

from naive.bits import F32, F64, Array, quietly
from naive.pointwise import function
from naive.sums import totals


def _columns(values: Array) -> Array:
    return values.astype(F32)[:, None]


def _shifted(x: Array) -> Array:
    return x - (x.max(1, keepdims=True) + F32(0.0))


@quietly
def softmax(x: Array) -> Array:
    """Of rows: e / sum(e), e = exp(x - max)."""
    e = function("exp", _shifted(x))
    return e / _columns(totals(e))


@quietly
def log_softmax(x: Array) -> Array:
    """Of rows: (x - max) - log(sum(exp(x - max)))."""
    sums = _columns(totals(function("exp", _shifted(x))))
    return _shifted(x) - function("log", sums)


@quietly
def softmax_backward(y: Array, grad: Array) -> Array:
    """grad * y - y * sum(grad * y)."""
    products = grad * y
    return products - y * _columns(totals(products))


@quietly
def log_softmax_backward(y: Array, grad: Array) -> Array:
    """grad - exp(y) * sum(grad)."""
    return grad - function("exp", y) * _columns(totals(grad))


def _means(terms: Array) -> Array:
    return (totals(terms) / F64(terms.shape[1])).astype(F32)


@quietly
def layer_norm(x: Array, weight: Array | None, bias: Array | None, eps: float) -> tuple[Array, Array, Array]:
    """Of rows: (x - mean) * rstd * weight + bias, mean, rstd."""
    mean = _means(x)
    y = x - mean[:, None]
    rstd = function("rsqrt", _means(y.astype(F64) * y.astype(F64)) + F32(eps))
    y = y * rstd[:, None]
    y = y if weight is None else y * weight
    return y if bias is None else y + bias, mean, rstd


@quietly
def layer_norm_backward(x: Array, grad: Array, mean: Array, rstd: Array, weight: Array | None) -> Array:
    """rstd * ((g - mean(g)) - xhat * mean(g * xhat))."""
    g = grad if weight is None else grad * weight
    xhat = (x - mean[:, None]) * rstd[:, None]
    return ((g - _means(g)[:, None]) - xhat * _means(g * xhat)[:, None]) * rstd[:, None]


@quietly
def rms_norm(x: Array, weight: Array | None, eps: float) -> tuple[Array, Array]:
    """Of rows: x * rstd * weight, rstd."""
    rstd = function("rsqrt", _means(x.astype(F64) * x.astype(F64)) + F32(eps))
    y = x * rstd[:, None]
    return y if weight is None else y * weight, rstd


@quietly
def rms_norm_backward(x: Array, grad: Array, rstd: Array, weight: Array | None) -> Array:
    """rstd * (g - xhat * mean(g * xhat))."""
    g = grad if weight is None else grad * weight
    xhat = x * rstd[:, None]
    return (g - xhat * _means(g * xhat)[:, None]) * rstd[:, None]

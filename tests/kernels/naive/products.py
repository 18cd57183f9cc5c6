"""Twins of the canonical kernels, written from the definitions beside them: slow, obviously right.

Chains of fused multiply-adds are done in whole numbers, sums in Python's floats (float64), the rest in NumPy's float32,
one operation at a time. Elementary functions are the kernels' own, in float64: they have tests of their own.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from vtrain.kernels import canonical

Array = np.ndarray
F32, F64 = np.float32, np.float64
LANES, SEGMENT = 32, 16384


def quietly(f: Callable[..., Any]) -> Callable[..., Any]:
    """f without NumPy's warnings of overflow and of operations on infinities."""

    @functools.wraps(f)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        with np.errstate(all="ignore"):
            return f(*args, **kwargs)

    return wrapped


# ---- numbers and bits -----------------------------------------------------------------------------------------------
def assert_same(got: torch.Tensor, want: Array, what: str = "") -> None:
    """Equal shape, type and bits; any NaN equals any other."""
    have = got.detach().cpu().numpy()
    assert have.shape == want.shape and have.dtype == want.dtype, (what, have.shape, want.shape, have.dtype, want.dtype)
    words = {4: np.uint32, 8: np.uint64}[want.dtype.itemsize]
    a, b = np.ascontiguousarray(have).view(words), np.ascontiguousarray(want).view(words)
    wrong = np.argwhere((a != b) & ~(np.isnan(have) & np.isnan(want)))
    at = tuple(wrong[0]) if len(wrong) else ()
    assert not len(wrong), (
        f"{what}: {len(wrong)} differ, first at {at}: {float(have[at]).hex()} {float(want[at]).hex()}"
    )


SPECIAL = [0.0, -0.0, math.inf, -math.inf, math.nan, 1e-45, -1e-45, 1.1754942e-38, 3.4028235e38, -3.4028235e38, 1.0]


def numbers(*shape: int, seed: int = 0, spread: int = 16, special: float = 0.0) -> torch.Tensor:
    """Normal variates times powers of two up to 2^spread either way; a share of them special numbers."""
    rng = np.random.default_rng([seed, *shape])
    x = np.ldexp(rng.standard_normal(shape), rng.integers(-spread, spread + 1, shape)).astype(F32)
    x = np.where(rng.random(shape) < special, rng.choice(np.array(SPECIAL, F32), shape), x)
    return torch.from_numpy(x)


def strange(*shape: int, seed: int = 0) -> torch.Tensor:
    """As ``numbers`` across the whole range of float32, subnormals and infinities included, a twentieth special."""
    rng = np.random.default_rng([seed, *shape])
    with np.errstate(over="ignore"):
        x = np.ldexp(rng.standard_normal(shape), rng.integers(-150, 128, shape)).astype(F32)
    return torch.from_numpy(np.where(rng.random(shape) < 0.05, rng.choice(np.array(SPECIAL, F32), shape), x))


def half_way(n: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Factors (1, n, 2) and (1, 2, 1) whose sums lie beside the middle of two floats, too close to it for float64.

    A float with an odd last bit, plus or minus half a unit of that bit less 2^-46 of it: the float itself is nearest,
    but from the middle, which float64 makes of the sum, one rounds to an even last bit.
    """
    rng = np.random.default_rng([seed, n])
    odd, unit = 2 * rng.integers(2**22, 2**23, n) + 1, np.ldexp(1.0, rng.integers(-90, 90, n))
    signs = rng.choice([-1.0, 1.0], (2, n))
    a = np.stack([signs[0] * odd * unit, signs[1] * unit / 2 * (1 + 2.0**-23)], 1).astype(F32)
    return torch.from_numpy(a)[None], torch.tensor([[[1.0], [1 - 2.0**-23]]])


def array(t: torch.Tensor | None) -> Array | None:
    """The tensor's values in an array of its own."""
    return None if t is None else np.array(t.numpy())


# ---- chains ---------------------------------------------------------------------------------------------------------
class Binary(NamedTuple):
    """A format: significant bits, exponent of the least number, exponent from which on numbers overflow."""

    bits: int
    least: int
    top: int


FLOAT, DOUBLE = Binary(24, -149, 128), Binary(53, -1074, 1024)
_UNIT = 298  # a float32 is a whole multiple of 2^-149, a product of two of them one of 2^-298


def whole(x: float, unit: int) -> int:
    """x in units of 2^-unit, which is a whole number."""
    y = math.ldexp(x, unit)
    assert y == int(y)
    return int(y)


def nearest_whole(x: int, bits: int, coarse: int) -> int:
    """x >= 0 to the nearest multiple of 2^coarse that has so many significant bits, ties to even."""
    drop = max(x.bit_length() - bits, coarse, 0)
    quotient, rest = divmod(x, 1 << drop)
    if 2 * rest > 1 << drop or (2 * rest == 1 << drop and quotient % 2):
        quotient += 1
    return quotient << drop


def fused(a: float, b: float, c: float, to: Binary) -> float:
    """a * b + c rounded once, for a and b of float32; c is of the format."""
    if not (math.isfinite(a) and math.isfinite(b) and math.isfinite(c)):
        return a * b + c  # infinite or NaN: IEEE says which, and float64 does not overflow on the way
    exact = whole(a, 149) * whole(b, 149) + whole(c, _UNIT)
    if exact == 0:
        return a * b + c  # an exact zero, and float64 gives its sign
    y = nearest_whole(abs(exact), to.bits, to.least + _UNIT)
    magnitude = math.inf if y >= 1 << (to.top + _UNIT) else math.ldexp(float(y), -_UNIT)
    return math.copysign(magnitude, exact)


def chain(a: Sequence[float], b: Sequence[float], to: Binary) -> float:
    """The chain of fused multiply-adds over the terms, ascending, from +0."""
    total = 0.0
    for x, y in zip(a, b, strict=True):
        total = fused(x, y, total, to)
    return total


def _kind(wide: bool) -> Binary:
    return DOUBLE if wide else FLOAT


@quietly
def product(a: Array, b: Array, bias: Array | None, alpha: float, beta: float, wide: bool) -> Array:
    """alpha * chain + beta * bias, each operation rounded to float32; bias of the result's shape."""
    batch, m, _ = a.shape
    y = np.empty((batch, m, b.shape[2]), F32)
    for e, i, j in np.ndindex(*y.shape):
        total = F32(chain(a[e, i].tolist(), b[e, :, j].tolist(), _kind(wide)))
        scaled = F32(alpha) * total
        y[e, i, j] = scaled if bias is None else scaled + F32(beta) * bias[e, i, j]
    return y


class Geometry(NamedTuple):
    """A convolution's sizes, in the order in which the kernels take them."""

    n: int
    c: int
    h: int
    w: int
    o: int
    kh: int
    kw: int
    sh: int
    sw: int
    ph: int
    pw: int
    dh: int
    dw: int
    oh: int
    ow: int
    groups: int

    @classmethod
    def of(cls, x: Sequence[int], weight: Sequence[int], stride: Sequence[int], padding: Sequence[int],
           dilation: Sequence[int], groups: int) -> Geometry:  # fmt: skip
        """From the shapes of x and weight."""
        sizes = zip(x[2:], weight[2:], stride, padding, dilation, strict=True)
        out = [(i + 2 * p - d * (k - 1) - 1) // s + 1 for i, k, s, p, d in sizes]
        return cls(*x, weight[0], *weight[2:], *stride, *padding, *dilation, *out, groups)

    def read(self, x: Array, sample: int, channel: int, at: tuple[int, int], tap: tuple[int, int]) -> float:
        """What an output position's tap reads; 0 in the padding."""
        row = at[0] * self.sh - self.ph + tap[0] * self.dh
        column = at[1] * self.sw - self.pw + tap[1] * self.dw
        return float(x[sample, channel, row, column]) if 0 <= row < self.h and 0 <= column < self.w else 0.0

    def spread(self, grad: Array, sample: int, channel: int, at: tuple[int, int], tap: tuple[int, int]) -> float:
        """The gradient of the output that reads an input position by a tap; 0 where there is none."""
        row, odd_row = divmod(at[0] + self.ph - tap[0] * self.dh, self.sh)
        column, odd_column = divmod(at[1] + self.pw - tap[1] * self.dw, self.sw)
        inside = 0 <= row < self.oh and 0 <= column < self.ow and not odd_row and not odd_column
        return float(grad[sample, channel, row, column]) if inside else 0.0


def _taps(g: Geometry) -> list[tuple[int, int]]:
    return list(itertools.product(range(g.kh), range(g.kw)))


@quietly
def convolution(x: Array, weight: Array, bias: Array | None, g: Geometry, wide: bool) -> Array:
    """Chain over (channel, y tap, x tap), plus the bias."""
    y, each, outs = np.empty((g.n, g.o, g.oh, g.ow), F32), g.c // g.groups, g.o // g.groups
    for s, o, *at in np.ndindex(*y.shape):
        first = o // outs * each
        terms = [(weight[o, c, *tap], g.read(x, s, first + c, at, tap)) for c in range(each) for tap in _taps(g)]
        total = F32(chain([float(a) for a, _ in terms], [b for _, b in terms], _kind(wide)))
        y[s, o, *at] = total if bias is None else total + bias[o]
    return y


@quietly
def input_gradient(weight: Array, grad: Array, g: Geometry, wide: bool) -> Array:
    """Chain over (output channel, y tap, x tap)."""
    y, each, outs = np.empty((g.n, g.c, g.h, g.w), F32), g.c // g.groups, g.o // g.groups
    for s, c, *at in np.ndindex(*y.shape):
        first = c // each * outs
        of = [(first + o, tap) for o in range(outs) for tap in _taps(g)]
        a = [float(weight[o, c % each, *tap]) for o, tap in of]
        y[s, c, *at] = F32(chain(a, [g.spread(grad, s, o, at, tap) for o, tap in of], _kind(wide)))
    return y


@quietly
def weight_gradient(x: Array, grad: Array, g: Geometry, wide: bool) -> Array:
    """Chain over (sample, output position)."""
    y, each, outs = np.empty((g.o, g.c // g.groups, g.kh, g.kw), F32), g.c // g.groups, g.o // g.groups
    of = [(s, (row, column)) for s in range(g.n) for row in range(g.oh) for column in range(g.ow)]
    for o, c, *tap in np.ndindex(*y.shape):
        a = [float(grad[s, o, *at]) for s, at in of]
        y[o, c, *tap] = F32(chain(a, [g.read(x, s, o // outs * each + c, at, tap) for s, at in of], _kind(wide)))
    return y


# ---- sums -----------------------------------------------------------------------------------------------------------
def total(terms: Sequence[float]) -> float:
    """The sum of float64 terms: segments, in them lanes, over these a tree; the segments are added to +0, ascending."""
    y = 0.0
    for start in range(0, len(terms), SEGMENT):
        lanes = [0.0] * LANES
        for i, term in enumerate(terms[start : start + SEGMENT]):
            lanes[i % LANES] += term
        for half in (16, 8, 4, 2, 1):
            lanes = [lanes[q] + lanes[q + half] for q in range(half)]
        y += lanes[0]
    return y


def totals(terms: Array) -> Array:
    """The sum of each row."""
    return np.array([total(row) for row in terms.astype(F64).tolist()], F64)


@quietly
def sum_terms(kind: str, dims: Sequence[int], x: Array, *others: Array) -> Array:
    """Sums over dims; the terms in row-major order of dims."""
    kept = [d for d in range(x.ndim) if d not in dims]
    shape = [x.shape[d] for d in kept]
    count = math.prod(x.shape[d] for d in dims)

    def rows(v: Array) -> Array:
        return v.transpose(*kept, *dims).reshape(math.prod(shape), count)

    a = rows(x)
    if kind == "value":
        terms = a.astype(F64)
    elif kind == "square":
        terms = a.astype(F64) * a.astype(F64)
    elif kind == "centred_square":
        centred = (a - others[0].reshape(-1, 1)).astype(F64)
        terms = centred * centred
    elif kind == "product":
        terms = a * rows(others[0])
    elif kind == "centred_product":
        terms = a * (rows(others[0]) - others[1].reshape(-1, 1))
    else:
        terms = a * ((rows(others[0]) - others[1].reshape(1, -1)) * others[2].reshape(1, -1))
    return totals(terms).reshape(shape)


@quietly
def running_sum(x: Array, dim: int) -> Array:
    """Running sums in float64, ascending."""
    lines = np.moveaxis(x.astype(F64), dim, -1)
    y = np.array([list(itertools.accumulate(line.tolist())) for line in lines.reshape(-1, lines.shape[-1])], F64)
    return np.moveaxis((0.0 + y).reshape(lines.shape), -1, dim)


@quietly
def scatter(values: Array, index: Array, rows: int, x: Array | None, alpha: float) -> Array:
    """Terms alpha * value in float32, added in float64 to their row, ascending."""
    y = np.zeros((rows, values.shape[1]), F64) if x is None else x.astype(F64)
    for row, value in zip(index, values, strict=True):
        y[row] = y[row] + (F32(alpha) * value).astype(F64)
    return y


# ---- composites: float32 arrays, one operation at a time ------------------------------------------------------------
def function(name: str, x: Array) -> Array:
    """The kernels' own function in float64, rounded to float32."""
    wide = canonical.function(name, torch.from_numpy(np.ascontiguousarray(x)), torch.float64)
    return wide.numpy().astype(F32)


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


# ---- activations ----------------------------------------------------------------------------------------------------
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

"""Draws of other distributions, from uniform and normal ones (numerics §2, class 5).

All of it is float64: IEEE operations in the order written and canonical functions, under every policy. So whatever is
compared, and with it each decision to draw again, is the same on every machine, and nothing is logged. A result is
rounded once. Every vector of numbers has a stream of its own, named by its place in the operation; element i of it
belongs to the i-th element that still needs one.
"""

from __future__ import annotations

import torch

from vtrain.engine.core import F32, F64, Engine
from vtrain.engine.ops.functions import canonical_function
from vtrain.engine.ops.random import RANDOM, Generator, normal, uniform
from vtrain.engine.optable import forbid, register
from vtrain.kernels import canonical

Tensor = torch.Tensor
_TINY = torch.finfo(F32).tiny  # torch's own lower bound of gamma draws
_DIRECT = 16  # Poisson rates below, and binomial counts up to this, are drawn one event at a time


class Stream:
    """Vectors of numbers for one operation.

    Args:
        engine, generator: what the operation got; the generator goes on by one draw.
        device: where the numbers go.
    """

    def __init__(self, engine: Engine, generator: Generator, device: torch.device) -> None:
        self._source, self._draw = engine.next_draw(generator)
        self._device = device
        self._vectors = 0

    def uniform(self, n: int) -> Tensor:
        """Multiples of 2^-53 in (0, 1], float64 (n,)."""
        self._vectors += 1
        return self._source.part(f"vector-{self._vectors}").exponential_parts((n,), *self._draw, device=self._device)

    def normal(self, n: int) -> Tensor:
        """Standard normal, rounded to float32, as float64 (n,)."""
        self._vectors += 1
        return self._source.part(f"vector-{self._vectors}").normal((n,), *self._draw, device=self._device).to(F64)


# ---- samplers, on vectors of float64 ---------------------------------------------------------------------------------
def gamma(stream: Stream, shape: Tensor) -> Tensor:
    """Gamma draws of scale 1: Marsaglia and Tsang, "A simple method for generating gamma variables" (2000).

    A shape below 1 is raised by 1, and the draw multiplied by u^(1 / shape) (their §6).

    Args:
        shape: float64 (n,), positive and finite.

    Returns:
        float64 (n,), which may underflow to 0.
    """
    low = shape < 1
    d = torch.where(low, shape + 1.0, shape) - 1.0 / 3.0
    c = _over(1.0, canonical_function("sqrt", d * 9.0))
    out = torch.empty_like(shape)
    left = torch.arange(shape.numel(), device=shape.device)
    while left.numel():
        x, u, e = stream.normal(left.numel()), stream.uniform(left.numel()), d[left]
        t = c[left] * x + 1.0
        v = t * t * t
        inside = v > 0
        v = torch.where(inside, v, 1.0)
        bound = x * x * 0.5 + e - e * v + e * canonical_function("log", v)
        taken = inside & (canonical_function("log", u) < bound)
        out[left[taken]] = (e * v)[taken]
        left = left[~taken]
    at = low.nonzero().squeeze(1)
    if at.numel():
        out[at] *= canonical.power(stream.uniform(at.numel()), _over(1.0, shape[at]), F64)
    return out


def binomial(stream: Stream, count: Tensor, p: Tensor) -> Tensor:
    """How many of ``count`` uniform numbers are at most p: float64 integers.

    While there are many, the middle one of them in order is drawn, which is beta, and one half of them decided by it
    (Relles, "A simple algorithm for generating binomial random variables when N is large", 1972).

    Args:
        count: float64 (n,), integers from 0.
        p: float64 (n,), in [0, 1].
    """
    count, p, hits = count.clone(), p.clone(), torch.zeros_like(p)
    while (many := (count > _DIRECT).nonzero().squeeze(1)).numel():
        n, q = count[many], p[many]
        middle = torch.floor(n * 0.5) + 1.0
        a, b = gamma(stream, middle), gamma(stream, n + 1.0 - middle)
        y = a / (a + b)
        below = y <= q
        hits[many] += torch.where(below, middle, 0.0)
        count[many] = torch.where(below, n - middle, middle - 1.0)
        p[many] = torch.where(below, (q - y) / (1.0 - y), q / y).clamp(0.0, 1.0)
    for turn in range(int(count.max()) if count.numel() else 0):
        hits += ((stream.uniform(p.numel()) <= p) & (count > turn)).to(F64)
    return hits


def poisson(stream: Stream, rate: Tensor) -> Tensor:
    """Poisson draws: float64 integers.

    Of a high rate, the time of the event 7/8 of the way is drawn, which is gamma; if it came in time, the rest is
    Poisson, else the events before it are binomial (Ahrens and Dieter 1974). Of a low one, events are counted while a
    product of uniform numbers is above exp(-rate) (Knuth).

    Args:
        rate: float64 (n,), finite, from 0.
    """
    rate, events = rate.clone(), torch.zeros_like(rate)
    while (high := (rate >= _DIRECT).nonzero().squeeze(1)).numel():
        r = rate[high]
        m = torch.floor(r * 0.875)
        time = gamma(stream, m)
        early = time <= r
        events[high] += torch.where(early, m, 0.0)
        late = ~early
        events[high[late]] += binomial(stream, m[late] - 1.0, r[late] / time[late])
        rate[high] = torch.where(early, r - time, 0.0)
    bound = canonical_function("exp", -rate)
    product, left = torch.ones_like(rate), (rate > 0).nonzero().squeeze(1)
    while left.numel():
        product[left] *= stream.uniform(left.numel())
        left = left[product[left] > bound[left]]
        events[left] += 1.0
    return events


def _over(numerator: float, x: Tensor) -> Tensor:
    """numerator / x, a division of tensors."""
    return torch.div(torch.full_like(x, numerator), x)


# ---- operations ------------------------------------------------------------------------------------------------------
def _rounded(engine: Engine, y: Tensor, like: Tensor) -> Tensor:
    """float64 results in like's shape and dtype, rounded once."""
    return engine.fixed("", y.reshape(like.shape), engine.format(like.dtype), signed=True)


@register("_standard_gamma.default", cls=RANDOM)
def standard_gamma(engine: Engine, shape: Tensor, generator: Generator = None) -> Tensor:
    """Gamma draws of scale 1, at least float32's least normal number; 0 for a shape of 0, NaN for what is none."""
    drawn = _gamma_of(engine, shape, generator).clamp_min(_TINY)
    return _rounded(engine, drawn.where(shape.flatten() != 0, 0.0), shape)


def _gamma_of(engine: Engine, shape: Tensor, generator: Generator) -> Tensor:
    """Gamma draws, float64, flat; NaN where a shape is not positive and finite."""
    a = shape.to(F64).flatten()
    at = ((a > 0) & a.isfinite()).nonzero().squeeze(1)
    out = torch.full_like(a, float("nan"))
    out[at] = gamma(Stream(engine, generator, a.device), a[at])
    return out


@register("_sample_dirichlet.default", cls=RANDOM)
def dirichlet(engine: Engine, shape: Tensor, generator: Generator = None) -> Tensor:
    """Gamma draws over their sum along the last dimension; between float32's least normal number and 1 - 2^-24."""
    g = _gamma_of(engine, shape, generator).clamp_min(torch.finfo(F64).tiny).reshape(shape.shape)
    return _rounded(engine, (g / _total(g)).clamp(_TINY, 1.0 - 2.0**-24), shape)


def _total(x: Tensor) -> Tensor:
    """The sum over the last dimension, which stays as 1: the second half is added to the first, until one is left."""
    while (n := x.shape[-1]) > 1:
        half = (n + 1) // 2
        head = x[..., :half].clone()
        head[..., : n - half] += x[..., half:]
        x = head
    return x


@register("poisson.default", cls=RANDOM)
def poisson_op(engine: Engine, rate: Tensor, generator: Generator = None) -> Tensor:
    """Poisson draws; NaN for a rate that is none.

    Raises:
        UnsupportedOperation: a negative rate.
    """
    r = rate.to(F64).flatten()
    if bool((r < 0).any()):
        engine.refuse("a negative rate")
    at = r.isfinite().nonzero().squeeze(1)
    out = torch.full_like(r, float("nan"))
    out[at] = poisson(Stream(engine, generator, r.device), r[at])
    return _rounded(engine, out, rate)


@register("binomial.default", cls=RANDOM)
def binomial_op(engine: Engine, count: Tensor, prob: Tensor, generator: Generator = None) -> Tensor:
    """Binomial draws; 0 for a count or probability below, NaN for a probability that is none.

    Raises:
        UnsupportedOperation: a count that is no finite integer.
    """
    shape = torch.broadcast_shapes(count.shape, prob.shape)
    n, p = (t.to(F64).expand(shape).flatten() for t in (count, prob))
    if not bool(((n == n.floor()) & n.isfinite()).all()):
        engine.refuse("a count that is no finite integer")
    at = ((n > 0) & ~p.isnan()).nonzero().squeeze(1)
    out = torch.where(p.isnan(), float("nan"), torch.zeros_like(p))
    out[at] = binomial(Stream(engine, generator, p.device), n[at], p[at].clamp(0.0, 1.0))
    return _rounded(engine, out, count.expand(shape))


@register("geometric_.default", cls=RANDOM)
def geometric_(engine: Engine, x: Tensor, p: float, *, generator: Generator = None) -> Tensor:
    """Fill with ln(u) / ln(1 - p), rounded up, at least 1."""
    if not 0 < p <= 1:
        engine.refuse(f"a probability of {p!r}; want one in (0, 1]")
    logs = canonical_function("log", Stream(engine, generator, x.device).uniform(x.numel()))
    each = canonical_function("log1p", torch.full_like(logs, -p)) if p < 1 else torch.full_like(logs, float("-inf"))
    return x.copy_(torch.ceil(logs / each).clamp_min(1.0).reshape(x.shape))


@register("cauchy_.default", cls=RANDOM)
def cauchy_(engine: Engine, x: Tensor, median: float = 0, sigma: float = 1, *, generator: Generator = None) -> Tensor:
    """Fill with median - sigma cos(pi u) / sin(pi u)."""
    angle = Stream(engine, generator, x.device).uniform(x.numel()) * torch.pi
    slope = canonical_function("cos", angle) / canonical_function("sin", angle)
    return x.copy_(_rounded(engine, slope * -sigma + median, x))


@register("log_normal_.default", cls=RANDOM)
def log_normal_(engine: Engine, x: Tensor, mean: float = 1, std: float = 2, *, generator: Generator = None) -> Tensor:
    """Fill with exp(mean + std z)."""
    z = normal(engine, (x.numel(),), F32, x.device, generator=generator).to(F64)
    return x.copy_(_rounded(engine, canonical_function("exp", z * std + mean), x))


@register("rrelu_with_noise.default", cls=RANDOM)
def rrelu_with_noise(
    engine: Engine, x: Tensor, noise: Tensor, lower: float = 0.125, upper: float = 1 / 3, training: bool = False,
    generator: Generator = None,
) -> Tensor:  # fmt: skip
    """x where it is positive, elsewhere times a factor from [lower, upper), which goes into ``noise`` (else 1)."""
    lifted = engine.lift(x)
    if not training:
        return engine.finish(torch.where(lifted > 0, lifted, lifted * ((lower + upper) / 2)), x.dtype)
    factor = uniform(engine, x.shape, F32, x.device, lower, upper, generator)
    noise.copy_(engine.finish(torch.where(lifted > 0, 1.0, factor), noise.dtype))
    return engine.finish(torch.where(lifted > 0, lifted, lifted * engine.lift(noise)), x.dtype)


@register("rrelu_with_noise_backward.default")
def rrelu_with_noise_backward(
    engine: Engine, grad: Tensor, x: Tensor, noise: Tensor, lower: float, upper: float, training: bool,
    self_is_result: bool,
) -> Tensor:  # fmt: skip
    """grad times each element's factor."""
    g = engine.lift(grad)
    factor = engine.lift(noise) if training else torch.where(x > 0, 1.0, torch.full_like(g, (lower + upper) / 2))
    return engine.finish(g * factor, grad.dtype)


forbid(
    "the derivative of gamma and Dirichlet draws by their parameters has no definition here; sample() needs none, "
    "and a gradient can be had by log_prob, the score function",
    ["_standard_gamma_grad.default", "_dirichlet_grad.default"],
)

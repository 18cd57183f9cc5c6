"""Random numbers: every draw comes from the counter-based generator (numerics §2, class 5).

Which stream and which place in it a draw has is the generator's state (``vtrain.engine.generators.keys``).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from vtrain.engine.core import F32, F64, Engine
from vtrain.engine.ops.conversions import convert
from vtrain.engine.optable import OpClass, register
from vtrain.rounding.bounds import FUNCTION_KAPPA

Tensor = torch.Tensor
Generator = torch.Generator | None
RANDOM = OpClass.RANDOM


def _dtype(dtype: torch.dtype | None) -> torch.dtype:
    return dtype or torch.get_default_dtype()


def normal(
    engine: Engine,
    shape: Sequence[int],
    dtype: torch.dtype,
    device: torch.device | str,
    mean: float | Tensor = 0.0,
    std: float | Tensor = 1.0,
    generator: Generator = None,
) -> Tensor:
    """mean + std * z, z being rounded to float32 first."""
    if dtype is F64:
        engine.refuse("random float64")
    source, draw = engine.next_draw(generator)
    z = source.normal(shape, *draw, device=device)
    if isinstance(std, Tensor) or std != 1.0:
        z = torch.mul(z, engine.lift(std) if isinstance(std, Tensor) else std)
    if isinstance(mean, Tensor) or mean != 0.0:
        z = torch.add(z, engine.lift(mean) if isinstance(mean, Tensor) else mean)
    return engine.finish(z, dtype)


def uniform(
    engine: Engine,
    shape: Sequence[int],
    dtype: torch.dtype,
    device: torch.device | str,
    low: float = 0.0,
    high: float = 1.0,
    generator: Generator = None,
) -> Tensor:
    """Uniform in [low, high)."""
    if dtype is F64:
        engine.refuse("random float64")
    source, draw = engine.next_draw(generator)
    drawn = source.uniform(shape, dtype, device, low, high, *draw)
    return engine.finish(drawn, dtype) if dtype is F32 else drawn


def coin(engine: Engine, like: Tensor, p: float, generator: Generator = None) -> Tensor:
    """True with probability p, of like's shape."""
    source, draw = engine.next_draw(generator)
    return source.bernoulli_mask(like.shape, p, *draw, device=like.device)


@register("normal_.default", cls=RANDOM, version=2)
def normal_(engine: Engine, x: Tensor, mean: float = 0, std: float = 1, *, generator: Generator = None) -> Tensor:
    """Fill with normal draws."""
    return x.copy_(normal(engine, x.shape, x.dtype, x.device, mean, std, generator))


@register("normal_functional.default", cls=RANDOM, version=2)
def normal_functional(
    engine: Engine, x: Tensor, mean: float = 0, std: float = 1, *, generator: Generator = None
) -> Tensor:
    """Normal draws of x's shape."""
    return normal(engine, x.shape, x.dtype, x.device, mean, std, generator)


@register("normal.Tensor_Tensor", "normal.Tensor_float", "normal.float_Tensor", cls=RANDOM, version=2)
def normal_tensors(
    engine: Engine, mean: Tensor | float, std: Tensor | float = 1, *, generator: Generator = None
) -> Tensor:
    """Normal draws with elementwise mean or deviation."""
    like = mean if isinstance(mean, Tensor) else std
    assert isinstance(like, Tensor)
    shape = torch.broadcast_shapes(*(v.shape for v in (mean, std) if isinstance(v, Tensor)))
    return normal(engine, shape, like.dtype, like.device, mean, std, generator)


@register("normal.float_float", cls=RANDOM)
def normal_floats(
    engine: Engine,
    mean: float,
    std: float,
    size: Sequence[int],
    *,
    generator: Generator = None,
    dtype: torch.dtype | None = None,
    device: torch.device | None = None,
    **_: object,
) -> Tensor:
    """Normal draws of a given shape."""
    return normal(engine, size, _dtype(dtype), device or "cpu", mean, std, generator)


@register("uniform_.default", cls=RANDOM, version=2)
def uniform_(engine: Engine, x: Tensor, low: float = 0, high: float = 1, *, generator: Generator = None) -> Tensor:
    """Fill with uniform draws."""
    return x.copy_(uniform(engine, x.shape, x.dtype, x.device, low, high, generator))


@register("rand.default", "rand.generator", cls=RANDOM, version=2)
def rand(
    engine: Engine,
    size: Sequence[int],
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | None = None,
    generator: Generator = None,
    **_: object,
) -> Tensor:
    """Uniform in [0, 1)."""
    return uniform(engine, size, _dtype(dtype), device or "cpu", generator=generator)


@register("randn.default", "randn.generator", cls=RANDOM, version=2)
def randn(
    engine: Engine,
    size: Sequence[int],
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | None = None,
    generator: Generator = None,
    **_: object,
) -> Tensor:
    """Standard normal."""
    return normal(engine, size, _dtype(dtype), device or "cpu", generator=generator)


@register("rand_like.default", "rand_like.generator", cls=RANDOM, version=2)
def rand_like(
    engine: Engine,
    x: Tensor,
    *,
    generator: Generator = None,
    dtype: torch.dtype | None = None,
    device: torch.device | None = None,
    **_: object,
) -> Tensor:
    """Uniform in [0, 1) of x's shape."""
    return uniform(engine, x.shape, dtype or x.dtype, device or x.device, generator=generator)


@register("randn_like.default", "randn_like.generator", cls=RANDOM, version=2)
def randn_like(
    engine: Engine,
    x: Tensor,
    *,
    generator: Generator = None,
    dtype: torch.dtype | None = None,
    device: torch.device | None = None,
    **_: object,
) -> Tensor:
    """Standard normal of x's shape."""
    return normal(engine, x.shape, dtype or x.dtype, device or x.device, generator=generator)


def _integers(
    engine: Engine,
    shape: Sequence[int],
    low: int,
    high: int,
    dtype: torch.dtype | None,
    device: torch.device | str | None,
    generator: Generator = None,
) -> Tensor:
    dtype = dtype or torch.int64
    source, draw = engine.next_draw(generator)
    if dtype.is_floating_point:
        return convert(engine, source.randint(shape, low, high, *draw, device=device or "cpu"), dtype)
    return source.randint(shape, low, high, *draw, device=device or "cpu", dtype=dtype)


@register("randint.default", "randint.generator", cls=RANDOM, version=2)
def randint(
    engine: Engine,
    high: int,
    size: Sequence[int],
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | None = None,
    generator: Generator = None,
    **_: object,
) -> Tensor:
    """Integers in [0, high)."""
    return _integers(engine, size, 0, high, dtype, device, generator)


@register("randint.low", "randint.low_generator", cls=RANDOM, version=2)
def randint_low(
    engine: Engine,
    low: int,
    high: int,
    size: Sequence[int],
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | None = None,
    generator: Generator = None,
    **_: object,
) -> Tensor:
    """Integers in [low, high)."""
    return _integers(engine, size, low, high, dtype, device, generator)


@register(
    "randint_like.default",
    "randint_like.generator",
    "randint_like.Tensor",
    "randint_like.Tensor_generator",
    cls=RANDOM,
    version=2,
)
def randint_like(
    engine: Engine,
    x: Tensor,
    high: int | Tensor,
    *,
    generator: Generator = None,
    dtype: torch.dtype | None = None,
    device: torch.device | None = None,
    **_: object,
) -> Tensor:
    """Integers in [0, high) of x's shape."""
    return _integers(engine, x.shape, 0, int(high), dtype or x.dtype, device or x.device, generator)


@register("randint_like.low_dtype", "randint_like.low_generator_dtype", cls=RANDOM, version=2)
def randint_like_low(
    engine: Engine,
    x: Tensor,
    low: int,
    high: int,
    *,
    generator: Generator = None,
    dtype: torch.dtype | None = None,
    device: torch.device | None = None,
    **_: object,
) -> Tensor:
    """Integers in [low, high) of x's shape."""
    return _integers(engine, x.shape, low, high, dtype or x.dtype, device or x.device, generator)


@register("random_.default", cls=RANDOM)
def random_(engine: Engine, x: Tensor, *, generator: Generator = None) -> Tensor:
    """Fill with integers from 0 to the largest of an integer type, or to 2^p of a float with p significant bits."""
    if x.dtype is torch.bool:
        top = 1
    elif x.is_floating_point():
        top = round(2 / torch.finfo(x.dtype).eps)
    else:
        top = torch.iinfo(x.dtype).max
    return random_from(engine, x, 0, top + 1, generator=generator)


@register("random_.from", cls=RANDOM, version=2)
def random_from(engine: Engine, x: Tensor, low: int, high: int | None, *, generator: Generator = None) -> Tensor:
    """Fill with integers in [low, high)."""
    drawn = _integers(engine, x.shape, low, 2**31 if high is None else high, torch.int64, x.device, generator)
    return x.copy_(convert(engine, drawn, x.dtype))


@register("random_.to", cls=RANDOM, version=2)
def random_to(engine: Engine, x: Tensor, high: int, *, generator: Generator = None) -> Tensor:
    """Fill with integers in [0, high)."""
    return random_from(engine, x, 0, high, generator=generator)


@register("randperm.default", "randperm.generator", cls=RANDOM, version=2)
def randperm(
    engine: Engine,
    n: int,
    *,
    dtype: torch.dtype | None = torch.int64,
    device: torch.device | None = None,
    generator: Generator = None,
    **_: object,
) -> Tensor:
    """A permutation of 0..n-1."""
    source, draw = engine.next_draw(generator)
    drawn = source.randperm(n, *draw, device=device or "cpu")
    return drawn if dtype is None else convert(engine, drawn, dtype)


@register("bernoulli_.float", cls=RANDOM, version=2)
def bernoulli_(engine: Engine, x: Tensor, p: float = 0.5, *, generator: Generator = None) -> Tensor:
    """Fill with 1 with probability p, else 0."""
    return x.copy_(coin(engine, x, p, generator))


@register("bernoulli.p", cls=RANDOM, version=2)
def bernoulli_p(engine: Engine, x: Tensor, p: float = 0.5, *, generator: Generator = None) -> Tensor:
    """1 with probability p, else 0, of x's shape."""
    return coin(engine, x, p, generator).to(x.dtype)


@register("bernoulli.default", "bernoulli.Tensor", cls=RANDOM, version=2)
def bernoulli(engine: Engine, x: Tensor, p: Tensor | None = None, *, generator: Generator = None) -> Tensor:
    """1 where a uniform draw is below the element's probability, else 0."""
    chance = x if p is None else p.expand(x.shape)
    return torch.lt(uniform(engine, x.shape, F32, x.device, generator=generator), chance.to(F32)).to(x.dtype)


@register("bernoulli_.Tensor", cls=RANDOM, version=2)
def bernoulli_tensor_(engine: Engine, x: Tensor, p: Tensor, *, generator: Generator = None) -> Tensor:
    """Fill with 1 where a uniform draw is below p, else 0."""
    return x.copy_(bernoulli(engine, x, p, generator=generator))


@register("native_dropout.default", cls=RANDOM, version=2)
def native_dropout(engine: Engine, x: Tensor, p: float, train: bool | None) -> tuple[Tensor, Tensor]:
    """x * mask / (1 - p), the mask kept with probability 1 - p; and the mask."""
    if train is False:
        return x.clone(), torch.ones_like(x, dtype=torch.bool)
    if p == 1:
        return torch.zeros_like(x), torch.zeros_like(x, dtype=torch.bool)
    mask = coin(engine, x, 1 - p)
    return engine.finish(torch.mul(engine.lift(x), mask.to(F32)).mul_(1 / (1 - p)), x.dtype), mask


@register("exponential_.default", cls=RANDOM, version=2)
def exponential_(engine: Engine, x: Tensor, rate: float = 1, *, generator: Generator = None) -> Tensor:
    """Fill with -ln(u) / rate, u uniform in (0, 1]."""
    source, draw = engine.next_draw(generator)
    u = source.exponential_parts(x.shape, *draw, device=x.device)
    y = u.log_().neg_().div_(rate)
    return x.copy_(engine.function(y, engine.format(x.dtype), kappa=FUNCTION_KAPPA + 2))


@register("multinomial.default", cls=RANDOM, version=2)
def multinomial(
    engine: Engine, weights: Tensor, count: int, replacement: bool = False, *, generator: Generator = None
) -> Tensor:
    """Indices drawn by weight: the exponential race, -ln(u) / w rounded to float32, least first (ties: lowest index).

    With replacement, one race a draw.
    """
    w = engine.lift(weights)
    rows = w.unsqueeze(0) if w.dim() == 1 else w
    races = rows.unsqueeze(1).expand(-1, count if replacement else 1, -1)
    source, draw = engine.next_draw(generator)
    u = source.exponential_parts(races.shape, *draw, device=w.device)
    times = engine.function(u.log_().neg_().div_(races.to(F64)), part="race", kappa=FUNCTION_KAPPA + 2)
    times = torch.where(races > 0, times, float("inf"))
    drawn = times.argmin(-1) if replacement else times.squeeze(1).sort(dim=-1, stable=True).indices[..., :count]
    return drawn.squeeze(0) if w.dim() == 1 else drawn

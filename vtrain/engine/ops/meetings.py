"""Elements that meet at an index and become one: the largest, least, mean or product (numerics §2, class 3).

Maxima and minima have no order. A sum is ``scatter_add``, a mean that sum and one division. A product is canonical
under every policy: factors one after another in the order of their positions, each multiplication rounded to float64,
the last one to the target.
"""

from __future__ import annotations

import torch

from vtrain.engine.core import F64, Engine
from vtrain.engine.ops.arithmetic import once
from vtrain.engine.ops.extrema import plus_zero
from vtrain.engine.ops.scatter import scatter_add
from vtrain.engine.optable import OpClass, composed, register

Tensor = torch.Tensor
aten = torch.ops.aten
_KINDS = ("sum", "prod", "mean", "amax", "amin")


def _whole(x: Tensor, *args: object, **kwargs: object) -> bool:
    return not x.is_floating_point()


@register("scatter_reduce.two", cls=OpClass.VARYING, native_when=_whole)
def scatter_reduce(
    engine: Engine, x: Tensor, dim: int, index: Tensor, source: Tensor, reduce: str, *, include_self: bool = True
) -> Tensor:
    """x with what source has for each index: its sum, product, mean, maximum or minimum, with x's own or without."""
    if reduce in ("amax", "amin") or reduce not in _KINDS or source.dtype is not x.dtype or not index.numel():
        return plus_zero(aten.scatter_reduce.two(x, dim, index, source, reduce, include_self=include_self))
    source = source[tuple(slice(0, n) for n in index.shape)]
    start = x if include_self else x.scatter(dim, index, 1 if reduce == "prod" else 0)
    if reduce == "prod":
        return _product(engine, start, dim, index, source)
    total = scatter_add(engine, start, dim, index, source)
    if reduce == "sum":
        return total
    count = torch.full(x.shape, int(include_self), dtype=torch.int64, device=x.device)
    count.scatter_add_(dim, index, torch.ones(index.shape, dtype=torch.int64, device=x.device)).clamp_(min=1)
    return once(engine, torch.div, total, count, x.dtype)


def _product(engine: Engine, x: Tensor, dim: int, index: Tensor, source: Tensor) -> Tensor:
    places = torch.arange(x.numel(), device=x.device).view(x.shape)
    if x.dim():
        rows = places[tuple(slice(0, x.shape[d] if d == dim % x.dim() else n) for d, n in enumerate(index.shape))]
        places = rows.gather(dim, index)
    target, order = torch.sort(places.reshape(-1), stable=True)
    number = torch.arange(target.numel(), device=x.device)
    starts = torch.ones(target.shape, dtype=torch.bool, device=x.device)
    starts[1:] = target[1:] != target[:-1]
    turn = number - torch.where(starts, number, 0).cummax(0).values  # how many factors of the element came before
    factors = source.reshape(-1)[order].to(F64)
    y = x.to(F64, memory_format=torch.contiguous_format).reshape(-1).clone()
    for t in range(int(turn.max()) + 1):
        now = turn == t
        y[target[now]] = y[target[now]] * factors[now]
    return engine.fixed("", y.view(x.shape), engine.format(x.dtype), signed=True)


@composed("index_reduce.default")
def index_reduce(
    x: Tensor, dim: int, index: Tensor, source: Tensor, reduce: str, *, include_self: bool = True
) -> Tensor:
    """As ``scatter_reduce``, slice by slice along dim."""
    if not x.dim():
        spread = index.reshape(-1)[:1].to(torch.int64)
        return torch.scatter_reduce(
            x.view(1), 0, spread, source.reshape(-1)[:1], reduce, include_self=include_self
        ).view(())
    shape = [-1 if d == dim % x.dim() else 1 for d in range(x.dim())]
    spread = index.reshape(-1).to(torch.int64).view(shape).expand(source.shape)
    return torch.scatter_reduce(x, dim, spread, source, reduce, include_self=include_self)


_OLD_NAMES = {"add": "sum", "multiply": "prod"}


@composed("scatter.reduce")
def scatter_with(x: Tensor, dim: int, index: Tensor, source: Tensor, *, reduce: str) -> Tensor:
    """x with source added to it, or multiplied into it, at each index."""
    return torch.scatter_reduce(x, dim, index, source, _OLD_NAMES[reduce])


@composed("scatter.value_reduce")
def scatter_value_with(x: Tensor, dim: int, index: Tensor, value: float, *, reduce: str) -> Tensor:
    """The same with one number."""
    source = torch.full(index.shape, value, dtype=x.dtype, device=x.device)
    return torch.scatter_reduce(x, dim, index, source, _OLD_NAMES[reduce])

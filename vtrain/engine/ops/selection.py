"""Elements by their rank or among those before them: median, mode, running extrema (numerics §2, class 1).

Ranks are read off a stable sort, NaN above all; so of equal elements the index is the lowest, as no library promises.
"""

from __future__ import annotations

import math

import torch

from vtrain.engine.core import Engine
from vtrain.engine.ops.ordered import sort
from vtrain.engine.ops.reduction import normal_dims
from vtrain.engine.optable import OpClass, register

Tensor = torch.Tensor
Chosen = tuple[Tensor, Tensor]
EXACT = OpClass.EXACT


def _at(found: Chosen, rank: Tensor, dim: int, keepdim: bool) -> Chosen:
    """Values and indices of sorted elements at a rank for each row, kept as 1."""
    values, indices = (t.gather(dim, rank) if t.dim() else t for t in found)
    return (values, indices) if keepdim or not values.dim() else (values.squeeze(dim), indices.squeeze(dim))


def _check(name: str, x: Tensor, dim: int) -> None:
    """Raises torch's IndexError where x does not have the dimension, or nothing along it to choose from."""
    if any(not x.shape[d] for d in normal_dims(x, dim)):
        raise IndexError(f"{name}(): Expected reduction dim {dim} to have non-zero size.")


def _median(engine: Engine, x: Tensor, dim: int, keepdim: bool, skips: bool) -> Chosen:
    _check("median", x, dim)
    found = sort(engine, x, dim)
    n = x.shape[dim] if x.dim() else 1
    nan = x.isnan().sum(dim, keepdim=True) if x.dim() else torch.zeros((), dtype=torch.int64, device=x.device)
    middle = ((n - nan - 1) // 2).clamp(min=0) if skips else torch.full_like(nan, (n - 1) // 2)
    return _at(found, middle if skips else torch.where(nan > 0, n - nan, middle), dim, keepdim)


def _register(name: str, skips: bool) -> None:
    def along(engine: Engine, x: Tensor, dim: int, keepdim: bool = False) -> Chosen:
        return _median(engine, x, dim, keepdim, skips)

    def whole(engine: Engine, x: Tensor) -> Tensor:
        flat = x.reshape(-1)
        if not flat.numel():  # as torch: NaN, or for integers the lowest one
            empty = float("nan") if x.is_floating_point() else torch.iinfo(x.dtype).min
            return torch.full((), empty, dtype=x.dtype, device=x.device)
        return _median(engine, flat, 0, False, skips)[0]

    along.__doc__ = f"{name}: the lower of two in the middle, and its lowest index."
    whole.__doc__ = f"{name} of all elements."
    register(f"{name}.dim", cls=EXACT)(along)
    register(f"{name}.default", cls=EXACT)(whole)


_register("median", False)
_register("nanmedian", True)


@register("kthvalue.default", cls=EXACT)
def kthvalue(engine: Engine, x: Tensor, k: int, dim: int = -1, keepdim: bool = False) -> Chosen:
    """The k-th smallest, counted from 1, and its index."""
    n = math.prod(x.shape[d] for d in normal_dims(x, dim))
    if not 1 <= k <= n:
        raise RuntimeError(f"kthvalue(): selected number k out of range for dimension {dim}")
    found = sort(engine, x, dim)
    shape = [1 if d == dim % x.dim() else s for d, s in enumerate(x.shape)] if x.dim() else []
    return _at(found, torch.full(shape, k - 1, dtype=torch.int64, device=x.device), dim, keepdim)


@register("mode.default", cls=EXACT)
def mode(engine: Engine, x: Tensor, dim: int = -1, keepdim: bool = False) -> Chosen:
    """The most frequent element, the smallest of several, and its last index; every NaN is one of its own."""
    _check("mode", x, dim)
    if not x.dim():
        return x.clone(), torch.zeros((), dtype=torch.int64, device=x.device)
    values, indices = (t.movedim(dim, -1) for t in sort(engine, x, dim))
    place = torch.arange(values.shape[-1], device=x.device)
    begins = torch.ones(values.shape, dtype=torch.bool, device=x.device)
    begins[..., 1:] = values[..., 1:] != values[..., :-1]
    run = place - torch.where(begins, place, 0).cummax(-1).values
    best = run.argmax(-1, keepdim=True)
    value, index = (t.gather(-1, best).movedim(-1, dim) for t in (values, indices))
    return (value, index) if keepdim else (value.squeeze(dim), index.squeeze(dim))


def _running(name: str) -> None:
    native = getattr(torch, name)

    def handler(engine: Engine, x: Tensor, dim: int) -> Chosen:
        values = native(x, dim).values
        place = torch.arange(x.shape[dim] if x.dim() else 1, device=x.device)
        if not x.dim():
            return values, place[0]
        place = place.view([-1 if d == dim % x.dim() else 1 for d in range(x.dim())])
        reached = (x == values) | (x.isnan() & values.isnan())
        indices = torch.cummax(torch.where(reached, place, 0), dim).values
        return x.gather(dim, indices), indices

    handler.__doc__ = f"{name}: the last of equal elements so far; NaN from the first one on."
    register(f"{name}.default", cls=EXACT)(handler)


_running("cummax")
_running("cummin")

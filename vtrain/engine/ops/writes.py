"""Writes at repeated indices: the highest source position wins (numerics §2, class 1).

Threads and devices race for an element that several positions write. So the last writer of each is found first, by a
maximum of positions, which is the same in every order; only last writers write.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from vtrain.engine.aliases import same_memory
from vtrain.engine.core import Engine
from vtrain.engine.optable import OpClass, register

Tensor = torch.Tensor
aten = torch.ops.aten


def last_writers(targets: Tensor, size: int) -> Tensor | None:
    """Which positions are the last that write their target; None if all are.

    Args:
        targets: int64, flat, in [0, size).
    """
    positions = torch.arange(targets.numel(), device=targets.device)
    last = positions.new_full((size,), -1).scatter_reduce_(0, targets, positions, "amax")
    kept = last[targets] == positions
    return None if bool(kept.all()) else kept


def _wrapped(index: Tensor, size: int) -> Tensor | None:
    """Flat int64 indices counted from 0, or None where one is out of bounds, which torch reports."""
    flat = index.reshape(-1).to(torch.int64)
    flat = torch.where(flat < 0, flat + size, flat)
    return flat if not flat.numel() or bool(((flat >= 0) & (flat < size)).all()) else None


def _as_integers(indices: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Masks as the indices of their true elements."""
    found: list[Tensor | None] = []
    for index in indices:
        if index is not None and index.dtype in (torch.bool, torch.uint8):
            found.extend(index.nonzero().unbind(1))
        else:
            found.append(index)
    return found


def cannot_repeat(indices: Sequence[Tensor | None], values: Tensor) -> bool:
    """Whether no element is written twice, or only with the same value."""
    given = [i for i in indices if i is not None]
    return values.numel() == 1 or (len(given) == 1 and (given[0].dtype is torch.bool or given[0].numel() == 1))


def write(x: Tensor, indices: Sequence[Tensor | None], values: Tensor) -> Tensor:
    """x[indices] = values, in place."""
    put = aten.index_put_.default
    if same_memory(x, values):
        values = values.clone()
    if cannot_repeat(indices, values):
        return put(x, list(indices), values)
    plain = _as_integers(indices)
    if len(plain) > x.dim():
        return put(x, list(indices), values)  # torch's error
    where = [d for d, index in enumerate(plain) if index is not None]
    spread = torch.broadcast_tensors(*[plain[d] for d in where])
    target = torch.zeros((), dtype=torch.int64, device=x.device)
    for d, index in zip(where, spread, strict=True):
        flat = _wrapped(index.to(x.device), x.shape[d])
        if flat is None:
            return put(x, list(indices), values)  # the same
        target = target * x.shape[d] + flat
    kept = last_writers(target, math.prod(x.shape[d] for d in where))
    if kept is None:
        return put(x, list(indices), values)
    # the indexed dimensions of the result stand where the first one was if they are neighbours, else in front
    start = where[0] if where[-1] - where[0] + 1 == len(where) else 0
    rest = [n for d, n in enumerate(x.shape) if d not in where]
    shape = [*rest[:start], *spread[0].shape, *rest[start:]]
    source = values.expand(shape).flatten(start, start + spread[0].dim() - 1) if spread[0].dim() else values
    chosen: list[Tensor | None] = [None] * len(plain)
    for d, index in zip(where, spread, strict=True):
        chosen[d] = index.reshape(-1)[kept.to(index.device)]
    return put(x, chosen, source.index_select(start, kept.nonzero().view(-1).to(source.device)))


def _never_twice(x: Tensor, dim: int, index: Tensor, source: Tensor) -> bool:
    return index.numel() <= 1 or x.dim() == 0


def _copy_in_place(engine: Engine, x: Tensor, dim: int, index: Tensor, source: Tensor) -> None:
    if same_memory(x, source):
        source = source.clone()
    flat = _wrapped(index, x.shape[dim])
    kept = None if flat is None else last_writers(flat, x.shape[dim])
    if kept is not None:
        at = kept.nonzero().view(-1)
        index, source = index.reshape(-1)[at], source.index_select(dim, at)
    x.index_copy_(dim, index, source)


@register("index_copy.default", cls=OpClass.EXACT, native_when=_never_twice, inplace=_copy_in_place, version=2)
def index_copy(engine: Engine, x: Tensor, dim: int, index: Tensor, source: Tensor) -> Tensor:
    """x with slices along dim in place of those at index."""
    out = x.clone()
    _copy_in_place(engine, out, dim, index, source)
    return out


@register("scatter.src", cls=OpClass.EXACT, version=2)
def scatter(engine: Engine, x: Tensor, dim: int, index: Tensor, source: Tensor) -> Tensor:
    """x with x[..., index[...], ...] = source along dim; positions count in the index's C order."""
    if index.numel() <= 1 or x.dim() == 0:
        return aten.scatter.src(x, dim, index, source)
    dim %= x.dim()
    if not bool(((index >= 0) & (index < x.shape[dim])).all()):
        return aten.scatter.src(x, dim, index, source)  # torch's error
    places = [torch.arange(n, device=x.device).view([-1 if d == e else 1 for e in range(x.dim())])
              for d, n in enumerate(index.shape)]  # fmt: skip
    places[dim] = index
    target = torch.zeros((), dtype=torch.int64, device=x.device)
    for place, n in zip(places, x.shape, strict=True):
        target = target * n + place
    target = target.reshape(-1)
    kept = last_writers(target, x.numel())
    if kept is None:
        return aten.scatter.src(x, dim, index, source)
    values = source[tuple(slice(0, n) for n in index.shape)].reshape(-1)
    out = x.clone(memory_format=torch.contiguous_format)
    out.view(-1).index_put_((target[kept],), values[kept])
    return out

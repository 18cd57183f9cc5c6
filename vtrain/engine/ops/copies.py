"""Copies of views, writes into copies, and other arrangements that torch has as operations of their own.

Each is what other operations of the table do (numerics §2, class 4): a view and a copy, a copy and a write.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from vtrain.engine.optable import composed

Tensor = torch.Tensor
aten = torch.ops.aten

# ``<view>_copy.<overload>``: the view, copied
_COPIES = """
    alias.default as_strided.default detach.default expand.default permute.default select.int slice.Tensor split.Tensor
    split_with_sizes.default squeeze.default squeeze.dim squeeze.dims t.default transpose.int unbind.int
    unsqueeze.default view.default view.dtype
"""


def _copy(view: Tensor | Sequence[Tensor]) -> Any:
    if isinstance(view, Tensor):
        return view.clone(memory_format=torch.contiguous_format)
    return [_copy(v) for v in view]


def _copied(name: str) -> None:
    packet, overload = name.split(".")
    view = getattr(getattr(aten, packet), overload)

    def handler(*args: Any, **kwargs: Any) -> Any:
        return _copy(view(*args, **kwargs))

    handler.__doc__ = f"{packet}, in memory of its own."
    composed(f"{packet}_copy.{overload}")(handler)


for _name in _COPIES.split():
    _copied(_name)


@composed("narrow_copy.default")
def narrow_copy(x: Tensor, dim: int, start: int, length: int) -> Tensor:
    """narrow, in memory of its own."""
    return _copy(x.narrow(dim, start, length))


@composed("_reshape_copy.default")
def reshape_copy(x: Tensor, size: Sequence[int]) -> Tensor:
    """reshape, in memory of its own."""
    return _copy(x.reshape(list(size)))


@composed("copy.default")
def copy(x: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
    """source in x's shape, type and layout."""
    return x.clone().copy_(source, non_blocking)


@composed("diagonal_scatter.default")
def diagonal_scatter(x: Tensor, source: Tensor, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Tensor:
    """x with source for a diagonal."""
    out = x.clone()
    out.diagonal(offset, dim1, dim2).copy_(source)
    return out


@composed("as_strided_scatter.default")
def as_strided_scatter(
    x: Tensor, source: Tensor, size: Sequence[int], stride: Sequence[int], storage_offset: int | None = None
) -> Tensor:
    """x with source for what ``as_strided`` sees."""
    out = x.clone()
    out.as_strided(size, stride, storage_offset).copy_(source)
    return out


@composed("_stack.default")
def stack(tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    """As ``stack``."""
    return torch.stack(list(tensors), dim)


@composed("block_diag.default")
def block_diag(tensors: Sequence[Tensor]) -> Tensor:
    """A matrix with the tensors, of up to two dimensions, along its diagonal, in their common type; elsewhere 0."""
    blocks = [t if t.dim() == 2 else t.reshape(1, -1) for t in tensors]
    dtype = blocks[0].dtype
    for b in blocks:
        dtype = torch.promote_types(dtype, b.dtype)
    shape = [sum(b.shape[d] for b in blocks) for d in (0, 1)]
    out = torch.zeros(shape, dtype=dtype, device=blocks[0].device)
    row = column = 0
    for b in blocks:
        out[row : row + b.shape[0], column : column + b.shape[1]] = b
        row, column = row + b.shape[0], column + b.shape[1]
    return out


@composed("put.default")
def put(x: Tensor, index: Tensor, source: Tensor, accumulate: bool = False) -> Tensor:
    """x with elements of source at flat indices, or added there."""
    flat = x.reshape(-1).index_put([index.reshape(-1)], source.reshape(-1), accumulate)
    return flat.view(x.shape)


@composed("resize_as_.default")
def resize_as(x: Tensor, template: Tensor, *, memory_format: torch.memory_format | None = None) -> Tensor:
    """x in another one's shape, in place."""
    words = {} if memory_format is None else {"memory_format": memory_format}
    return x.resize_(template.shape, **words)


@composed("_resize_output_.default")
def resize_output(x: Tensor, size: Sequence[int], device: torch.device) -> Tensor:
    """x in another shape, in place."""
    return x.resize_(size)


def _unpooled(x: Tensor, indices: Tensor, size: Sequence[int], dims: int) -> Tensor:
    out = x.new_zeros([*x.shape[: x.dim() - dims], *size])
    at = x.dim() - dims
    flat = out.flatten(at).scatter(at, indices.flatten(at), x.flatten(at))
    return flat.view(out.shape)


@composed("max_unpool2d.default")
def max_unpool2d(x: Tensor, indices: Tensor, output_size: Sequence[int]) -> Tensor:
    """Zeros with x's elements where a pooling found them; of two for one place the last."""
    return _unpooled(x, indices, output_size, 2)


@composed("max_unpool3d.default")
def max_unpool3d(
    x: Tensor, indices: Tensor, output_size: Sequence[int], stride: Sequence[int], padding: Sequence[int]
) -> Tensor:
    """As ``max_unpool2d``."""
    return _unpooled(x, indices, output_size, 3)

"""Interpolation and its gradients: 1-D to 3-D, of one table of places and weights each (numerics §2, class 4)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from vtrain.engine.core import Engine
from vtrain.engine.ops.axes import Axis, apply, cubic, linear, nearest, select
from vtrain.engine.optable import OpClass, register

Tensor = torch.Tensor
Axes = Callable[[Sequence[int], Sequence[int], Sequence], list[Axis]]  # input and output sizes, the other arguments


def _size(
    engine: Engine, shape: Sequence[int], dims: int, out: Sequence[int] | None, factors: Sequence[float] | None = None
) -> list[int]:
    """The output's size: as it is given, or the input's times the factors, in float64, rounded down."""
    if len(shape) != dims + 2:
        engine.refuse(f"an input of {len(shape)} dimensions; want {dims + 2}")
    if (out is None) == (factors is None) or len(out or factors or ()) != dims:
        engine.refuse(f"size {out} and scale factors {factors}; want {dims} numbers of one of them")
    size = list(out) if out is not None else [int(float(n) * f) for n, f in zip(shape[2:], factors or (), strict=True)]
    if min(*shape[1:], *size) < 1:
        engine.refuse(f"resizing {list(shape)} to {size}; want sizes above 0")
    return size


def _each(
    axis: Callable[..., Axis], size: Sequence[int], out: Sequence[int], rest: Sequence, *more: object
) -> list[Axis]:
    """One axis a dimension; ``rest`` are the scales, fewer or None where none is given."""
    scales = [*rest, *[None] * (len(out) - len(rest))]
    return [axis(n, o, *more, s) for n, o, s in zip(size, out, scales, strict=True)]


def _nearest(exact: bool) -> Axes:
    return lambda size, out, rest: _each(lambda n, o, s: nearest(n, o, s, exact), size, out, rest)


def _weighted(axis: Callable[..., Axis]) -> Axes:
    return lambda size, out, rest: _each(axis, size, out, rest[1:], bool(rest[0]))


def _forward(engine: Engine, x: Tensor, axes: Sequence[Axis], moves: bool) -> Tensor:
    return select(x, axes) if moves else engine.fixed("", apply(x, axes), engine.format(x.dtype))


def _enter(name: str, dims: int, make: Axes, moves: bool) -> None:
    """Register an interpolation: with an output size, with scale factors, and its gradient."""
    cls = OpClass.EXACT if moves else OpClass.COMPOSITE

    @register(f"{name}.default", cls=cls, version=2)
    def forward(engine: Engine, x: Tensor, out: Sequence[int], *rest: float | bool | None) -> Tensor:
        """The output's places in the input, and what lies there."""
        size = _size(engine, x.shape, dims, out)
        return _forward(engine, x, make(x.shape[2:], size, rest), moves)

    @register(f"{name}.vec", cls=cls, version=2)
    def vector(engine: Engine, x: Tensor, out: Sequence[int] | None, *rest: bool | Sequence[float] | None) -> Tensor:
        """The same, as it is dispatched in inference mode: sizes are given, or factors."""
        factors = rest[-1] if isinstance(rest[-1], Sequence) else None
        size = _size(engine, x.shape, dims, out, factors)
        return _forward(engine, x, make(x.shape[2:], size, [*rest[:-1], *(factors or ())]), moves)

    @register(f"{name}_backward.default", cls=OpClass.COMPOSITE, version=2)
    def backward(
        engine: Engine, grad: Tensor, out: Sequence[int], size: Sequence[int], *rest: float | bool | None
    ) -> Tensor:
        """Sum over the places that read each input, by their weights."""
        axes = make(size[2:], _size(engine, size, dims, out), rest)
        if list(grad.shape) != [*size[:2], *out]:
            engine.refuse(f"a gradient of {list(grad.shape)}; want {[*size[:2], *out]}")
        return engine.fixed("", apply(grad, [axis.transposed for axis in axes]), engine.format(grad.dtype))


for _dims in (1, 2, 3):
    _enter(f"upsample_nearest{_dims}d", _dims, _nearest(False), True)
    _enter(f"_upsample_nearest_exact{_dims}d", _dims, _nearest(True), True)
_enter("upsample_linear1d", 1, _weighted(linear), False)
_enter("upsample_bilinear2d", 2, _weighted(linear), False)
_enter("upsample_trilinear3d", 3, _weighted(linear), False)
_enter("upsample_bicubic2d", 2, _weighted(cubic), False)

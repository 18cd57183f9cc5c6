"""Sizes of convolutions: given by the operation or derived from its input once, and checked (numerics §2)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from vtrain import kernels
from vtrain.engine.core import F64, Engine
from vtrain.engine.definition import Definition, DefinitionFn

Tensor = torch.Tensor
CHUNK_BYTES = 24 << 20


@dataclass(frozen=True)
class Shape:
    """Geometry of a 2-D convolution of x ``(n, c, h, w)`` by weight ``(o, c / groups, kh, kw)``.

    Attributes:
        out: output height and width. Given, not derived: the input of a transposed convolution is fewer positions than
            fit into its output where output_padding is at least the stride.
    """

    n: int
    c: int
    h: int
    w: int
    o: int
    kh: int
    kw: int
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int
    out: tuple[int, int]

    @property
    def most(self) -> tuple[int, int]:
        """Output height and width that fit into x."""
        sizes = zip((self.h, self.w), (self.kh, self.kw), self.stride, self.padding, self.dilation, strict=True)
        height, width = ((i + 2 * p - d * (k - 1) - 1) // s + 1 for i, k, s, p, d in sizes)
        return height, width

    @property
    def area(self) -> int:
        """Output positions of a sample."""
        return self.out[0] * self.out[1]

    @property
    def depth(self) -> int:
        """Rows of a group's columns: terms of an output's sum."""
        return self.c // self.groups * self.kh * self.kw

    def key(self, samples: int, channels: int) -> kernels.Geometry:
        """The geometry as the kernels take it."""
        return (
            samples,
            channels,
            self.h,
            self.w,
            self.kh,
            self.kw,
            *self.stride,
            *self.padding,
            *self.dilation,
            *self.out,
        )

    def chunks(self, dtype: torch.dtype) -> Iterator[tuple[int, int]]:
        """Ranges of samples whose columns fit into CHUNK_BYTES, at least one sample each."""
        each = self.c * self.kh * self.kw * self.area * (8 if dtype is F64 else 4)
        step = max(1, CHUNK_BYTES // max(1, each))
        for at in range(0, self.n, step):
            yield at, min(self.n, at + step)


def _pair(v: Sequence[int]) -> tuple[int, int]:
    return (v[0], v[1]) if len(v) == 2 else (v[0], v[0])


def as_2d(engine: Engine, x: Tensor, weight: Tensor, args: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor, list]:
    """A 1-D convolution as a 2-D one of height 1; higher ones are refused."""
    if x.dim() == 4:
        return x, weight, [_pair(a) for a in args]
    if x.dim() != 3:
        engine.refuse(f"a convolution over {x.dim() - 2} dimensions; 1 and 2 are covered")
    stride, padding, dilation = (a[0] for a in args)
    return x.unsqueeze(2), weight.unsqueeze(2), [(1, stride), (0, padding), (1, dilation)]


def shape_of(
    engine: Engine, x: Sequence[int], weight: Tensor, args: list, groups: int, out: Sequence[int] | None = None
) -> Shape:
    """The geometry of a convolution that has (or whose transpose is given) ``out``; None: all positions that fit.

    Raises:
        UnsupportedOperation: sizes that do not fit each other, or that PyTorch refuses.
    """
    if weight.dim() != 4 or any(v < 1 for v in (*args[0], *args[2], groups)) or min(args[1]) < 0:
        engine.refuse(f"a weight of {list(weight.shape)}, stride, padding, dilation {args}, {groups} groups")
    n, c, h, w = x
    o, per_group, kh, kw = weight.shape
    if c != per_group * groups or o % groups or min(kh, kw, h, w) < 1:
        engine.refuse(f"an input of {list(x)} with a weight of {list(weight.shape)} and {groups} groups")
    s = Shape(n, c, h, w, o, kh, kw, args[0], args[1], args[2], groups, (0, 0))
    size = s.most if out is None else (out[0], out[1])
    if min(s.most) < 1 or min(size) < 1 or size[0] > s.most[0] or size[1] > s.most[1]:
        engine.refuse(f"a kernel of {kh} x {kw}, dilated by {args[2]}, over {h} x {w} and a padding of {args[1]}")
    return replace(s, out=size)


def transposed_shape(
    engine: Engine, x: Sequence[int], weight: Tensor, args: list, extra: Sequence[int], groups: int
) -> Shape:
    """The geometry of the convolution that a transposed one is the gradient of: x is its output."""
    (sh, sw), (ph, pw), (dh, dw) = args
    eh, ew = _pair(extra) if len(extra) == 2 else (0, extra[0])
    if not (0 <= eh < max(sh, dh) and 0 <= ew < max(sw, dw)):
        engine.refuse(f"output_padding {(eh, ew)} with stride {args[0]} and dilation {args[2]}")
    h = (x[2] - 1) * sh - 2 * ph + dh * (weight.shape[2] - 1) + eh + 1
    w = (x[3] - 1) * sw - 2 * pw + dw * (weight.shape[3] - 1) + ew + 1
    if weight.shape[0] != x[1]:
        engine.refuse(f"an input of {list(x)} with a weight of {list(weight.shape)}")
    return shape_of(engine, [x[0], weight.shape[1] * groups, h, w], weight, args, groups, x[2:])


def defined(kind: str, s: Shape, c: str, **operands: Tensor | None) -> DefinitionFn:
    """What a convolution or one of its gradients is exactly, for a referee; c as ``engine.definition`` has it."""
    geometry = [s.n, s.c, s.h, s.w, s.o, s.kh, s.kw, *s.stride, *s.padding, *s.dilation, *s.out, s.groups]
    given = {name: t for name, t in operands.items() if t is not None}
    return lambda: Definition(kind, {"geometry": geometry, "c": c}, given)

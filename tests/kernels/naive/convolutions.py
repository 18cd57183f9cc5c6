"""The three products of a convolution, as chains."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from naive.bits import F32, Array, quietly
from naive.products import chain, kind


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
        total = F32(chain([float(a) for a, _ in terms], [b for _, b in terms], kind(wide)))
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
        y[s, c, *at] = F32(chain(a, [g.spread(grad, s, o, at, tap) for o, tap in of], kind(wide)))
    return y


@quietly
def weight_gradient(x: Array, grad: Array, g: Geometry, wide: bool) -> Array:
    """Chain over (sample, output position)."""
    y, each, outs = np.empty((g.o, g.c // g.groups, g.kh, g.kw), F32), g.c // g.groups, g.o // g.groups
    of = [(s, (row, column)) for s in range(g.n) for row in range(g.oh) for column in range(g.ow)]
    for o, c, *tap in np.ndindex(*y.shape):
        a = [float(grad[s, o, *at]) for s, at in of]
        y[o, c, *tap] = F32(chain(a, [g.read(x, s, o // outs * each + c, at, tap) for s, at in of], kind(wide)))
    return y

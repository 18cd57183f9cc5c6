"""Linear maps along one dimension of a tensor, as tables of indices and weights (numerics §2, class 4).

Resizing, pooling, padding and folding are products of such maps, one a dimension. A table is made on the host, by
integers or by one sequence of numpy's float32 operations, so that it is the same on every machine; a weight is
rational, rounded to float64 once. A gradient applies the same table transposed: it reaches just the elements that the
forward pass read, with the same weights. ``apply`` has one order of float64 additions, by the table alone.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import torch

from vtrain.engine.core import F64

Tensor = torch.Tensor
NONE = -1


@dataclass(frozen=True, eq=False)
class Axis:
    """y[r] = sum over k, ascending, of weight[r, k] * x[index[r, k]].

    Attributes:
        size: of x.
        index: int64 ``(rows, terms)``; NONE where a row has fewer terms.
        weight: float64 of the same shape; None: all are 1.
    """

    size: int
    index: np.ndarray
    weight: np.ndarray | None = None

    @property
    def rows(self) -> int:
        """Size of y."""
        return len(self.index)

    @functools.cached_property
    def identity(self) -> bool:
        """Whether y is x."""
        return self.weight is None and np.array_equal(self.index, np.arange(self.size)[:, None])

    @functools.cached_property
    def counts(self) -> np.ndarray:
        """Terms of each row, int64."""
        return (self.index != NONE).sum(1)

    @functools.cached_property
    def transposed(self) -> Axis:
        """The map of gradients; the terms of each row in ascending order of this map's (row, term)."""
        row, term = np.nonzero(self.index != NONE)
        to = self.index[row, term]
        order = np.argsort(to, kind="stable")
        counts = np.bincount(to, minlength=self.size)
        place = np.arange(len(to)) - np.repeat(np.cumsum(counts) - counts, counts)
        index = np.full((self.size, int(counts.max(initial=0))), NONE, dtype=np.int64)
        index[to[order], place] = row[order]
        weight = None
        if self.weight is not None:
            weight = np.zeros(index.shape)
            weight[to[order], place] = self.weight[row[order], term[order]]
        return Axis(self.rows, index, weight)

    @functools.cached_property
    def _terms(self) -> dict[torch.device, list[_Term]]:
        return {}

    def terms(self, device: torch.device) -> list[_Term]:
        """The columns of the table as tensors."""
        if device not in self._terms:
            self._terms[device] = [self._term(k, device) for k in range(self.index.shape[1])]
        return self._terms[device]

    def _term(self, k: int, device: torch.device) -> _Term:
        index = self.index[:, k]
        there = index != NONE
        step = int(index[1] - index[0]) if len(index) > 1 else 1
        weight = None if self.weight is None else torch.from_numpy(self.weight[:, k].copy()).to(device)
        if there.all() and step > 0 and np.array_equal(index, index[0] + step * np.arange(len(index))):
            return _Term(slice(int(index[0]), int(index[-1]) + 1, step), None, weight)
        absent = None if there.all() else torch.from_numpy(~there).to(device)
        return _Term(torch.from_numpy(np.where(there, index, 0)).to(device), absent, weight)


@dataclass(frozen=True, eq=False)
class _Term:
    """One term of every row.

    Attributes:
        index: what it reads: a slice where that is a progression.
        absent: rows without it; None: none.
        weight: a row's factor.
    """

    index: slice | Tensor
    absent: Tensor | None
    weight: Tensor | None

    def of(self, x: Tensor, dim: int) -> Tensor:
        """Its value in each row; a view of x where nothing is computed."""
        shape = [-1] + [1] * (x.dim() - 1 - dim)
        if isinstance(self.index, slice):
            found = x[(slice(None),) * dim + (self.index,)]
        else:
            found = x.index_select(dim, self.index)
        if self.weight is not None:
            found = torch.mul(found, self.weight.view(shape))
        if self.absent is not None:  # not a weight of 0: what is read there may be infinite
            found = found.masked_fill(self.absent.view(shape), 0.0)
        return found


def along(x: Tensor, dim: int, axis: Axis) -> Tensor:
    """The map along one dimension of float64 x: products, and sums in ascending order, an IEEE operation each."""
    if axis.identity:
        return x
    shape = [*x.shape[:dim], axis.rows, *x.shape[dim + 1 :]]
    terms = axis.terms(x.device)
    if not terms or 0 in shape:
        return x.new_zeros(shape)
    y = terms[0].of(x, dim)
    for k, term in enumerate(terms[1:]):
        value = term.of(x, dim)
        y = torch.add(y, value) if k == 0 else y.add_(value)
    return y


def apply(x: Tensor, axes: Sequence[Axis]) -> Tensor:
    """The maps along the last dimensions of x, first the earlier ones, in float64."""
    y = x.to(F64)
    for position, axis in enumerate(axes):
        y = along(y, y.dim() - len(axes) + position, axis)
    return y


def select(x: Tensor, axes: Sequence[Axis]) -> Tensor:
    """The maps along the last dimensions of x where each has one term of weight 1: a copy, of any dtype."""
    y = x
    for position, axis in enumerate(axes):
        if not axis.identity:
            dim = y.dim() - len(axes) + position
            y = axis.terms(x.device)[0].of(y, dim) if axis.rows else y.narrow(dim, 0, 0)
    return y.clone(memory_format=torch.contiguous_format)


def full(values: Sequence[int], dims: int) -> list[int]:
    """One number a dimension, where one may stand for all."""
    return list(values) * dims if len(values) == 1 else list(values)


# ---- windows --------------------------------------------------------------------------------------------------------
def _ranges(size: int, starts: np.ndarray, ends: np.ndarray) -> Axis:
    """Sums of x[start:end]."""
    most = int((ends - starts).max(initial=0))
    index = starts[:, None] + np.arange(max(0, most))
    return Axis(size, np.where(index < ends[:, None], index, NONE))


@functools.lru_cache(maxsize=512)
def windows(size: int, out: int, kernel: int, stride: int, padding: int) -> tuple[Axis, np.ndarray]:
    """Pooling's windows, and the number of positions of each that are in x or its padding."""
    starts = np.arange(out) * stride - padding
    padded = np.minimum(starts + kernel, size + padding)
    return _ranges(size, np.maximum(starts, 0), np.minimum(padded, size)), padded - starts


@functools.lru_cache(maxsize=512)
def adaptive_windows(size: int, out: int) -> Axis:
    """Window r is [floor(r * size / out), ceil((r + 1) * size / out))."""
    r = np.arange(out)
    return _ranges(size, r * size // out, -((-(r + 1) * size) // out))


@functools.lru_cache(maxsize=512)
def taps(size: int, out: int, kernel: int, stride: int, padding: int, dilation: int) -> Axis:
    """Row (tap, position) of a patch's columns reads x[position * stride + tap * dilation - padding], or nothing."""
    index = np.arange(out) * stride + np.arange(kernel)[:, None] * dilation - padding
    return Axis(size, np.where((index >= 0) & (index < size), index, NONE).reshape(-1, 1))


# ---- padding --------------------------------------------------------------------------------------------------------
@functools.lru_cache(maxsize=512)
def reflected(size: int, before: int, after: int) -> Axis:
    """x mirrored at its first and last element; negative numbers cut off."""
    index = np.abs(np.arange(-before, size + after))
    return Axis(size, (size - 1 - np.abs(size - 1 - index))[:, None])


@functools.lru_cache(maxsize=512)
def replicated(size: int, before: int, after: int) -> Axis:
    """x with its first and last element repeated; negative numbers cut off."""
    return Axis(size, np.clip(np.arange(-before, size + after), 0, size - 1)[:, None])


# ---- interpolation --------------------------------------------------------------------------------------------------
def _ratio(size: int, out: int, corners: bool, scale: float | None) -> Fraction:
    """Distance in x of two neighbours in y, exactly."""
    if corners:
        return Fraction(size - 1, out - 1) if out > 1 else Fraction(0)
    return 1 / Fraction(scale) if scale is not None and scale > 0 else Fraction(size, out)


@functools.lru_cache(maxsize=512)
def nearest(size: int, out: int, scale: float | None, exact: bool) -> Axis:
    """x[floor(i * ratio)], or x[floor((i + 1/2) * ratio)] where ``exact``, in float32 as PyTorch has it.

    Operations of float32 rounded to nearest: ratio = size / out, or 1 / scale (divided in float64) rounded to float32
    where the scale is given; then the product. PyTorch's kernels agree but where they special-case a ``scale`` whose
    output has x's size or twice that (small and channels-last images), or subtract and add a half again (1-D, exact).
    """
    f = np.float32
    ratio = f(1.0 / scale) if scale is not None and scale > 0 else f(size) / f(out)
    at = np.arange(out).astype(f) + f(0.5 if exact else 0.0)
    return Axis(size, np.minimum(np.floor(at * ratio).astype(np.int64), size - 1)[:, None])


def _places(size: int, out: int, corners: bool, scale: float | None, clamp: bool) -> list[tuple[int, int, int]]:
    """Where each output lies in x: whole part, and numerator and denominator of the rest, in [0, 1]."""
    ratio = _ratio(size, out, corners, scale)
    n, d = ratio.numerator, ratio.denominator
    found = []
    for i in range(out):
        top, below = (n * i, d) if corners else (n * (2 * i + 1) - d, 2 * d)
        whole, rest = divmod(max(top, 0) if clamp else top, below)
        found.append((whole, rest, below) if whole < size else (size - 1, below, below))
    return found


@functools.lru_cache(maxsize=512)
def linear(size: int, out: int, corners: bool, scale: float | None) -> Axis:
    """The two neighbours of (i + 1/2) * ratio - 1/2, at least 0, or of i * ratio with ``corners``, and their weights.

    As in PyTorch an axis that keeps its size is the identity, whatever the scale.
    """
    if size == out:
        return Axis(size, np.arange(size)[:, None])
    places = _places(size, out, corners, scale, clamp=True)
    index = [(at, min(at + 1, size - 1)) for at, _, _ in places]
    weight = [((below - rest) / below, rest / below) for _, rest, below in places]
    return Axis(size, np.array(index, dtype=np.int64).reshape(-1, 2), np.array(weight).reshape(-1, 2))


def _cubic_weights(t: Fraction) -> tuple[float, ...]:
    """Keys' cubic convolution with a = -3/4 at distances 1 + t, t, 1 - t, 2 - t (Keys 1981), each rounded once."""
    a = Fraction(-3, 4)

    def near(x: Fraction) -> Fraction:
        return ((a + 2) * x - (a + 3)) * x * x + 1

    def far(x: Fraction) -> Fraction:
        return ((a * x - 5 * a) * x + 8 * a) * x - 4 * a

    return tuple(float(w) for w in (far(1 + t), near(t), near(1 - t), far(2 - t)))


@functools.lru_cache(maxsize=512)
def cubic(size: int, out: int, corners: bool, scale: float | None) -> Axis:
    """The four neighbours of the place, those beyond x being its ends, and their weights."""
    places = _places(size, out, corners, scale, clamp=False)
    index = [[min(max(at + k, 0), size - 1) for k in range(-1, 3)] for at, _, _ in places]
    weight = [_cubic_weights(Fraction(rest, below)) for _, rest, below in places]
    return Axis(size, np.array(index, dtype=np.int64).reshape(-1, 4), np.array(weight).reshape(-1, 4))

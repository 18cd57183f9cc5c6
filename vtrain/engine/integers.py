"""Exact products of fixed-point numbers: the canonical order of arithmetic that has no order (numerics §10).

Each row of the left factor and each column of the right one is scaled by a power of two and rounded to integers of
two or three signed bytes; the integers' products are summed exactly, and what comes out is a float64 that every
format's one rounding takes for the exact sum. ``vtrain.rounding.fixed`` has the definition for single elements.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from vtrain.engine.carriers import int_mm
from vtrain.engine.workspace import Workspace
from vtrain.rounding.fixed import DIGIT_BITS, limit

Tensor = torch.Tensor
F64, I64 = torch.float64, torch.int64
CHUNK = 1 << 15  # terms: 3 products of bytes each stay below 2^31, and the whole sum below 2^61
_EXACT = 2.0**53
_MARGIN = 1 - 2.0**-20  # for the roundings of norms
_MANTISSA = (1 << 52) - 1


def tops(x: Tensor, dim: int) -> Tensor:
    """Largest magnitude along a dimension, which stays with size 1, in float64; NaN where there is one."""
    if x.shape[dim] == 0:
        shape = list(x.shape)
        shape[dim] = 1
        return torch.zeros(shape, dtype=F64, device=x.device)
    return x.abs().amax(dim, keepdim=True).to(F64)


def shifts(top: Tensor, digits: int) -> Tensor:
    """For each the largest e for which top * 2^e, rounded, is at most ``limit``; 0 of 0: int64 (``fixed.shift_of``)."""
    bits, whole = top.view(I64), DIGIT_BITS * digits - 2
    # top = (1 + m / 2^52) 2^(bits >> 52 - 1023); its integer passes the odd limit from limit + 1/2 on
    most = ((2 * limit(digits) + 1) << (51 - whole)) - (1 << 52)
    e = whole + 1023 - (bits >> 52) - ((bits & _MANTISSA) >= most).to(I64)
    return torch.where(top == 0, torch.zeros_like(e), e)


def power(e: Tensor) -> Tensor:
    """2^e in float64, of -1022 <= e <= 1023."""
    return ((e + 1023) << 52).view(F64)


@dataclass
class _Words:
    """A sum of int64 numbers that one may not hold: high * 2^32 + low."""

    high: Tensor
    low: Tensor

    @classmethod
    def of(cls, total: Tensor) -> _Words:
        return cls(total >> 32, total & 0xFFFFFFFF)

    def add(self, total: Tensor) -> None:
        self.high += total >> 32
        self.low += total & 0xFFFFFFFF

    def value(self) -> Tensor:
        """As ``sticky`` has it."""
        high, low = self.high + (self.low >> 32), self.low & 0xFFFFFFFF
        small = sticky((high << 32) | low)
        wide = ((high << 10) | (low >> 22)) | ((low & ((1 << 22) - 1)) != 0).to(I64)
        return torch.where(high.abs() < 1 << 30, small, wide.to(F64) * 2.0**22)


def sticky(total: Tensor) -> Tensor:
    """int64 as float64: exact below 2^53; above, a number on the same side of every rounding to 42 bits or fewer.

    The lowest 10 bits become one, "not zero", in the place above them (Boldo and Melquiond 2008, rounding to odd): the
    boundaries of such a rounding are even multiples of 2^10, and the result is an odd one where the sum is no multiple.
    """
    if total.numel() == 0 or int(total.abs().amax()) < 1 << 53:
        return total.to(F64)
    marked = (total & -1024) | (((total & 1023) + 1023) & 1024)
    return torch.where(total.abs() < 1 << 53, total, marked).to(F64)


class Product:
    """The exact sum of products of fixed-point numbers, whose terms may come in parts.

    Args:
        work: scratch memory; dead are its ``a``, ``b``, ``y``, ``total``, ``weight`` and ``bytes``.
        top_a: largest magnitudes of the left factor's rows, ``(batch, m, 1)`` float64.
        top_b: of the right one's columns, ``(batch, 1, n)``.
        digits: signed bytes of each number.
        carrier: what multiplies (``vtrain.engine.carriers``).

    Attributes:
        finite: whether all magnitudes are; otherwise the results of the other rows and columns are ``specials``.
    """

    def __init__(self, work: Workspace, top_a: Tensor, top_b: Tensor, digits: int, carrier: str) -> None:
        self._work, self._digits, self._carrier = work, digits, carrier
        self.finite = bool(top_a.isfinite().all()) and bool(top_b.isfinite().all())
        if not self.finite:  # such rows have no scale, nor need one: their results are special
            top_a, top_b = (torch.where(t.isfinite(), t, 0.0) for t in (top_a, top_b))
        self._a, self._b = shifts(top_a, digits), shifts(top_b, digits)
        self._y: Tensor | None = None
        self._total: Tensor | None = None
        self._words: _Words | None = None

    def add(self, a: Tensor, b: Tensor, last: bool = False) -> None:
        """Add the terms of a ``(batch, m, k)`` by b ``(batch, k, n)``; ``last``: none follow, and none came before."""
        for at in range(0, a.shape[2], CHUNK):
            only = last and a.shape[2] <= CHUNK
            self._add(a[:, :, at : at + CHUNK], b[:, at : at + CHUNK], only)

    def _add(self, a: Tensor, b: Tensor, only: bool) -> None:
        a, b = self._fixed("a", a, self._a), self._fixed("b", b, self._b)
        if self._carrier == "int8":
            total = _by_bytes(self._work, a, b, self._digits)
        elif only and self._one_product(a, b):
            y = self._work.get("y", (*a.shape[:2], b.shape[2]), F64, a.device)
            self._y = torch.bmm(a, b, out=y)
            return
        else:
            total = _by_float64(self._work, a, b)
        if only:
            self._total = total
        elif self._words is None:
            self._words = _Words.of(total)
        else:
            self._words.add(total)

    def _fixed(self, name: str, x: Tensor, e: Tensor) -> Tensor:
        """x * 2^e, rounded to integers, in float64."""
        out = self._work.like(name, x, F64).copy_(x).mul_(power(e)).round_()
        return out if self.finite else out.nan_to_num_(0.0, 0.0, 0.0)

    def _one_product(self, a: Tensor, b: Tensor) -> bool:
        """Whether every partial sum in every order is below 2^53 (Cauchy and Schwarz), so that float64 is exact."""
        most = limit(self._digits)
        if a.shape[2] * most * most < _EXACT:
            return True
        norms = [torch.linalg.vector_norm(x, dim=d).amax() if x.numel() else 0.0 for x, d in ((a, 2), (b, 1))]
        return float(norms[0]) * float(norms[1]) < _EXACT * _MARGIN

    def value(self) -> Tensor:
        """The sum as a float64 that rounds as it does, ``(batch, m, n)``, perhaps in scratch memory."""
        if self._words is not None:
            y = self._words.value()
        elif self._total is not None:
            y = sticky(self._total)
        elif self._y is not None:
            y = self._y
        else:
            batch, m, n = self._a.shape[0], self._a.shape[1], self._b.shape[2]
            return torch.zeros((batch, m, n), dtype=F64, device=self._a.device)
        return y.add_(0.0).mul_(power(-self._a)).mul_(power(-self._b))  # + 0: the zero of a sum is +0


def _by_float64(work: Workspace, a: Tensor, b: Tensor) -> Tensor:
    """Two products, with the right factor cut into parts of 12 bits: partial sums below 2^23 * 2^12 * CHUNK = 2^50."""
    shape = (*a.shape[:2], b.shape[2])
    y, total, low = (work.get(name, shape, t, a.device) for name, t in (("y", F64), ("total", I64), ("weight", I64)))
    high = torch.mul(b, 2.0**-12, out=work.like("high", b, F64)).round_()
    total.copy_(torch.bmm(a, high, out=y)).mul_(4096)
    return total.add_(low.copy_(torch.bmm(a, b.sub_(high, alpha=4096.0), out=y)))


def _by_bytes(work: Workspace, a: Tensor, b: Tensor, digits: int) -> Tensor:
    """Products of signed bytes, the sums of one weight in 32 bits, all of them in 64."""
    left, right = _bytes(a, digits), _bytes(b, digits)
    shape, device = (*a.shape[:2], b.shape[2]), a.device
    total, wide = work.get("total", shape, I64, device), work.get("weight", shape[1:], I64, device)
    ready = [work.get(f"bytes{i}", shape[1:], torch.int32, device) for i in range(2)]
    for i in range(shape[0]):
        for weight in reversed(range(2 * digits - 1)):
            pairs = range(max(0, weight - digits + 1), min(digits - 1, weight) + 1)
            part = int_mm(left[pairs[0]][i], right[weight - pairs[0]][i], ready[0])
            for p in pairs[1:]:
                part += int_mm(left[p][i], right[weight - p][i], ready[1])
            if weight == 2 * digits - 2:
                total[i].copy_(part)
            else:
                total[i].bitwise_left_shift_(DIGIT_BITS).add_(wide.copy_(part))
    return total


def _bytes(x: Tensor, digits: int) -> list[Tensor]:
    """Integers as signed bytes, the least first, in x's order in memory."""
    rest, found = x.to(torch.int32), []
    for _ in range(digits):
        found.append(rest.to(torch.int8))  # the lowest 8 bits, as two's complement
        rest = rest.add_(128).bitwise_right_shift_(8)
    return found


def product(work: Workspace, a: Tensor, b: Tensor, digits: int, carrier: str) -> Tensor:
    """a ``(batch, m, k)`` by b ``(batch, k, n)``, as ``Product.value`` has it; NaN and infinities as ``specials``."""
    found = Product(work, tops(a, 2), tops(b, 1), digits, carrier)
    found.add(a, b, last=True)
    return found.value() if found.finite else specials(found.value(), a, b)


def specials(y: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """y with NaN and infinities: NaN where a term is NaN or two are infinities of unlike signs, else the infinity.

    Terms are counted, by products of zeros and ones, which are exact in every order.
    """
    nan_a, nan_b, inf_a, inf_b = a.isnan(), b.isnan(), a.isinf(), b.isinf()
    one_a, one_b = torch.ones_like(a, dtype=F64), torch.ones_like(b, dtype=F64)
    sign_a, sign_b = (torch.where(n, 0.0, x.to(F64)).sign() for n, x in ((nan_a, a), (nan_b, b)))
    none = _count(nan_a, one_b) + _count(one_a, nan_b) + _count(inf_a, b == 0) + _count(a == 0, inf_b)
    ends_a, ends_b, rest_a = torch.where(inf_a, sign_a, 0.0), torch.where(inf_b, sign_b, 0.0), ~inf_a * sign_a
    number = _count(ends_a.abs(), sign_b.abs()) + _count(rest_a.abs(), ends_b.abs())
    signed = _count(ends_a, sign_b) + _count(rest_a, ends_b)
    y = torch.where(number > 0, torch.where(signed > 0, torch.inf, -torch.inf).to(F64), y)
    return torch.where((none > 0) | (number != signed.abs()), torch.nan, y)


def _count(a: Tensor, b: Tensor) -> Tensor:
    return torch.bmm(a.to(F64), b.to(F64))

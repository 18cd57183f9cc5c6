"""The exact integer product in Python's integers and fractions, from its definition (numerics §10) alone."""

from __future__ import annotations

import math
from fractions import Fraction

import torch

from vtrain.rounding.formats import FLOAT32, Format
from vtrain.rounding.naive import round_fraction

Number = Fraction | float


def most(digits: int) -> int:
    """The largest number whose negative, too, is a sum of signed bytes times powers of 256."""
    return sum(127 * 256**i for i in range(digits))


def exponent(vector: list[float], digits: int) -> int:
    """The largest e with which no element, times 2^e and rounded, is beyond ``most``; 0 of zeros."""
    if not any(vector):
        return 0
    e, top = 300, Fraction(max(map(abs, vector)))
    while round(top * Fraction(2) ** e) > most(digits):
        e -= 1
    return e


def dot(u: list[float], v: list[float], digits: int) -> Number:
    """The exact sum of products of fixed-point numbers, or what has no number."""
    if not all(map(math.isfinite, [*u, *v])):
        pairs = list(zip(u, v, strict=True))
        found = {x * math.copysign(bool(w), w) if math.isfinite(w) else x * w for x, w in pairs}
        ends = {y for y in found if math.isinf(y)}
        return math.nan if any(map(math.isnan, found)) or len(ends) != 1 else ends.pop()
    eu, ev = exponent(u, digits), exponent(v, digits)
    numbers = ([round(Fraction(x) * Fraction(2) ** e) for x in vector] for vector, e in ((u, eu), (v, ev)))
    total = sum(x * y for x, y in zip(*numbers, strict=True))
    return Fraction(total) / Fraction(2) ** (eu + ev)


def product(
    a: torch.Tensor, b: torch.Tensor, fmt: Format, bias: torch.Tensor | None = None, alpha: float = 1, beta: float = 1
) -> torch.Tensor:
    """alpha * a ``(m, k)`` @ b ``(k, n)`` + beta * bias ``(m, n)``, float64 numbers of the format."""
    digits = 2 if fmt.p <= 11 else 3
    rows, columns = a.double().tolist(), b.double().t().tolist()
    sums = [[dot(row, column, digits) for column in columns] for row in rows]
    if alpha == 1 and bias is None:
        return torch.tensor([[round_fraction(y, fmt) for y in row] for row in sums], dtype=torch.float64)
    y = torch.tensor([[round_fraction(y, FLOAT32) for y in row] for row in sums], dtype=torch.float32)
    y = y * torch.tensor(alpha, dtype=torch.float32)
    if bias is not None:
        y = y + bias.float() * torch.tensor(beta, dtype=torch.float32)
    return torch.tensor([[round_fraction(x, fmt) for x in row] for row in y.double().tolist()], dtype=torch.float64)

"""Sums in Python's floats (float64)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from naive.bits import F64, Array, quietly

LANES, SEGMENT = 32, 16384


def total(terms: Sequence[float]) -> float:
    """The sum of float64 terms: segments, in them lanes, over these a tree; the segments are added to +0, ascending."""
    y = 0.0
    for start in range(0, len(terms), SEGMENT):
        lanes = [0.0] * LANES
        for i, term in enumerate(terms[start : start + SEGMENT]):
            lanes[i % LANES] += term
        for half in (16, 8, 4, 2, 1):
            lanes = [lanes[q] + lanes[q + half] for q in range(half)]
        y += lanes[0]
    return y


def totals(terms: Array) -> Array:
    """The sum of each row."""
    return np.array([total(row) for row in terms.astype(F64).tolist()], F64)


@quietly
def sum_terms(kind: str, dims: Sequence[int], x: Array, *others: Array) -> Array:
    """Sums over dims; the terms in row-major order of dims."""
    kept = [d for d in range(x.ndim) if d not in dims]
    shape = [x.shape[d] for d in kept]
    count = math.prod(x.shape[d] for d in dims)

    def rows(v: Array) -> Array:
        return v.transpose(*kept, *dims).reshape(math.prod(shape), count)

    a = rows(x)
    if kind == "value":
        terms = a.astype(F64)
    elif kind == "square":
        terms = a.astype(F64) * a.astype(F64)
    elif kind == "centred_square":
        centred = (a - others[0].reshape(-1, 1)).astype(F64)
        terms = centred * centred
    elif kind == "product":
        terms = a * rows(others[0])
    elif kind == "centred_product":
        terms = a * (rows(others[0]) - others[1].reshape(-1, 1))
    else:
        terms = a * ((rows(others[0]) - others[1].reshape(1, -1)) * others[2].reshape(1, -1))
    return totals(terms).reshape(shape)

"""Sums at indices."""

from __future__ import annotations

import numpy as np

from naive.bits import F32, F64, Array, quietly


@quietly
def scatter(values: Array, index: Array, rows: int, x: Array | None, alpha: float) -> Array:
    """Terms alpha * value in float32, added in float64 to their row, ascending."""
    y = np.zeros((rows, values.shape[1]), F64) if x is None else x.astype(F64)
    for row, value in zip(index, values, strict=True):
        y[row] = y[row] + (F32(alpha) * value).astype(F64)
    return y

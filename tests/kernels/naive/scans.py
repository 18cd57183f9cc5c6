"""Running sums."""

from __future__ import annotations

import itertools

import numpy as np

from naive.bits import F64, Array, quietly


@quietly
def running_sum(x: Array, dim: int) -> Array:
    """Running sums in float64, ascending."""
    lines = np.moveaxis(x.astype(F64), dim, -1)
    y = np.array([list(itertools.accumulate(line.tolist())) for line in lines.reshape(-1, lines.shape[-1])], F64)
    return np.moveaxis((0.0 + y).reshape(lines.shape), -1, dim)

"""Handlers by family; importing this package fills the table."""

from vtrain.engine.ops import (
    convolution,
    decomposed,
    exact,
    functions,
    fused,
    grouped,
    linalg,
    matmul,
    normalization,
    pointwise,
    random,
    reduction,
    scatter,
    softmax,
)

__all__ = [
    "convolution",
    "decomposed",
    "exact",
    "functions",
    "fused",
    "grouped",
    "linalg",
    "matmul",
    "normalization",
    "pointwise",
    "random",
    "reduction",
    "scatter",
    "softmax",
]

"""Handlers by family; importing this package fills the table."""

from vtrain.engine.ops import (
    convolution,
    exact,
    functions,
    fused,
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
    "exact",
    "functions",
    "fused",
    "matmul",
    "normalization",
    "pointwise",
    "random",
    "reduction",
    "scatter",
    "softmax",
]

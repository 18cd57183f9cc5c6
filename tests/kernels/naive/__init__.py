"""Twins of the canonical kernels, written from the definitions beside them: slow, obviously right.

Chains of fused multiply-adds are done in whole numbers, sums in Python's floats (float64), the rest in NumPy's float32,
one operation at a time. Elementary functions are the kernels' own, in float64: they have tests of their own.
"""

from __future__ import annotations

from naive.bits import F32, F64, SPECIAL, Array, array, assert_same, half_way, numbers, quietly, strange
from naive.channels import channel_norm, channel_norm_backward
from naive.convolutions import Geometry, convolution, input_gradient, weight_gradient
from naive.indexed import scatter
from naive.pointwise import activation, function, softplus
from naive.products import DOUBLE, FLOAT, Binary, chain, fused, kind, nearest_whole, product, whole
from naive.rows import (
    layer_norm,
    layer_norm_backward,
    log_softmax,
    log_softmax_backward,
    rms_norm,
    rms_norm_backward,
    softmax,
    softmax_backward,
)
from naive.scans import running_sum
from naive.sums import sum_terms, total, totals

__all__ = [
    "DOUBLE",
    "F32",
    "F64",
    "FLOAT",
    "SPECIAL",
    "Array",
    "Binary",
    "Geometry",
    "activation",
    "array",
    "assert_same",
    "chain",
    "channel_norm",
    "channel_norm_backward",
    "convolution",
    "function",
    "fused",
    "half_way",
    "input_gradient",
    "kind",
    "layer_norm",
    "layer_norm_backward",
    "log_softmax",
    "log_softmax_backward",
    "nearest_whole",
    "numbers",
    "product",
    "quietly",
    "rms_norm",
    "rms_norm_backward",
    "running_sum",
    "scatter",
    "softmax",
    "softmax_backward",
    "softplus",
    "strange",
    "sum_terms",
    "total",
    "totals",
    "weight_gradient",
    "whole",
]

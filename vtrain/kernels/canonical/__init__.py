"""Canonical kernels on tensors: one defined order of arithmetic, so every machine gives the same bits (numerics §3)."""

from __future__ import annotations

from vtrain.kernels.canonical.rows import (
    FUNCTIONS,
    STRIP,
    activation,
    channel_norm,
    channel_norm_backward,
    convolution,
    function,
    in_doubt,
    layer_norm,
    layer_norm_backward,
    optimizer_step,
    power,
    product,
    rms_norm,
    rms_norm_backward,
    round_to,
    running_sum,
    scatter,
    softmax,
    sum_terms,
)

__all__ = [
    "FUNCTIONS",
    "STRIP",
    "activation",
    "channel_norm",
    "channel_norm_backward",
    "convolution",
    "function",
    "in_doubt",
    "layer_norm",
    "layer_norm_backward",
    "optimizer_step",
    "power",
    "product",
    "rms_norm",
    "rms_norm_backward",
    "round_to",
    "running_sum",
    "scatter",
    "softmax",
    "sum_terms",
]

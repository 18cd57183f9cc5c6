"""Canonical kernels on tensors: one defined order of arithmetic, so every machine gives the same bits (numerics §3).

Operands are float32 (16-bit ones are widened by the caller, exactly) on the CPU or on one CUDA device, of any strides
unless said otherwise. Results are new contiguous tensors. A wrong operand is an ``OperandError`` that names kernel and
tensor. The order of arithmetic of the kernels that a module calls is in ``families/``, in the header of its name.
"""

from __future__ import annotations

from vtrain.kernels.canonical.attention import Dropout, Sight, attention, attention_backward
from vtrain.kernels.canonical.channels import channel_norm, channel_norm_backward
from vtrain.kernels.canonical.convolutions import convolution
from vtrain.kernels.canonical.depthwise import depthwise, depthwise_input, depthwise_weight
from vtrain.kernels.canonical.doubt import STRIP, in_doubt, round_to
from vtrain.kernels.canonical.indexed import scatter
from vtrain.kernels.canonical.optimizer import optimizer_step
from vtrain.kernels.canonical.pointwise import FUNCTIONS, activation, function, power
from vtrain.kernels.canonical.products import product
from vtrain.kernels.canonical.rows import layer_norm, layer_norm_backward, rms_norm, rms_norm_backward, softmax
from vtrain.kernels.canonical.scans import Reach, running_sum, scan, scan_decay
from vtrain.kernels.canonical.sums import sum_terms

__all__ = [
    "FUNCTIONS",
    "STRIP",
    "Dropout",
    "Reach",
    "Sight",
    "activation",
    "attention",
    "attention_backward",
    "channel_norm",
    "channel_norm_backward",
    "convolution",
    "depthwise",
    "depthwise_input",
    "depthwise_weight",
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
    "scan",
    "scan_decay",
    "scatter",
    "softmax",
    "sum_terms",
]

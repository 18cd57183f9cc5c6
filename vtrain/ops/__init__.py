"""Differentiable functions with one defined order of arithmetic: the same bits everywhere, in steps and outside.

Each is a ``torch.library`` operator of the namespace ``vtrain``. Inside a recorded step it is one operation of the
table, canonical under every policy: nothing of it is logged.
"""

from __future__ import annotations

from vtrain.ops.convolutions import long_conv, short_conv
from vtrain.ops.fourier import monarch_conv, monarch_dft
from vtrain.ops.linear import linear_attention, scan
from vtrain.ops.losses import linear_cross_entropy
from vtrain.ops.maps import elu_map, hedgehog_map, relu_map, taylor_map
from vtrain.ops.positions import rotary
from vtrain.ops.products import block_diagonal, chain_product, monarch
from vtrain.ops.softmax import attention

__all__ = [
    "attention", "block_diagonal", "chain_product", "elu_map", "hedgehog_map", "linear_attention",
    "linear_cross_entropy", "long_conv", "monarch", "monarch_conv", "monarch_dft", "relu_map", "rotary", "scan",
    "short_conv", "taylor_map",
]  # fmt: skip

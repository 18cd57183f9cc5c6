"""Differentiable functions with one defined order of arithmetic: the same bits everywhere, in steps and outside.

Each is a ``torch.library`` operator of the namespace ``vtrain``. Inside a recorded step it is one operation of the
table, canonical under every policy: nothing of it is logged.
"""

from __future__ import annotations

from vtrain.ops.linear import linear_attention, scan
from vtrain.ops.softmax import attention

__all__ = ["attention", "linear_attention", "scan"]

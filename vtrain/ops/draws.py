"""A draw's name as a tensor: what an operator that drops needs, so that it has no state and can be done again."""

from __future__ import annotations

import torch

from vtrain.kernels.canonical import Dropout
from vtrain.ops.shared import F32, Tensor
from vtrain.random import WordKey, bernoulli_threshold, words


@torch.library.custom_op("vtrain::draw", mutates_args=())
def draw_op(like: Tensor) -> Tensor:
    """The next draw of torch's global generator: key, site and step, int64 ``(3,)`` on the CPU."""
    return torch.empty(3, dtype=torch.int64).random_().bitwise_and_(torch.tensor([-1, 2**32 - 1, -1]))


@draw_op.register_fake
def _(like: Tensor) -> Tensor:
    return torch.empty(3, dtype=torch.int64, device="cpu")


def dropout_of(draw: Tensor | None, p: float) -> Dropout | None:
    """Weights dropped with probability p by a draw's coins; those that stay are divided by 1 - p, as torch does it."""
    if draw is None:
        return None
    key, site, step = (int(n) % 2**64 for n in draw.tolist())
    keep = 1 - p
    kept = torch.ones((), dtype=F32) / torch.full((), keep, dtype=F32)
    return Dropout(key, site, step, bernoulli_threshold(keep), float(kept))


def coins(dropout: Dropout, shape: torch.Size) -> Tensor:
    """What weights are multiplied by: ``kept`` or 0, float32 on the CPU."""
    key = WordKey((dropout.key % 2**32, dropout.key >> 32))
    found = words(key, dropout.step, dropout.site, shape.numel()) < dropout.threshold
    return torch.from_numpy(found).view(shape).to(F32) * dropout.kept

"""A small classifier of attention, linear attention and convolutions over an image's rows."""

from __future__ import annotations

import torch

from vtrain import Program, ops
from vtrain.programs.vision import cross_entropy


class Rows(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.head = torch.nn.Linear(8, 24), torch.nn.Linear(8, 10)
        self.taps = torch.nn.Parameter(torch.full((8, 3), 0.4))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = image.flatten(1, 2)
        q, k, v = (t.unflatten(-1, (2, 4)).transpose(1, 2) for t in self.inner(x).chunk(3, -1))
        y = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        z, _ = ops.scan(q, k, v, log_decay=torch.full((), -0.3))
        u, _ = ops.short_conv((y + z).transpose(2, 3).flatten(1, 2), self.taps)
        return self.head(u.mean(2))


def mixers() -> Program:
    """The classifier."""
    return Program(Rows(), cross_entropy)

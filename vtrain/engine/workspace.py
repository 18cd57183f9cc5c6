"""Reused buffers for wide intermediates.

Fresh large tensors cost page faults at a tenth of the copy bandwidth, so values in C live in buffers that grow and
stay. A buffer's contents are dead as soon as its operation has settled.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch


def result(shape: Sequence[int], dtype: torch.dtype, device: torch.device | str = "cpu") -> torch.Tensor:
    """A new contiguous tensor for a result that outlives the operation."""
    return torch.empty(shape, dtype=dtype, device=device)


class Workspace:
    """Named scratch buffers, one set a device and dtype."""

    def __init__(self) -> None:
        self._buffers: dict[tuple[str, torch.dtype, torch.device], torch.Tensor] = {}

    def get(self, name: str, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        """A contiguous tensor of ``shape``, overwritten by the next call with this name."""
        need = math.prod(shape)
        key = (name, dtype, device)
        held = self._buffers.get(key)
        if held is None or held.numel() < need:
            self._buffers.pop(key, None)  # not both at once: its contents are dead
            held = self._buffers[key] = torch.empty(need, dtype=dtype, device=device)
        return held[:need].view(shape)

    def clear(self) -> None:
        """Give all buffers back; those in use live until their operation ends."""
        self._buffers.clear()

    def widen(self, name: str, x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """x in ``dtype`` with x's shape; keeps the order of its dimensions in memory, so that a transpose stays free.

        Returns x itself if it already has that dtype.
        """
        return x if x.dtype is dtype else self.like(name, x, dtype).copy_(x)

    def like(self, name: str, x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """A tensor of x's shape in ``dtype``, its dimensions in x's order in memory; overwritten by the next call."""
        order = sorted(range(x.dim()), key=x.stride, reverse=True)
        buffer = self.get(name, [x.shape[d] for d in order], dtype, x.device)
        back = [0] * x.dim()
        for position, d in enumerate(order):
            back[d] = position
        return buffer.permute(back)

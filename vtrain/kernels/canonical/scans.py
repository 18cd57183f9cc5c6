"""Running results along a dimension: sums, and states of linear attention (``reductions/scan.hpp``)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch

from vtrain.errors import OperandError
from vtrain.kernels import launch
from vtrain.kernels.canonical.checks import F32, F64, Tensor, checked, same_shape

_KINDS = {"lag": 0, "blocks": 1, "all": 2}


def running_sum(x: Tensor, dim: int) -> Tensor:
    """Running sums along dim in float64, in ascending order."""
    checked("running_sum", x, x=x)
    x = x.contiguous()
    y = torch.empty(x.shape, dtype=F64, device=x.device)
    if x.numel():
        n = x.shape[dim] if x.dim() else 1
        inner = math.prod(x.shape[dim % x.dim() + 1 :]) if x.dim() else 1
        launch.launch("running_sum", x, y, x.numel() // (n * inner), n, inner)
    return y


@dataclass(frozen=True)
class Reach:
    """Which keys a reader's state holds.

    Attributes:
        kind: ``lag``: those up to its own position less ``span``; ``blocks``: those before the block of ``span``
            positions in front of its own; ``all``.
        span: positions.
    """

    kind: Literal["lag", "blocks", "all"] = "lag"
    span: int = 0

    @property
    def numbers(self) -> tuple[int, int]:
        """As kernels take it."""
        if self.kind not in _KINDS or self.span < (1 if self.kind == "blocks" else 0):
            raise OperandError(f"{self}; want a lag of 0 or more, blocks of 1 or more, or all")
        return _KINDS[self.kind], self.span


def _strides(t: Tensor | None) -> tuple[int, ...]:
    return (0, 0, 0, 0) if t is None else t.stride()


def _dense(t: Tensor) -> Tensor:
    return t if t.stride(-1) == 1 or t.shape[-1] < 2 else t.contiguous()


def scan(
    read: Tensor, key: Tensor, value: Tensor, decay: Tensor | None, first: Tensor | None, reach: Reach,
    backwards: bool = False, across: bool = False,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """What readers see ``(batch, heads, length, columns)``, and the last state ``(batch, heads, rows, columns)``.

    Args:
        read, key: ``(batch, heads, length, rows)``.
        value: ``(batch, heads, length, columns)``.
        decay: broadcastable to ``(batch, heads, length, rows)``, or columns if ``across``.
        first: the state before all, ``(batch, heads, rows, columns)``.
        reach: which keys a reader sees.
        backwards: in time: readers' events add to the state, keys' events look at it and decay it.
        across: the decay lies along the columns.
    """
    checked("scan", read, read=read, key=key, value=value, decay=decay, first=first)
    if read.dim() != 4 or value.dim() != 4 or read.shape[:3] != value.shape[:3]:
        shapes = f"read is {list(read.shape)} and value {list(value.shape)}"
        raise OperandError(f"kernel scan: {shapes}, want (batch, heads, length, rows) and (..., columns)")
    same_shape("scan", read, key=key)
    batch, heads, length, rows = read.shape
    columns = value.shape[3]
    if first is not None and first.shape != (batch, heads, rows, columns):
        raise OperandError(f"kernel scan: first is {list(first.shape)}, want {[batch, heads, rows, columns]}")
    wide = (batch, heads, length, columns if across else rows)
    try:
        decay = None if decay is None else decay.expand(wide)
    except RuntimeError as error:
        raise OperandError(f"kernel scan: decay is {list(decay.shape)}, want {list(wide)} or less") from error  # type: ignore[union-attr]
    numbers = reach.numbers
    read, key, value = _dense(read), _dense(key), _dense(value)
    out = torch.empty((batch, heads, length, columns), dtype=F32, device=read.device)
    state = torch.empty((batch, heads, rows, columns), dtype=F32, device=read.device)
    if batch * heads * columns:
        launch.launch(
            "scan", read, key, value, decay, first, out, state, batch, heads, length, rows, columns,
            *read.stride()[:3], *key.stride()[:3], *value.stride()[:3], *_strides(decay), *_strides(first), *numbers,
            int(backwards), int(across),
        )  # fmt: skip
    return out, state


def scan_decay(
    read: Tensor,
    read_grad: Tensor,
    key: Tensor,
    key_grad: Tensor,
    state: Tensor,
    state_grad: Tensor | None,
    reach: Reach,
) -> Tensor:
    """Gradient of the decay's logarithm ``(batch, heads, length, rows)``, for each row.

    Args:
        read, key, and their gradients: ``(batch, heads, length, rows)``.
        state: the last one, ``(batch, heads, rows, columns)``, and its gradient.
        reach: as for ``scan``.
    """
    name = "scan_decay"
    checked(name, read, read=read, read_grad=read_grad, key=key, key_grad=key_grad, state=state, state_grad=state_grad)
    same_shape(name, read, read_grad=read_grad, key=key, key_grad=key_grad)
    batch, heads, length, rows = read.shape
    if state.shape[:3] != (batch, heads, rows) or state.dim() != 4:
        raise OperandError(f"kernel {name}: state is {list(state.shape)}, want {[batch, heads, rows]} and columns")
    if state_grad is not None:
        same_shape(name, state, state_grad=state_grad)
    out = torch.empty_like(read, memory_format=torch.contiguous_format)
    dense = [None if t is None else t.contiguous() for t in (read, read_grad, key, key_grad, state, state_grad)]
    if out.numel():
        launch.launch(name, *dense, out, batch, heads, length, rows, state.shape[3], *reach.numbers)
    return out

"""What kernels ask of their operands. Each failure is an ``OperandError`` that names kernel and tensor."""

from __future__ import annotations

import torch

from vtrain.errors import OperandError
from vtrain.kernels.device import has_kernels, kinds

Tensor = torch.Tensor
F32, F64 = torch.float32, torch.float64


def checked(kernel: str, like: Tensor, dtypes: tuple[torch.dtype, ...] = (F32,), **operands: Tensor | None) -> None:
    """Each operand is of one of dtypes, and on the device of ``like``, which has kernels."""
    for name, t in operands.items():
        if t is None:
            continue
        if t.dtype not in dtypes:
            want = " or ".join(str(d) for d in dtypes)
            raise OperandError(f"kernel {kernel}: {name} is {t.dtype}, want {want}")
        if t.device != like.device:
            raise OperandError(f"kernel {kernel}: {name} is on {t.device}, want {like.device}")
    if not has_kernels(like.device):
        raise OperandError(
            f"kernel {kernel}: {next(iter(operands))} is on {like.device}, want a device of type {', '.join(kinds())}"
        )


def same_shape(kernel: str, like: Tensor, **operands: Tensor) -> None:
    """Each operand is of the shape of ``like``."""
    for name, t in operands.items():
        if t.shape != like.shape:
            raise OperandError(f"kernel {kernel}: {name} is {list(t.shape)}, want {list(like.shape)}")


def sized(kernel: str, count: int, **operands: Tensor | None) -> None:
    """Each operand has ``count`` elements."""
    for name, t in operands.items():
        if t is not None and t.numel() != count:
            raise OperandError(f"kernel {kernel}: {name} has {t.numel()} elements, want {count}")


def contiguous(kernel: str, **operands: Tensor | None) -> None:
    """Each operand is contiguous."""
    for name, t in operands.items():
        if t is not None and not t.is_contiguous():
            raise OperandError(f"kernel {kernel}: {name} is not contiguous")

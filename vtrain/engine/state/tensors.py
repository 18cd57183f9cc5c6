"""Tensors as a checkpoint's bytes, and back."""

from __future__ import annotations

import torch

from vtrain.commit.digest import TensorBytes
from vtrain.errors import CheckpointError, StateError

DTYPES = {
    torch.float32: "F32", torch.float64: "F64", torch.bfloat16: "BF16", torch.float16: "F16", torch.int64: "I64",
    torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
TORCH_DTYPES = {name: dtype for dtype, name in DTYPES.items()}


def tensor_bytes(t: torch.Tensor) -> TensorBytes:
    """A tensor's digest view; shares memory with a contiguous CPU tensor.

    Raises:
        StateError: a dtype that can't be committed to.
    """
    name = DTYPES.get(t.dtype)
    if name is None:
        raise StateError(f"a tensor of dtype {t.dtype} can't be committed to; want one of {', '.join(TORCH_DTYPES)}")
    flat = t.detach().cpu().contiguous().reshape(-1)
    return TensorBytes(name, tuple(t.shape), flat.view(torch.uint8).numpy())


def to_tensor(t: TensorBytes) -> torch.Tensor:
    """A new tensor with the same bytes."""
    dtype = TORCH_DTYPES.get(t.dtype)
    if dtype is None:
        raise CheckpointError(f"a tensor of dtype {t.dtype}; want one of {', '.join(TORCH_DTYPES)}")
    if not t.view.nbytes:
        return torch.empty(t.shape, dtype=dtype)
    return torch.frombuffer(bytearray(t.view), dtype=dtype).reshape(t.shape)


def check_fits(name: str, found: TensorBytes, want: torch.Tensor) -> None:
    """Check a stored tensor's shape and dtype.

    Raises:
        CheckpointError: they are not the wanted one's.
    """
    if found.shape != tuple(want.shape) or found.dtype != DTYPES.get(want.dtype):
        raise CheckpointError(f"{name}: {found.dtype}{list(found.shape)}, want {want.dtype}{list(want.shape)}")

"""What a device's own errors mean, wherever they are met: its memory is full, or it can't be used any more."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch

from vtrain.errors import BackendError, DeviceMemoryError, VtrainError
from vtrain.kernels import device

_HOST = "DefaultCPUAllocator: can't allocate memory"  # which torch raises as a RuntimeError
_WAY_OUT = (
    "Give a step less at once: a smaller batch, gradients accumulated over parts of it, activation checkpointing; or "
    "free what else is held on the device. What was recorded stays: a loop goes on after run.rollback(), a run that "
    "ended when it is resumed"
)


class OutOfMemory(DeviceMemoryError, torch.OutOfMemoryError):
    """torch's error too, for programs that catch that one and try a smaller batch."""


def ran_out(error: BaseException) -> bool:
    """Whether an error says that a device, or the host, has no memory left."""
    return isinstance(error, torch.OutOfMemoryError) or (isinstance(error, RuntimeError) and _HOST in str(error))


def is_device_s(error: BaseException) -> bool:
    """Whether it is a device's own error, which is no fault of whoever met it."""
    return ran_out(error) or isinstance(error, torch.AcceleratorError)


def memory_error(where: str, text: str) -> OutOfMemory:
    """The error for memory that ran out: where, and what torch says of it: the device, and how much was asked for."""
    return OutOfMemory(f"{where}: {text.strip().splitlines()[0].rstrip('.')}. {_WAY_OUT}")


@contextlib.contextmanager
def told(where: Callable[[], str] = lambda: "outside a step") -> Iterator[None]:
    """Turn a device's errors into ours.

    Args:
        where: says what was being done.

    Raises:
        DeviceMemoryError: memory ran out; also a ``torch.OutOfMemoryError``.
        BackendError: the device failed; with the kernels that were launched last.
    """
    try:
        yield
    except VtrainError:
        raise
    except RuntimeError as error:
        if ran_out(error):
            raise memory_error(where(), str(error)) from error
        if not isinstance(error, torch.AcceleratorError):
            raise
        said = " ".join(text for backend in device.backends() if (text := backend.lost()))
        raise BackendError(f"{where()}: {str(error).strip().splitlines()[0]}. {said}".rstrip()) from error

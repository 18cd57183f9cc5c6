"""Where this process's jobs run: a choice of whoever runs them, of which no bit depends (``--device``)."""

from __future__ import annotations

import os

import torch

from vtrain.errors import UnsupportedError, UsageError
from vtrain.kernels.device import absence
from vtrain.profiles import DEVICE


def chosen_device() -> torch.device:
    """What ``VTRAIN_DEVICE`` names; the CPU where it names none.

    Raises:
        UsageError: it names no device of torch's.
        UnsupportedError: there is no such device here.
    """
    text = os.environ.get(DEVICE) or "cpu"
    try:
        device = torch.device(text)
    except RuntimeError as error:
        raise UsageError(f"--device {text[:40]!r}; want cpu, cuda or cuda:1, say") from error
    module = None if device.type == "cpu" else getattr(torch, device.type, None)
    if device.type != "cpu" and (module is None or not module.is_available()):
        why = f" ({said})" if (said := absence(device.type)) else ""
        raise UnsupportedError(
            f"--device {text}: torch {torch.__version__} finds no such device here{why}; leave it out"
        )
    if module is not None and (device.index or 0) >= module.device_count():
        raise UnsupportedError(f"--device {text}: there are {module.device_count()} of them here, from 0 on")
    return device


def to_device(model: torch.nn.Module) -> None:
    """Move a model there, in place; one that its program put elsewhere stays where it is.

    Raises:
        UsageError, UnsupportedError: as ``chosen_device``.
    """
    device = chosen_device()
    tensors = [*model.parameters(), *model.buffers()]
    if device.type != "cpu" and all(t.device.type == "cpu" for t in tensors):
        model.to(device)

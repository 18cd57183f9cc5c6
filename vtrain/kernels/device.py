"""Which devices have kernels, and how one is launched there: the one seam between the framework and a kind of device.

A type of device (torch's name of it) is served by one backend. Everything above asks here, and names no type but
"cpu", whose memory the host's own code reads. Everything else about a device, torch's module of that type knows.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Protocol, TypeAlias

import torch

from vtrain.errors import BackendError
from vtrain.kernels import _host
from vtrain.kernels.cuda import Cuda
from vtrain.rounding.accumulators import Accumulator

_NUMBERS = {name: number for number, (name, _) in enumerate(_host.kernels())}


Switch: TypeAlias = tuple[Callable[[], bool], Callable[[bool], None]]


class Backend(Protocol):
    """What the framework needs of a type of devices. Tensors there have addresses (``data_ptr``), which kernels get.

    Attributes:
        precisions: (backend, operation) pairs whose precision of float32 products torch keeps as a setting.
        flags: settings that decide how numbers are computed there, by the name under which a user sets them.
        libraries: how to read and set whether torch calls a vendor's library, which composes operations of its own.
    """

    @property
    def precisions(self) -> tuple[tuple[str, str], ...]: ...

    @property
    def flags(self) -> dict[str, Callable[[], object]]: ...

    @property
    def libraries(self) -> tuple[Switch, ...]: ...

    def matrix_units(self, device: torch.device) -> Accumulator | None:
        """What a device's matrix units add by; None where it has none, or none that a bound is known for."""
        ...

    def matrix_product(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        """a @ b of bfloat16 or float16, ``(m, k)`` and ``(k, n)`` or with a batch, on them: a new float32 tensor."""
        ...

    def absent(self) -> str:
        """Why torch finds no device of this type; empty where it does."""
        ...

    def lost(self) -> str:
        """What is to be said of a device that failed, where errors come late; empty where they don't."""
        ...

    def launch(self, device: torch.device, name: str, arguments: bytes) -> None:
        """Run a kernel of entries.hpp with its arguments' struct, in order with torch's work on that device."""
        ...


class Host:
    """The CPU: the extension's table, on torch's threads."""

    precisions: tuple[tuple[str, str], ...] = (("mkldnn", "matmul"),)

    libraries: tuple[Switch, ...] = ((torch._C._get_mkldnn_enabled, torch._C._set_mkldnn_enabled),)

    @property
    def flags(self) -> dict[str, Callable[[], object]]:
        return {"torch.backends.mkldnn.enabled": torch._C._get_mkldnn_enabled}

    def matrix_units(self, device: torch.device) -> None:
        """None: AMX and its like are not covered."""

    def matrix_product(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        """There are none."""
        raise BackendError("the CPU has no matrix units that are covered")

    def absent(self) -> str:
        """Empty: there is a CPU."""
        return ""

    def lost(self) -> str:
        """Empty: a call's errors are its own."""
        return ""

    def launch(self, device: torch.device, name: str, arguments: bytes) -> None:
        """Run a kernel here."""
        _host.launch(_NUMBERS[name], arguments, torch.get_num_threads())


_BACKENDS: dict[str, Backend] = {"cpu": Host(), "cuda": Cuda()}


def register(kind: str, backend: Backend) -> None:
    """Serve a type of devices from now on.

    Raises:
        ValueError: it is served already.
    """
    if kind in _BACKENDS:
        raise ValueError(f"devices of type {kind!r} have a backend already")
    _BACKENDS[kind] = backend


def kinds() -> tuple[str, ...]:
    """Types of devices that are served."""
    return tuple(_BACKENDS)


def backends() -> tuple[Backend, ...]:
    """Of every type that is served."""
    return tuple(_BACKENDS.values())


def has_kernels(device: torch.device) -> bool:
    """Whether kernels can be launched there; elsewhere ``rounding.generic`` settles, and nothing is canonical."""
    return device.type in _BACKENDS


def of(device: torch.device) -> Backend:
    """The backend of a device.

    Raises:
        BackendError: it has none.
    """
    try:
        return _BACKENDS[device.type]
    except KeyError:
        raise BackendError(f"no kernels for {device}: want a device of type {', '.join(_BACKENDS)}") from None


def absence(kind: str) -> str:
    """Why there is no device of a type here, by its backend; empty where nothing is known."""
    return _BACKENDS[kind].absent() if kind in _BACKENDS else ""


def modules() -> list[ModuleType]:
    """torch's module of each type beside the CPU's: ``torch.<type>``."""
    return [torch.get_device_module(kind) for kind in _BACKENDS if kind != "cpu"]


def present() -> list[torch.device]:
    """The devices that are there, beside the CPU."""
    return [
        torch.device(kind, i)
        for kind in _BACKENDS
        if kind != "cpu"
        for i in range(torch.get_device_module(kind).device_count())
    ]


def described(device: torch.device) -> str:
    """What a device calls itself."""
    return str(torch.get_device_module(device.type).get_device_name(device.index or 0))

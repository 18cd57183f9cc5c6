"""The device target's code, compiled once for all test modules, by two processes beside the tests."""

from __future__ import annotations

import functools
import multiprocessing
from collections.abc import Iterable
from concurrent.futures import Future, ProcessPoolExecutor

import pytest

from vtrain.errors import BackendError
from vtrain.kernels import nvrtc

ARCHITECTURES = ("sm_75", "sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120")
_PROCESSES = 2


def require_nvrtc() -> None:
    """Skip the test module where NVRTC is missing or too old for the newest architecture."""
    try:
        found = nvrtc.version()
    except BackendError as error:
        pytest.skip(str(error), allow_module_level=True)
    if found < (12, 8):
        pytest.skip(f"NVRTC {found[0]}.{found[1]} does not know {ARCHITECTURES[-1]}", allow_module_level=True)


@functools.cache
def _pool() -> ProcessPoolExecutor:
    """Processes, because NVRTC compiles one program at a time in each."""
    return ProcessPoolExecutor(_PROCESSES, mp_context=multiprocessing.get_context("spawn"))


@functools.cache
def _compilation(arch: str, kind: nvrtc.Kind) -> Future[bytes]:
    # The PTX of a virtual architecture is that of the real one, without the time that machine code takes.
    target = arch.replace("sm_", "compute_") if kind == "ptx" else arch
    return _pool().submit(nvrtc.compile, target, kind)


def prepare(kind: nvrtc.Kind, architectures: Iterable[str] = ARCHITECTURES) -> None:
    """Start to compile for several architectures at once."""
    for arch in architectures:
        _compilation(arch, kind)


def ptx(arch: str) -> str:
    """The kernels' PTX for an architecture.

    Raises:
        BackendError: they don't compile.
    """
    return _compilation(arch, "ptx").result().decode()


def cubin(arch: str) -> bytes:
    """The kernels' machine code for an architecture; errors as ``ptx``."""
    return _compilation(arch, "cubin").result()

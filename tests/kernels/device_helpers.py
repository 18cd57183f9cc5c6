"""The device target's code, compiled once for all test modules, and its execution beside that of the host target."""

from __future__ import annotations

import ctypes
import functools
import multiprocessing
import struct
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import Future, ProcessPoolExecutor
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pytest
import torch

from vtrain.errors import BackendError
from vtrain.kernels import nvrtc
from vtrain.kernels.launch import SIGNATURES, Argument, launch, packed

if TYPE_CHECKING:
    from interpreter import Machine

ARCHITECTURES = ("sm_75", "sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120")
THREADS = 128  # of a block
_PROCESSES = 2
_ALIGNED = 16  # of an address, what a copy keeps: the widest access has so many bytes
_INTEGERS = {8: torch.int64, 4: torch.int32, 2: torch.int16, 1: torch.uint8}

# A kernel by itself: its name, its arguments' struct, its header.
_ENTRY = """#include "{2}"
extern "C" __global__ void vt_{0}(const vtrain::in_device::{1} a) {{
  vtrain::in_device::kernel_{0}(vtrain::in_device::Grid(), a);
}}"""


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


def single(
    kernel: str, arguments: str, header: str, arch: str = "compute_80", flags: tuple[str, ...] = nvrtc.FLAGS
) -> str:
    """PTX of one kernel.

    Args:
        arguments: its arguments' struct.
        header: where it is defined.
    """
    return nvrtc.compile_source(_ENTRY.format(kernel, arguments, header), arch, "ptx", flags=flags).decode()


# ---- execution ------------------------------------------------------------------------------------------------------
class Schedule(NamedTuple):
    """How a kernel's blocks and warps are run: results must not depend on it."""

    blocks: int
    backwards: bool = False
    warps: tuple[int, ...] | None = None


SCHEDULES = (Schedule(1), Schedule(3, True, (3, 2, 1, 0)), Schedule(2, False, (1, 0, 3, 2)))


class Region(NamedTuple):
    """Memory that one argument, or several that overlap, may touch; nothing around it is given to the device."""

    start: int
    end: int
    dtype: torch.dtype

    def read(self) -> bytes:
        return ctypes.string_at(self.start, self.end - self.start)


def regions(arguments: Iterable[Argument]) -> list[Region]:
    """The memory of tensors, ascending; empty ones have none."""
    found: list[Region] = []
    tensors = [a for a in arguments if isinstance(a, torch.Tensor) and a.numel()]
    for t in sorted(tensors, key=torch.Tensor.data_ptr):
        last = sum((size - 1) * stride for size, stride in zip(t.shape, t.stride(), strict=True))
        part = Region(t.data_ptr(), t.data_ptr() + (last + 1) * t.element_size(), t.dtype)
        if found and part.start < found[-1].end:
            assert part.dtype is found[-1].dtype
            part = Region(found[-1].start, max(part.end, found[-1].end), part.dtype)
            found.pop()
        found.append(part)
    return found


def different(a: bytes, b: bytes, dtype: torch.dtype) -> list[int]:
    """Indices of elements whose bits differ; all NaNs are alike."""
    x, y = (torch.frombuffer(bytearray(data), dtype=dtype) for data in (a, b))
    bits = _INTEGERS[dtype.itemsize]
    unlike = (x.view(bits) != y.view(bits)) & ~((x != x) & (y != y))
    return unlike.nonzero().view(-1).tolist()


class Twin:
    """In place of ``launch``: runs a kernel on the host, and its PTX on copies of the same memory, once a schedule.

    Attributes:
        faults: a line for each region of memory in which the two differ afterwards.
        called: how often each kernel was run.
    """

    def __init__(self, machine: Machine, schedules: Iterable[Schedule] = SCHEDULES) -> None:
        self._machine, self._schedules = machine, tuple(schedules)
        self.faults: list[str] = []
        self.called: Counter[str] = Counter()

    def launch(self, name: str, *arguments: Argument) -> None:
        memory = regions(arguments)
        before = [region.read() for region in memory]
        launch(name, *arguments)
        after = [region.read() for region in memory]
        self.called[name] += 1
        for schedule in self._schedules:
            found = self._run(name, arguments, memory, before, schedule)
            for region, mine, theirs in zip(memory, after, found, strict=True):
                wrong = different(mine, theirs, region.dtype)
                if wrong:
                    numbers = [a for a in arguments if not isinstance(a, torch.Tensor)]
                    self.faults.append(
                        f"{name} {numbers}, {schedule}: {region.dtype} at {wrong[:5]}, {len(wrong)} in all"
                    )

    def _run(
        self, name: str, arguments: tuple[Argument, ...], memory: list[Region], before: list[bytes], schedule: Schedule
    ) -> list[bytes]:
        """The regions' contents after the PTX has run on what they held before."""
        pads = [region.start % _ALIGNED for region in memory]
        copies = [
            self._machine.array(np.frombuffer(bytes(pad) + data, np.uint8))
            for pad, data in zip(pads, before, strict=True)
        ]
        moved = {r.start: c.address + pad for r, c, pad in zip(memory, copies, pads, strict=True)}
        words = list(struct.unpack(f"<{len(arguments)}Q", packed(name, arguments)))
        for i, kind in enumerate(SIGNATURES[name]):
            if kind == "p":
                words[i] = self._moved(words[i], memory, moved)
        order = reversed(range(schedule.blocks)) if schedule.backwards else None
        struct_bytes = struct.pack(f"<{len(words)}Q", *words)
        self._machine.launch(
            f"vt_{name}", (schedule.blocks,), (THREADS,), [struct_bytes], order=order, warps=schedule.warps
        )
        return [c.get().tobytes()[pad:] for c, pad in zip(copies, pads, strict=True)]

    @staticmethod
    def _moved(address: int, memory: list[Region], moved: dict[int, int]) -> int:
        """An address in the machine; null for a tensor without elements."""
        return next((moved[r.start] + address - r.start for r in memory if r.start <= address < r.end), 0)

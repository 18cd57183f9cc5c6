"""Execute kernels' PTX with NumPy: an instruction is done for all threads of a block that stand at it.

Of a block's threads those with the lowest program counter run, and meet again where counters are equal. Blocks run one
after the other, in an order that the caller chooses. A kernel whose result depends on the order of blocks or of warps
shows it when launched with different ones.

    machine = Machine(ptx)
    x = machine.array(np.arange(256, dtype=np.float32))
    machine.launch("scale", grid=(2, 1, 1), block=(128, 1, 1), args=[x, np.float32(0.5)])
    x.get()

Whatever the program does wrong, or this interpreter does not know, is a ``PtxError``: see ptx_lanes. Results that are
NaN have one bit pattern here (ptx_floats); hardware has others.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import prod

import numpy as np
from numpy.typing import DTypeLike
from ptx import parse
from ptx_block import Block
from ptx_lanes import Array, Deadlock, Fault, MemoryFault, StepLimit, Trap, Uninitialised, Unsupported
from ptx_memory import FILL, Memory
from ptx_model import Module, PtxError, Variable

__all__ = [
    "Deadlock",
    "DeviceArray",
    "Fault",
    "Machine",
    "MemoryFault",
    "PtxError",
    "StepLimit",
    "Trap",
    "Uninitialised",
    "Unsupported",
]

_GLOBAL = 0x7F_0000_0000  # where global memory starts; a null pointer is far below
STEPS = 20_000_000

Scalar = int | np.generic | bytes | None


class DeviceArray:
    """An array in the machine's global memory; as an argument it is its address."""

    def __init__(self, memory: Memory, address: int, shape: tuple[int, ...], dtype: np.dtype) -> None:
        self._memory = memory
        self.address, self.shape, self.dtype = address, shape, dtype

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize

    def get(self) -> Array:
        """A copy of what the array holds now."""
        data = self._memory.read_bytes(self.address, self.nbytes)
        return np.frombuffer(data, self.dtype).reshape(self.shape).copy()

    def set(self, values: Array) -> None:
        """Overwrite the array; values must have its shape and dtype."""
        if values.shape != self.shape or values.dtype != self.dtype:
            raise ValueError(f"{values.dtype}{values.shape} into an array of {self.dtype}{self.shape}")
        self._memory.write_bytes(self.address, values.tobytes())


Argument = DeviceArray | Scalar


def _pack(argument: Argument, parameter: Variable) -> bytes:
    """The bytes of an argument."""
    if isinstance(argument, DeviceArray):
        data = argument.address.to_bytes(8, "little")
    elif argument is None:
        data = bytes(8)
    elif isinstance(argument, bytes):
        data = argument
    elif isinstance(argument, np.generic):
        data = argument.tobytes()
    elif isinstance(argument, int):
        data = argument.to_bytes(parameter.size, "little", signed=argument < 0)
    else:
        raise TypeError(f"argument of type {type(argument).__name__}: give a NumPy scalar, which has a size")
    if len(data) != parameter.size:
        raise ValueError(f"{parameter.name} has {parameter.size} bytes, the argument {len(data)}")
    return data


def _three(extent: Sequence[int]) -> tuple[int, int, int]:
    if not 1 <= len(extent) <= 3 or min(extent) < 1:
        raise ValueError(f"extent {tuple(extent)}")
    x, y, z = (*extent, 1, 1)[:3]
    return int(x), int(y), int(z)


class Machine:
    """Global memory and the kernels of one PTX module."""

    def __init__(self, ptx: str | bytes | Module) -> None:
        self.module = ptx if isinstance(ptx, Module) else parse(ptx)
        self._memory = Memory("global", _GLOBAL)
        self._blocks: dict[tuple, Block] = {}
        self._globals = Block.place_globals(self.module, self._memory)
        self.steps = 0  # instructions executed by launches so far, each for any number of threads

    def array(self, values: Array) -> DeviceArray:
        """Copy an array to global memory."""
        found = self.empty(values.shape, values.dtype)
        found.set(values)
        return found

    def empty(self, shape: int | tuple[int, ...], dtype: DTypeLike) -> DeviceArray:
        """An array in global memory, all bytes 0xff."""
        extent = (shape,) if isinstance(shape, int) else tuple(shape)
        found = DeviceArray(self._memory, 0, extent, np.dtype(dtype))
        found.address = self._memory.allocate(found.nbytes, 256)
        self._memory.write_bytes(found.address, bytes([FILL]) * found.nbytes)
        return found

    def launch(
        self,
        kernel: str,
        grid: Sequence[int],
        block: Sequence[int],
        args: Sequence[Argument],
        shared: int = 0,
        order: Iterable[int] | None = None,
        warps: Sequence[int] | None = None,
        limit: int = STEPS,
    ) -> None:
        """Run a kernel.

        Args:
            args: arrays, NumPy scalars, bytes of structs, None for a null pointer; int where the size is plain.
            shared: bytes for ``extern __shared__``.
            order: linear indices of the blocks, in the order in which they run; all, ascending, by default.
            warps: priorities: the first warp that can run does, up to its next barrier; by default all run together.
            limit: instructions that a block may execute.

        Raises:
            PtxError: the kernel does something wrong or unknown; it names instruction, block and thread.
            ValueError: arguments that do not fit the kernel.
        """
        extent, threads = _three(grid), _three(block)
        runner = self._block(kernel, threads, shared)
        runner.set_arguments(self._packed(kernel, args))
        runner.set_grid(extent)
        chosen = list(range(prod(extent))) if order is None else list(order)
        if sorted(chosen) != list(range(prod(extent))):
            raise ValueError(f"order must hold each of the {prod(extent)} blocks once")
        with np.errstate(all="ignore"):
            for linear in chosen:
                self.steps += runner.run(linear, warps, limit)

    def _packed(self, kernel: str, args: Sequence[Argument]) -> list[bytes]:
        parameters = self.module.functions[kernel].parameters
        if len(args) != len(parameters):
            raise ValueError(f"{kernel} takes {len(parameters)} arguments, got {len(args)}")
        return [_pack(a, p) for a, p in zip(args, parameters, strict=True)]

    def _block(self, kernel: str, threads: tuple[int, int, int], shared: int) -> Block:
        if kernel not in self.module.kernels:
            raise ValueError(f"no kernel {kernel!r}; there are {', '.join(self.module.kernels)}")
        key = (kernel, threads, shared)
        if key not in self._blocks:
            self._blocks[key] = Block(self.module, kernel, threads, shared, self._memory, self._globals)
        return self._blocks[key]

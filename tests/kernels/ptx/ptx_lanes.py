"""Values of the interpreter: one array element for each thread of a block, and sets of threads that are active.

Registers hold bits, as unsigned integers of the declared width (predicates: bool); an instruction sees them through a
view of its own type. A view that is narrower than the register shows the low bits (little-endian).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from ptx_model import PtxError, size_of

Array = NDArray[np.generic]


class Unsupported(PtxError):
    """An instruction or operand that the interpreter does not know."""


class Fault(PtxError):
    """An error of the program that is run.

    Args:
        thread: linear index of a thread in its block that is at fault, if it is known.
    """

    def __init__(self, message: str, thread: int | None = None) -> None:
        super().__init__(message)
        self.thread = thread


class Uninitialised(Fault):
    """A register was read before it was written."""


class MemoryFault(Fault):
    """An access outside all allocations, or not aligned, or several threads wrote different values to one place."""


class Deadlock(Fault):
    """Threads wait at a barrier, or for lanes of their warp, that can't come."""


class Trap(Fault):
    """The program executed ``trap``."""


class StepLimit(Fault):
    """The program did not end within the number of steps allowed."""


class Active:
    """Threads that execute an instruction together; equal sets of one block are the same object."""

    __slots__ = ("full", "index", "mask", "pool")

    def __init__(self, mask: NDArray[np.bool_], pool: ActivePool) -> None:
        self.mask = mask
        self.index = np.flatnonzero(mask)
        self.full = self.index.size == mask.size
        self.pool = pool

    def narrow(self, condition: Array) -> Active | None:
        """Those of these threads for which condition (one element for each of them, or one for all) holds."""
        if condition.all():
            return self
        if not condition.any():
            return None
        mask = np.zeros_like(self.mask)
        mask[self.index] = condition
        return self.pool.get(mask)


class ActivePool:
    """Sets of threads by their mask, so that sets can be compared by identity."""

    def __init__(self) -> None:
        self._known: dict[bytes, Active] = {}

    def get(self, mask: NDArray[np.bool_]) -> Active:
        key = mask.tobytes()
        if key not in self._known:
            self._known[key] = Active(mask.copy(), self)
        return self._known[key]


Reader = Callable[[Active], Array]  # gives one element for each active thread, or one for all
Writer = Callable[[Active, Array], None]


class Lanes:
    """A register of all threads of a block.

    ``_sure`` is the set of threads for which it is known to be written: in straight-line code the check is one
    comparison of objects.
    """

    __slots__ = ("_sure", "_written", "bits", "name")

    def __init__(self, name: str, type_name: str, threads: int) -> None:
        self.name = name
        dtype = np.dtype(np.bool_) if type_name == "pred" else np.dtype(f"u{min(size_of(type_name), 8)}")
        if size_of(type_name) > 8:
            raise Unsupported(f"register {name} of type .{type_name}")
        self.bits: Array = np.zeros(threads, dtype)
        self._written = np.zeros(threads, np.bool_)
        self._sure: Active | None = None

    def clear(self) -> None:
        self._written[:] = False
        self._sure = None

    def _check(self, active: Active) -> None:
        written = self._written[active.index]
        if not written.all():
            thread = int(active.index[np.argmin(written)])
            raise Uninitialised(f"{self.name} is read before it is written", thread)
        self._sure = active

    def reader(self, dtype: np.dtype) -> Reader:
        """A function that gives the active threads' values, seen as dtype."""
        if dtype.itemsize > self.bits.itemsize or (dtype == np.bool_) != (self.bits.dtype == np.bool_):
            raise Unsupported(f"{self.name} of {self.bits.dtype} read as {dtype}")
        view = self.bits.view(dtype)[:: self.bits.itemsize // dtype.itemsize]

        def read(active: Active) -> Array:
            if self._sure is not active:
                self._check(active)
            return view if active.full else view[active.index]

        return read

    def writer(self, dtype: np.dtype) -> Writer:
        """A function that writes values of dtype to the active threads; integers are extended to the register's width.

        Signed ones are extended by their sign, unsigned ones by zeros.
        """
        size = self.bits.itemsize
        if dtype.itemsize > size or (dtype == np.bool_) != (self.bits.dtype == np.bool_):
            raise Unsupported(f"{self.name} of {self.bits.dtype} written as {dtype}")
        if dtype.kind == "f" and dtype.itemsize < size:
            raise Unsupported(f"{dtype} written to {self.name} of {self.bits.dtype}")
        view = self.bits if dtype == np.bool_ else self.bits.view(f"{dtype.kind}{size}")

        def write(active: Active, values: Array) -> None:
            if active.full:
                view[:] = values
            else:
                view[active.index] = values
            if self._sure is not active:
                self._written[active.index] = True
                self._sure = active

        return write

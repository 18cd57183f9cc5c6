"""Memory of the interpreter: flat buffers in which only allocated regions may be accessed.

Fresh memory is filled with 0xff (NaN, or -1), so that what depends on memory never written does not pass for a zero.
"""

from __future__ import annotations

from bisect import bisect_right

import numpy as np
from numpy.typing import NDArray
from ptx_lanes import Array, MemoryFault

FILL = 0xFF
_GAP = 256  # bytes between regions: an access slightly outside one never hits the next
SHARED_WINDOW = 1 << 56  # generic addresses of the shared and local spaces start here; others are global
LOCAL_WINDOW = 2 << 56


class Memory:
    """One address space.

    Args:
        threads: number of threads that have a copy each, or 0 for one that all share.
        base: address of the first byte.
        gap: bytes between regions.
    """

    def __init__(self, name: str, base: int, threads: int = 0, gap: int = _GAP) -> None:
        self.name, self.base, self._threads, self._gap = name, base, threads, gap
        self._starts: list[int] = []
        self._ends: list[int] = []
        self._size = 0
        self._stride = 0
        self._words: dict[int, NDArray[np.unsignedinteger]] = {}
        self._grow(4096)

    def _grow(self, size: int) -> None:
        old = self.bytes if self._words else None
        data = np.full((max(self._threads, 1), size), FILL, np.uint8)
        if old is not None:
            data[:, : old.shape[1]] = old
        self._stride = size
        self._words = {k: data.view(f"u{k}").reshape(-1) for k in (1, 2, 4, 8)}

    @property
    def bytes(self) -> NDArray[np.uint8]:
        """All bytes, one row for each copy."""
        return self._words[1].reshape(max(self._threads, 1), -1)

    def allocate(self, size: int, align: int) -> int:
        """Reserve size bytes; returns their address."""
        start = -(-self._size // align) * align
        self._size = start + size + self._gap
        if self._size > self._stride:
            self._grow(-(-max(self._size, 2 * self._stride) // 4096) * 4096)
        self._starts.append(self.base + start)
        self._ends.append(self.base + start + size)
        return self.base + start

    def clear(self) -> None:
        self.bytes[:] = FILL

    def read_bytes(self, address: int, size: int) -> bytes:
        at = address - self.base
        return self.bytes[0, at : at + size].tobytes()

    def write_bytes(self, address: int, data: bytes) -> None:
        """Write to every copy."""
        at = address - self.base
        self.bytes[:, at : at + len(data)] = np.frombuffer(data, np.uint8)

    def _outside(self, address: Array, size: int, threads: Array) -> None:
        """Check each address by itself: not all lie in one region."""
        for at, thread in zip(address.tolist(), threads.tolist(), strict=False):  # an address may be that of all
            k = bisect_right(self._starts, at) - 1
            if k < 0 or at + size > self._ends[k]:
                near = f"{at - self._starts[k]:#x} bytes into a region of {self._ends[k] - self._starts[k]:#x}"
                where = near if k >= 0 else "below all regions"
                raise MemoryFault(f"{self.name}: {size} bytes at {at:#x}, {where}", thread)

    def _check(self, address: Array, size: int, threads: Array) -> None:
        low, high = int(address.min()), int(address.max())
        k = bisect_right(self._starts, low) - 1
        if k < 0 or high + size > self._ends[k]:
            self._outside(address, size, threads)
        if int(np.bitwise_or.reduce(address)) & (size - 1):
            bad = int(np.argmax((address & np.uint64(size - 1)) != 0))
            text = f"{self.name}: {size} bytes at {int(address[bad]):#x}, which is not aligned"
            raise MemoryFault(text, int(threads[bad % threads.size]))

    def _at(self, address: Array, item: int, threads: Array) -> NDArray[np.int64]:
        at = address - np.uint64(self.base)
        if self._threads:
            at = at + threads.astype(np.uint64) * np.uint64(self._stride)
        return (at >> np.uint64(item.bit_length() - 1)).astype(np.int64)

    def cells(self, address: Array, item: int, threads: Array) -> tuple[Array, Array]:
        """Words of item bytes, and the indices in them of each thread's address; errors as in ``load``."""
        self._check(address, item, threads)
        return self._words[item], np.broadcast_to(self._at(address, item, threads), threads.shape)

    def load(self, address: Array, item: int, count: int, threads: Array) -> list[Array]:
        """Vectors of count items (unsigned, item bytes each) at each address.

        Args:
            address: uint64, one for each thread or one for all.
            threads: linear indices of the threads.

        Raises:
            MemoryFault: an address is outside all regions or not a multiple of the vector's size.
        """
        self._check(address, item * count, threads)
        at = self._at(address, item, threads)
        words = self._words[item]
        return [words[at + k] if k else words[at] for k in range(count)]

    def store(self, address: Array, values: list[Array], threads: Array) -> None:
        """Store vectors; arguments and errors as in ``load``, and threads must not disagree on a value."""
        item = values[0].itemsize
        self._check(address, item * len(values), threads)
        at = np.broadcast_to(self._at(address, item, threads), threads.shape)
        words = self._words[item]
        for k, v in enumerate(values):
            value = v.view(f"u{item}")
            words[at + k] = value
            different = words[at + k] != value
            if different.any():
                bad = int(np.argmax(different))
                text = f"{self.name}: threads store different values at {int(address[bad % address.size]):#x}"
                raise MemoryFault(text, int(threads[bad]))


class Generic:
    """Addresses that may lie in the global, the shared or the local space."""

    def __init__(self, everywhere: Memory, shared: Memory, local: Memory) -> None:
        self._spaces = ((0, everywhere), (SHARED_WINDOW, shared), (LOCAL_WINDOW, local))

    def _split(self, address: Array) -> list[tuple[Memory, Array, slice | Array]]:
        """Space, address in it, and selection of the threads, for each space that occurs."""
        window = address >> np.uint64(56)
        found: list[tuple[Memory, Array, slice | Array]] = []
        for start, memory in self._spaces:
            here = window == np.uint64(start >> 56)
            if here.all():
                return [(memory, address - np.uint64(start), slice(None))]
            if here.any():
                found.append((memory, address[here] - np.uint64(start), np.flatnonzero(here)))
        if sum(part.size for _, part, _ in found) != address.size:
            raise MemoryFault("an address in no space")
        return found

    def cells(self, address: Array, item: int, threads: Array) -> tuple[Array, Array]:
        parts = self._split(address)
        if len(parts) > 1:
            raise MemoryFault("one atomic in several spaces")
        memory, local, _ = parts[0]
        return memory.cells(local, item, threads)

    def load(self, address: Array, item: int, count: int, threads: Array) -> list[Array]:
        parts = self._split(address)
        if len(parts) == 1:
            memory, local, _ = parts[0]
            return memory.load(local, item, count, threads)
        result: list[Array] = [np.zeros(threads.size, f"u{item}") for _ in range(count)]
        for memory, local, chosen in parts:
            for whole, part in zip(result, memory.load(local, item, count, threads[chosen]), strict=True):
                whole[chosen] = part
        return result

    def store(self, address: Array, values: list[Array], threads: Array) -> None:
        for memory, local, chosen in self._split(address):
            whole = [np.broadcast_to(v, threads.shape)[chosen] for v in values]
            memory.store(local, whole, threads[chosen])

"""The state as a step left it: a copy that outlives whatever a program does afterwards (protocol §3).

Programs put the best weights back after the last step, normalise weights through ``.data``, or fail half-way. A copy
says what changed since, without trusting version counters, which ``.data`` and numpy's views do not move; it is what
the run ends with; and it can be put back.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TypeVar

import torch

from vtrain import kernels
from vtrain.engine.state.files import Files

Tensor = torch.Tensor
Pair = tuple[Tensor | None, Tensor | None]
Key = TypeVar("Key")
PARTS = 16  # in which a large tensor is looked at
_SMALL = 1 << 16  # bytes up to which a tensor is looked at as a whole
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class Snapshot:
    """Copies of named tensors, in memory that is used again.

    Attributes:
        files: the copies, by file and name; valid until the next ``take``.
    """

    def __init__(self) -> None:
        self.files: Files = {}
        self._marks: dict[tuple[str, str], tuple[int, int]] = {}

    def take(self, files: Files) -> None:
        """Copy these tensors in place of the ones before, which stay if there is no memory for more."""
        before, empty = self.files, dict[str, Tensor]()
        self.files = {
            file: {name: _room(t, before.get(file, empty).get(name)) for name, t in tensors.items()}
            for file, tensors in files.items()
        }
        self._marks = {}
        blocks: list[kernels.Block] = []
        for file, tensors in files.items():
            for name, t in tensors.items():
                copy = self.files[file][name]
                if _plain(t):
                    blocks.append(kernels.block(copy, t))
                else:
                    copy.copy_(t)
                self._marks[file, name] = _mark(t)
        kernels.copy_blocks(blocks)

    def changed(self, files: Files, turn: int | None = None) -> list[str]:
        """Names ``file/name`` of tensors that are not as they were, in any bit.

        A gradient that was dropped or zeroed is as it was: programs do so between steps.

        Args:
            files: the tensors now.
            turn: which of ``PARTS`` parts of a large tensor to compare, where neither its memory nor its version
                counter has moved; None for all of it.
        """
        found = _differing(self._both(files, turn))
        return sorted(f"{file}/{name}" for file, name in found if not self._cleared(file, name, files))

    def _both(self, files: Files, turn: int | None) -> Iterator[tuple[tuple[str, str], Pair, int | None]]:
        """((file, name), (copy, tensor now), part to look at) of all that was there, or is."""
        for file in {**self.files, **files}:
            mine, theirs = self.files.get(file, {}), files.get(file, {})
            for name in theirs if mine.keys() == theirs.keys() else {**mine, **theirs}:
                key, t = (file, name), theirs.get(name)
                moved = t is None or self._marks.get(key) != _mark(t)
                yield key, (mine.get(name), t), None if moved else turn

    def _cleared(self, file: str, name: str, files: Files) -> bool:
        if file != "gradients" or name not in self.files.get(file, {}):
            return False
        now = files.get(file, {}).get(name)
        return now is None or not bool(now.any())


def _part(block: kernels.Block, turn: int | None) -> kernels.Block:
    """What is looked at in this turn."""
    mine, theirs, size = block
    if turn is None or size <= _SMALL:
        return block
    first = size * turn // PARTS
    return mine + first, theirs + first, size * (turn + 1) // PARTS - first


def _mark(t: Tensor) -> tuple[int, int]:
    return t.data_ptr(), -1 if t.is_inference() else t._version


def _room(t: Tensor, old: Tensor | None) -> Tensor:
    """Memory for a copy of t: the last one's, where it fits."""
    if old is not None and _alike(old, t):
        return old
    return torch.empty_like(t, requires_grad=False, memory_format=torch.contiguous_format)


def _alike(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.dtype is b.dtype and a.device == b.device


def _plain(t: Tensor) -> bool:
    """Whether a tensor's bytes, in the order in which they lie in host memory, are its elements."""
    return t.is_cpu and t.is_contiguous() and not t.is_neg() and not t.is_conj()


def differing(before: Mapping[str, Tensor], now: Mapping[str, Tensor]) -> list[str]:
    """Names of the tensors that are not as they were, in type, shape and every bit; the first ones are contiguous."""
    return _differing((name, (before.get(name), now.get(name)), None) for name in {*before, *now})


def _differing(given: Iterable[tuple[Key, Pair, int | None]]) -> list[Key]:
    """Keys of the pairs that differ, in a part or in all; whatever lies in host memory is compared in one call."""
    found: list[Key] = []
    keys: list[Key] = []
    blocks: list[kernels.Block] = []
    elsewhere: dict[torch.device, list[tuple[Key, Tensor]]] = {}
    for key, (copy, t), turn in given:
        if copy is None or t is None or not _alike(copy, t):
            if copy is not t:
                found.append(key)
        elif _plain(t) and _plain(copy):
            keys.append(key)
            blocks.append(_part(kernels.block(copy, t), turn))
        else:
            elsewhere.setdefault(t.device, []).append((key, _unlike(copy, t)))
    for flags in elsewhere.values():  # asked for together: a device is waited for once
        unlike = torch.stack([flag for _, flag in flags]).tolist()
        found += [key for (key, _), differs in zip(flags, unlike, strict=True) if differs]
    return found + [keys[i] for i in kernels.differing_blocks(blocks)]


def _unlike(copy: Tensor, t: Tensor) -> Tensor:
    """Whether two tensors of one shape differ in a bit, where they are; of no dimension."""
    copy, t = (x.resolve_conj().resolve_neg() for x in (copy, t))
    kind = _INTEGERS.get(t.element_size())
    return (copy != t).any() if kind is None else (copy.view(kind) != t.contiguous().view(kind)).any()

"""The state as a step left it: a copy that outlives whatever a program does afterwards (protocol §3).

Programs put the best weights back after the last step, normalise weights through ``.data``, or fail half-way. A copy
says what changed since, without trusting version counters, which ``.data`` and numpy's views do not move; it is what
the run ends with; and it can be put back.
"""

from __future__ import annotations

import ctypes

import torch

from vtrain.engine.state import Files

Tensor = torch.Tensor
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
        self._marks: dict[str, tuple[int, int]] = {}

    def take(self, files: Files) -> None:
        """Copy these tensors in place of the ones before."""
        before, self.files = self.files, {}
        for file, tensors in files.items():
            old = before.get(file, {})
            self.files[file] = {name: _copied(t, old.get(name)) for name, t in tensors.items()}
        self._marks = {name: _mark(t) for name, t in _flat(files).items()}

    def changed(self, files: Files, turn: int | None = None) -> list[str]:
        """Names ``file/name`` of tensors that are not as they were, in any bit.

        A gradient that was dropped or zeroed is as it was: programs do so between steps.

        Args:
            files: the tensors now.
            turn: which of ``PARTS`` parts of a large tensor to compare, where neither its memory nor its version
                counter has moved; None for all of it.
        """
        mine, theirs = _flat(self.files), _flat(files)
        found = []
        for name in {*mine, *theirs}:
            copy, t = mine.get(name), theirs.get(name)
            moved = t is None or self._marks.get(name) != _mark(t)
            if not same(copy, t, None if moved else turn) and not _cleared(name, t, copy is not None):
                found.append(name)
        return sorted(found)


def _copied(t: Tensor, old: Tensor | None) -> Tensor:
    if old is None or old.shape != t.shape or old.dtype is not t.dtype or old.device != t.device:
        return t.detach().clone(memory_format=torch.contiguous_format)
    return old.copy_(t)


def _mark(t: Tensor) -> tuple[int, int]:
    return t.data_ptr(), -1 if t.is_inference() else t._version


def _flat(files: Files) -> dict[str, Tensor]:
    return {f"{file}/{name}": t for file, tensors in files.items() for name, t in tensors.items()}


def same(copy: Tensor | None, t: Tensor | None, turn: int | None = None) -> bool:
    """Whether two tensors are one in type, shape and every bit, or every one of a part; the first one is contiguous."""
    if copy is None or t is None or copy.shape != t.shape or copy.dtype is not t.dtype or copy.device != t.device:
        return copy is t
    if t.device.type == "cpu" and t.is_contiguous():
        size = t.numel() * t.element_size()
        first, last = (
            (0, size) if turn is None or size <= _SMALL else (size * turn // PARTS, size * (turn + 1) // PARTS)
        )
        return _compare(copy.data_ptr() + first, t.data_ptr() + first, last - first) == 0
    kind = _INTEGERS.get(t.element_size())
    if kind is None:
        return torch.equal(copy, t)
    return torch.equal(copy.view(kind), t.contiguous().view(kind))


_compare = ctypes.CDLL(None).memcmp
_compare.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)


def _cleared(name: str, now: Tensor | None, was: bool) -> bool:
    return was and name.startswith("gradients/") and (now is None or not bool(now.any()))

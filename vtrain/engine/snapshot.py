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
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class Snapshot:
    """Copies of named tensors, in memory that is used again.

    Attributes:
        files: the copies, by file and name; valid until the next ``take``.
    """

    def __init__(self) -> None:
        self.files: Files = {}

    def take(self, files: Files) -> None:
        """Copy these tensors in place of the ones before."""
        before, self.files = self.files, {}
        for file, tensors in files.items():
            old = before.get(file, {})
            self.files[file] = {name: _copied(t, old.get(name)) for name, t in tensors.items()}

    def changed(self, files: Files) -> list[str]:
        """Names ``file/name`` of tensors that are not as they were, in any bit.

        A gradient that was dropped or zeroed is as it was: programs do so between steps.
        """
        mine, theirs = _flat(self.files), _flat(files)
        return sorted(
            name
            for name in {*mine, *theirs}
            if not same(mine.get(name), theirs.get(name)) and not _cleared(name, theirs.get(name), name in mine)
        )


def _copied(t: Tensor, old: Tensor | None) -> Tensor:
    if old is None or old.shape != t.shape or old.dtype is not t.dtype or old.device != t.device:
        return t.detach().clone(memory_format=torch.contiguous_format)
    return old.copy_(t)


def _flat(files: Files) -> dict[str, Tensor]:
    return {f"{file}/{name}": t for file, tensors in files.items() for name, t in tensors.items()}


def same(copy: Tensor | None, t: Tensor | None) -> bool:
    """Whether two tensors are one in type, shape and every bit; the first one is contiguous."""
    if copy is None or t is None or copy.shape != t.shape or copy.dtype is not t.dtype or copy.device != t.device:
        return copy is t
    if t.device.type == "cpu" and t.is_contiguous():
        return _compare(copy.data_ptr(), t.data_ptr(), t.numel() * t.element_size()) == 0
    kind = _INTEGERS.get(t.element_size())
    if kind is None:
        return torch.equal(copy, t)
    return torch.equal(copy.view(kind), t.contiguous().view(kind))


_compare = ctypes.CDLL(None).memcmp
_compare.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)


def _cleared(name: str, now: Tensor | None, was: bool) -> bool:
    return was and name.startswith("gradients/") and (now is None or not bool(now.any()))

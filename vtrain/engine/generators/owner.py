"""Whose generators a thread draws from: the step's own, or the process's."""

from __future__ import annotations

import contextlib
import functools
import random
import threading
from collections.abc import Iterator
from typing import Any, NoReturn

import torch
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode_stack

from vtrain.engine.callsite import user_line
from vtrain.engine.generators.keys import count_from
from vtrain.errors import UnsupportedOperation
from vtrain.random import StreamKey, words

Kept = tuple[torch.Tensor, tuple[StreamKey, int], int, random.Random | None, dict[str, Any] | None]


class Own:
    """The generators of one step, made as it begins by the thread that runs it.

    Args:
        seed: of the run, below 2^128.
        step: its number.
        mode: the dispatch mode that other threads of the step (autograd's) have.

    Attributes:
        torch: stands for torch's global generators, on any device.
        python: stands for Python's; made when it is first used.
        numpy: what stands for NumPy's, while it is not in place: its state, or None before its first use.
    """

    def __init__(self, seed: int | str, step: int, mode: TorchDispatchMode) -> None:
        self._thread, self._mode = threading.get_ident(), mode
        self.torch = torch.Generator()
        self.numpy: dict[str, Any] | None = None
        self._python: random.Random | None = None
        self.begin(seed, step)

    def begin(self, seed: int | str, step: int) -> None:
        """Start all of them anew, as (seed, step) has it."""
        count_from(self.torch, StreamKey(seed, "torch"), step)
        self._host = StreamKey(seed, "host-generators"), step
        self._made = 0
        self._python = self.numpy = None

    @property
    def host_seed(self) -> int:
        """Seeds Python's and NumPy's, below 2^32."""
        return _host_seed(*self._host)

    def fresh(self) -> int:
        """A seed below 2^128 for the next generator that the step makes without one."""
        self._made += 1
        return int.from_bytes(words(*self._host, self._made, 4).tobytes(), "little")

    @property
    def python(self) -> random.Random:
        if self._python is None:
            self._python = random.Random(self.host_seed)
        return self._python

    def taken(self) -> Kept:
        """The state of all of them, to be put back; NumPy's must not be in place (``numpys.put_away``)."""
        return self.torch.get_state(), self._host, self._made, self._python, self.numpy

    def put(self, kept: Kept) -> None:
        """Put back what ``taken`` gave."""
        state, self._host, self._made, self._python, self.numpy = kept
        self.torch.set_state(state)

    def is_here(self) -> bool:
        """Whether this thread belongs to the step: it runs it, or has its dispatch mode."""
        if threading.get_ident() == self._thread:
            return True
        return any(mode is self._mode for mode in _get_current_dispatch_mode_stack())


@functools.lru_cache(maxsize=4)
def _host_seed(key: StreamKey, step: int) -> int:
    return int(words(key, step, 0, 1)[0])


_own: Own | None = None


@contextlib.contextmanager
def owned(own: Own) -> Iterator[None]:
    """Within: ``mine`` finds ``own``."""
    global _own
    _own = own
    try:
        yield
    finally:
        _own = None


def mine() -> Own | None:
    """The step's generators where this thread belongs to a step; else None, for the process's."""
    own = _own
    return own if own is not None and own.is_here() else None


def refuse_entropy(call: str, instead: str) -> NoReturn:
    """Raise for a seed from the operating system.

    Raises:
        UnsupportedOperation: always.
    """
    raise UnsupportedOperation(
        f"{call}: seeds from the operating system, which no auditor can repeat; want {instead}\n"
        f"  called from {user_line()}"
    )

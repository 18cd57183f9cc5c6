"""State that a program carries from step to step and that no object of the run keeps (protocol §3).

A second optimizer, an average of weights or a bank of features in a variable of the program's: a resumed run would
begin it anew and go another way. So now and then three steps in a row are watched. What one of them made or wrote,
what is not kept, and what a later one reads is carried; where it reaches a parameter, a buffer or an optimizer's
state, it matters.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch.utils import _pytree as pytree

from vtrain.engine import state
from vtrain.engine.callsite import user_line
from vtrain.engine.loops.auxiliary import AuxiliaryState
from vtrain.engine.loops.loop import Loop
from vtrain.engine.state import attributes

Tensor = torch.Tensor


def _watched(step: int) -> bool:
    """Steps 2 to 4, 10 to 12, 100 to 102, ...: caches are filled in the first one, and other things begin late.

    Three, since what is made in every other step, and used in the one after, is in one of the two pairs.
    """
    tens = str(step)
    return step in (2, 3, 4) or (step >= 10 and tens[0] == "1" and tens[1:-1].strip("0") == "" and tens[-1] in "012")


class _Memory:
    """A tensor's memory, without keeping it: while this lives, no other memory has its key."""

    def __init__(self, t: Tensor) -> None:
        self._weak = t.untyped_storage()._weak_ref()

    def expired(self) -> bool:
        """Whether nobody holds it any more."""
        return bool(torch.UntypedStorage._expired(self._weak))

    def __del__(self, free: Any = torch.UntypedStorage._free_weak_ref) -> None:
        free(self._weak)  # bound here: at the interpreter's end torch's names are gone before a script's objects


def _key(t: Tensor) -> int:
    return t.untyped_storage()._cdata


class Carried:
    """Watches one recorded loop.

    Args:
        loop: whose steps.
        auxiliary: what it keeps beside model and optimizer.
    """

    def __init__(self, loop: Loop, auxiliary: AuxiliaryState) -> None:
        self._loop, self._auxiliary = loop, auxiliary
        self._before: dict[int, _Memory] = {}
        self._here: dict[int, _Memory] = {}
        self._made: set[int] = set()
        self._reached: dict[int, str] = {}
        self._said: set[str] = set()
        self._step = 0
        auxiliary.asked = self._judge

    @contextlib.contextmanager
    def watching(self, step: int) -> Iterator[None]:
        """Around step ``step``: warn of what is carried into it."""
        if not _watched(step):
            self._before = {}
            yield
            return
        kept = set(self._kept())
        # Memory that was given back since may be somebody else's now.
        self._before = {k: ref for k, ref in self._before.items() if not ref.expired() and k not in kept}
        self._here, self._made, self._reached = {}, set(), {}
        engine = self._loop.session.engine
        engine.seen, self._step = self._see, step
        try:
            yield
            self._judge()
        finally:
            engine.seen, self._step = None, 0
        self._before = self._before | self._here

    def _judge(self) -> None:
        """Say what the step that is watched was seen to depend on; also when its checkpoint is about to be written."""
        if not self._step:
            return
        kept = set(self._kept())
        places = {where for key, where in self._reached.items() if key in kept and not self._here[key].expired()}
        if new := sorted(places - self._said):
            self._auxiliary.unkept = True
            self._said.update(new)
            warnings.warn(
                f"step {self._step} depends on a tensor that an earlier step left in a variable of the program's "
                f"(read at {', '.join(new[:3])}): a checkpoint does not hold it, so that this run can't be resumed; "
                "give record(..., extra={name: object}) the optimizer, average or other object that it belongs to",
                stacklevel=6,
            )

    def _kept(self) -> Iterable[int]:
        files = state.collect(self._loop.model, self._loop.optimizer)
        yield from (_key(t) for tensors in files.values() for t in tensors.values())
        yield from (_key(t) for t in self._auxiliary.objects().values())
        held = pytree.tree_leaves([value for _, value in attributes.values(self._loop.model)])
        yield from (_key(t) for t in held if isinstance(t, Tensor))

    def _see(self, func: Any, args: tuple, kwargs: dict, out: Any) -> None:
        operands = [t for t in pytree.tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        where, given = "", set()
        for t in operands:
            key = _key(t)
            given.add(key)
            where = where or self._reached.get(key, "")
            if not where and key in self._before and key not in self._made:
                where = user_line()
        written = _written(func, args, kwargs)
        changed = {_key(t) for t in written}
        for t in (*_results(out), *written):
            key = _key(t)
            if key not in self._here:
                if key in given and key not in changed:
                    continue  # a view of what comes from elsewhere
                self._here[key] = _Memory(t)
            self._made.add(key)
            if where:
                self._reached[key] = where
            else:
                self._reached.pop(key, None)  # of memory that was given back


def _results(out: Any) -> list[Tensor]:
    return [t for t in pytree.tree_leaves(out) if isinstance(t, Tensor)]


def _written(func: Any, args: tuple, kwargs: dict) -> list[Tensor]:
    schema = getattr(func, "_schema", None)
    if schema is None or not schema.is_mutable:
        return []
    found = [
        args[i] if i < len(args) else kwargs.get(a.name)
        for i, a in enumerate(schema.arguments)
        if a.alias_info is not None and a.alias_info.is_write
    ]
    return _results(found)

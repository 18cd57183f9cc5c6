"""The one table: operation -> class -> handler (numerics §2). Its digest is part of every run.

Entries name functional overloads, as ``aten.add.Tensor``. In-place (``add_``), ``out=`` and ``_foreach_`` forms are
derived from them, so that a form can't be treated otherwise than its twin.
"""

from __future__ import annotations

import enum
import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

Handler = Callable[..., Any]


class OpClass(enum.Enum):
    """Classes of numerics §2; an operation that is in none is unknown and refused."""

    EXACT = "exact"
    ROUNDED = "correctly rounded"
    VARYING = "varying"
    COMPOSITE = "composite"
    RANDOM = "random"
    FORBIDDEN = "forbidden"


@dataclass(frozen=True)
class Entry:
    """One operation.

    Attributes:
        name: functional overload, e.g. ``aten.mm.default``.
        cls: its class.
        handler: ``handler(engine, *args, **kwargs)``; None runs the operation natively (classes 1, 2), or refuses it.
        inplace: ``inplace(engine, *args, **kwargs)`` for the form that overwrites its first argument, where that is
            worth code of its own; otherwise the handler's result is copied there.
        native_when: with a handler: arguments for which the operation runs natively all the same.
        version: raised when the handler's bits change.
        why: reason for a refusal.
        decomposed: whether other operations run in its place, each looked up in turn: ``handler(*args, **kwargs)``, or
            without one PyTorch's own decomposition.
    """

    name: str
    cls: OpClass
    handler: Handler | None = None
    inplace: Handler | None = None
    native_when: Callable[..., bool] | None = None
    version: int = 1
    why: str = ""
    decomposed: bool = False


TABLE: dict[str, Entry] = {}


def add(entry: Entry) -> None:
    """Put an entry into the table.

    Raises:
        ValueError: the operation has one already.
    """
    if entry.name in TABLE:
        raise ValueError(f"{entry.name} is registered as {TABLE[entry.name].cls.value} already")
    TABLE[entry.name] = entry


def native(cls: OpClass, names: Iterable[str]) -> None:
    """Register operations that run natively."""
    for name in names:
        add(Entry(f"aten.{name}" if name.count(".") == 1 else name, cls))


def register(
    *names: str,
    cls: OpClass = OpClass.COMPOSITE,
    native_when: Callable[..., bool] | None = None,
    inplace: Handler | None = None,
    version: int = 1,
) -> Callable[[Handler], Handler]:
    """Decorator: ``handler(engine, *args, **kwargs)`` for ``aten.<name>``, or a full name like ``mylib.op.default``.

    A handler returns exactly what the operation returns. It may call any tensor operation of class 1, and those of
    class 2 on float32; results of class 3 it computes in C and passes through ``engine.settle``.
    """

    def decorate(handler: Handler) -> Handler:
        for name in names:
            add(Entry(f"aten.{name}" if name.count(".") == 1 else name, cls, handler, inplace, native_when, version))
        return handler

    return decorate


def decompose(names: Iterable[str]) -> None:
    """Register operations that PyTorch's decomposition table reduces to others."""
    for name in names:
        add(Entry(f"aten.{name}", OpClass.COMPOSITE, decomposed=True))


def composed(*names: str, version: int = 1) -> Callable[[Handler], Handler]:
    """Decorator: ``handler(*args, **kwargs)`` says by torch calls what ``aten.<name>`` is; each is looked up in turn.

    So nothing in it needs a definition of its own: it rounds, logs and draws as its parts do.
    """

    def decorate(handler: Handler) -> Handler:
        for name in names:
            add(Entry(f"aten.{name}", OpClass.COMPOSITE, handler, version=version, decomposed=True))
        return handler

    return decorate


def forbid(why: str, names: Iterable[str]) -> None:
    """Register operations that are refused, with the reason."""
    for name in names:
        add(Entry(f"aten.{name}", OpClass.FORBIDDEN, why=why))


def table_digest() -> str:
    """Digest of names, classes, versions and forms: two runs that differ in it may differ in bits."""
    lines = sorted(
        f"{e.name} {e.cls.name} {e.version} {int(e.decomposed)} {int(e.native_when is not None)}"
        for e in TABLE.values()
    )
    return "vtrain-optable-v1-sha256:" + hashlib.sha256("\n".join(lines).encode()).hexdigest()

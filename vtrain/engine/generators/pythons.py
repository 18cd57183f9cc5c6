"""Python's global generator, led by thread while a step is under way.

The functions of ``random`` are methods of one hidden instance, bound when the module was made; scripts import them by
name. So it is the instance that changes: its class, whose methods find ``self.random`` and ``super().seed`` anew at
each call, and for ``random`` and ``getrandbits``, which are C functions bound to the instance, what these two call.
"""

from __future__ import annotations

import _random
import contextlib
import ctypes
import functools
import random
from collections.abc import Callable, Iterator
from types import BuiltinFunctionType
from typing import Any

from vtrain.engine.generators.owner import mine, refuse_entropy
from vtrain.errors import BackendError

_global: random.Random = random._inst
_native: Any = _random.Random
_HEAD = object.__basicsize__


class _LedBelow(_random.Random):
    """Beneath ``random.Random`` in the order of classes: what its own methods call."""

    __slots__ = ()

    def random(self) -> float:
        own = mine()
        return float(_native.random(self if own is None else own.python))

    def getrandbits(self, k: int, /) -> int:
        own = mine()
        return int(_native.getrandbits(self if own is None else own.python, k))

    def seed(self, n: Any = None, /) -> None:
        own = mine()
        if own is not None and n is None:
            refuse_entropy("random.seed()", "random.seed(n)")
        _native.seed(self if own is None else own.python, n)

    def getstate(self) -> Any:
        own = mine()
        return _native.getstate(self if own is None else own.python)

    def setstate(self, state: Any, /) -> None:
        own = mine()
        _native.setstate(self if own is None else own.python, state)


class _Led(random.Random, _LedBelow):
    """The class of the hidden instance meanwhile."""

    __slots__ = ()

    @property
    def gauss_next(self) -> float | None:
        """The second of two normal draws, kept for the next call."""
        own = mine()
        return vars(self if own is None else own.python)["gauss_next"]

    @gauss_next.setter
    def gauss_next(self, value: float | None) -> None:
        own = mine()
        vars(self if own is None else own.python)["gauss_next"] = value

    def __reduce__(self) -> Any:
        return random.Random, (), self.getstate()


# ---- the two C functions ---------------------------------------------------------------------------------------------
class _Method(ctypes.Structure):
    """CPython's PyMethodDef."""

    _fields_ = (
        ("name", ctypes.c_char_p), ("function", ctypes.c_void_p), ("flags", ctypes.c_int), ("doc", ctypes.c_char_p),
    )  # fmt: skip


class _Bound:
    """One C function that is bound to the hidden instance, such as ``random.random``.

    CPython calls it as function(instance, argument). Led, these two are ``PyObject_CallNoArgs`` or
    ``PyObject_CallOneArg`` and a Python function, which they call.
    """

    def __init__(self, bound: BuiltinFunctionType, caller: str, instead: Callable[..., Any]) -> None:
        self._kept = bound, instead
        fields = (ctypes.c_void_p * 2).from_address(id(bound) + _HEAD)  # m_ml and m_self of PyCFunctionObject
        if fields[1] != id(_global):
            raise BackendError(f"random.{bound.__name__} is not laid out as CPython's; want CPython 3.11 or newer")
        method = _Method.from_address(fields[0] or 0)
        address = ctypes.cast(getattr(ctypes.pythonapi, caller), ctypes.c_void_p).value
        self._method = _Method(method.name, address, method.flags, method.doc)
        self._fields, self._native = fields, tuple(fields)
        self._led = ctypes.addressof(self._method), id(instead)
        # the object now counts as one of the function's owners, which the collector of cycles checks
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(instead))

    def lead(self, led: bool) -> None:
        """Put the led pair in place, or CPython's: both at once, as no other thread runs in an assignment."""
        self._fields[:] = [*self._led] if led else [*self._native]


def _random_led() -> float:
    own = mine()
    return float(_native.random(_global if own is None else own.python))


def _getrandbits_led(k: int) -> int:
    own = mine()
    return int(_native.getrandbits(_global if own is None else own.python, k))


@functools.cache
def _bound() -> tuple[_Bound, ...]:
    found = (
        (random.random, "PyObject_CallNoArgs", _random_led),
        (random.getrandbits, "PyObject_CallOneArg", _getrandbits_led),
    )
    # not where a library has put functions of its own there: those call the instance
    return tuple(_Bound(f, *rest) for f, *rest in found if isinstance(f, BuiltinFunctionType))  # type: ignore[arg-type]


@contextlib.contextmanager
def python_led() -> Iterator[None]:
    """Within: Python's global generator is led; ``owner.owned`` says by whom.

    Raises:
        BackendError: the interpreter's objects are not laid out as CPython's.
    """
    bound, kind = _bound(), type(_global)
    _global.__class__ = _Led
    for function in bound:
        function.lead(True)
    try:
        yield
    finally:
        for function in bound:
            function.lead(False)
        _global.__class__ = kind

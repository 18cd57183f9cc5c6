"""Python's own numbers alike on every machine: while held, ``**``, ``math`` and NumPy call our functions (numerics §2).

C libraries give other last bits for ``pow``, ``exp`` or ``cos``, and NumPy's depend on the processor. Learning rates
and bias corrections are made of them, and a last bit becomes hundreds in ``1 - beta**t``. Ours are correctly rounded,
which leaves one result. They are put into the interpreter's, its modules' and NumPy's tables of calls, so that any
Python code calls them.
"""

from __future__ import annotations

import cmath
import contextlib
import functools
import importlib
import math
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from vtrain.errors import BackendError
from vtrain.kernels import _host

_WAY_OUT = (
    "want Linux or another ELF system on x86-64 or aarch64, and an interpreter that links the C library dynamically"
)
_NUMPY = {
    "exp": "exp", "exp2": "exp2", "expm1": "expm1", "log": "log", "log2": "log2", "log10": "log10", "log1p": "log1p",
    "sin": "sin", "cos": "cos", "tan": "tan", "arcsin": "asin", "arccos": "acos", "arctan": "atan", "sinh": "sinh",
    "cosh": "cosh", "tanh": "tanh", "arcsinh": "asinh", "arccosh": "acosh", "arctanh": "atanh", "cbrt": "cbrt",
    "power": "pow", "float_power": "pow", "arctan2": "atan2", "hypot": "hypot",
}  # fmt: skip
_lock = threading.RLock()
_holders = 0
_loops: list[tuple[Any, tuple[str, ...], int]] = []  # what NumPy had: function, types, address of its loop


@contextlib.contextmanager
def held() -> Iterator[None]:
    """Within, and in all threads: Python's functions of real numbers are ours. Nests.

    Raises:
        BackendError: they can't be put in place here.
    """
    hold()
    try:
        yield
    finally:
        release()


def hold() -> None:
    """As ``held``, until a call of ``release`` for each of these.

    Raises:
        BackendError: the functions can't be put in place here; nothing is held then.
    """
    global _holders
    with _lock:
        if not _holders:
            _install()
        _holders += 1


def release() -> None:
    """Give back one ``hold``; with the last one, Python calls what it called before."""
    global _holders
    with _lock:
        _holders -= 1
        if not _holders:
            _restore()


def missing() -> list[str]:
    """What would not call our functions while held: the names of such calls; empty where everything is in place."""
    try:
        with held():
            return []
    except BackendError as error:
        return [str(error)]


def _install() -> None:
    if not _host.scalar_can_intercept():
        raise BackendError(f"Python calls this platform's C library, whose last digits are its own; {_WAY_OUT}")
    try:
        _host.scalar_intercept([float, math.cos, cmath.phase, np.array, *_also()])
        _replace_loops()
        silent = _silent()
    except (RuntimeError, AttributeError) as error:
        _restore()
        raise BackendError(f"functions of Python's numbers can't be put in place: {error}; {_WAY_OUT}") from error
    if silent:
        _restore()
        raise BackendError(f"{', '.join(silent)} still call(s) this machine's C library; {_WAY_OUT}")


def _restore() -> None:
    _host.scalar_restore()
    for function, types, address in _loops:
        _host.scalar_replace_loop(_capsule(), function, types, address)
    _loops.clear()


def _also() -> list[Any]:
    """Built-in functions of further modules of the interpreter's that compute real numbers."""
    try:
        return [importlib.import_module("_statistics")._normal_dist_inv_cdf]
    except (ImportError, AttributeError):
        return []


# ---- NumPy -----------------------------------------------------------------------------------------------------------
def _capsule() -> Any:
    core = "numpy._core" if np.lib.NumpyVersion(np.__version__) >= "2.0.0" else "numpy.core"
    return importlib.import_module(f"{core}._multiarray_umath")._UFUNC_API


def _replace_loops() -> None:
    for name, ours in _NUMPY.items():
        function = getattr(np, name)
        for letter in ("d", "f"):
            types = tuple(letter * function.nargs)
            if f"{''.join(types[:-1])}->{letter}" in function.types:
                address = _host.scalar_loop(ours, letter)
                _loops.append((function, types, _host.scalar_replace_loop(_capsule(), function, types, address)))


# ---- whether it works ------------------------------------------------------------------------------------------------
_HALF, _BASE, _EXPONENT = 0.5, 2.5, 3.1
_PROBES: dict[str, tuple[str, Callable[[], Any]]] = {
    "a ** b": ("pow", lambda: _BASE**_EXPONENT),
    "math.pow": ("pow", lambda: math.pow(_BASE, _EXPONENT)),
    "abs(complex)": ("hypot", lambda: abs(complex(_HALF, _BASE))),
    "cmath.phase": ("atan2", lambda: cmath.phase(complex(_HALF, _BASE))),
    "math.atan2": ("atan2", lambda: math.atan2(_HALF, _BASE)),
    "numpy.float64 ** b": ("pow", lambda: np.float64(_BASE) ** _EXPONENT),
    "numpy.float32 ** b": ("powf", lambda: np.float32(_BASE) ** np.float32(_EXPONENT)),
}


def _silent() -> list[str]:
    """Ways of calling a function that do not reach ours: each is tried, and its calls are counted."""
    probes = dict(_PROBES)
    for name in dict.fromkeys(_NUMPY.values()):
        if name not in ("pow", "atan2", "hypot") and hasattr(math, name):
            argument = _BASE if name == "acosh" else _HALF
            probes[f"math.{name}"] = (name, functools.partial(getattr(math, name), argument))
    for name in ("erf", "erfc"):
        probes[f"math.{name}"] = (name, functools.partial(getattr(math, name), _HALF))
    for name, ours in _NUMPY.items():
        function: Any = getattr(np, name)
        arguments = (_BASE if name == "arccosh" else _HALF,) * function.nin
        probes[f"numpy.{name}"] = (ours, functools.partial(function, *arguments))
    return [way for way, (name, call) in probes.items() if not _reaches(name, call)]


def _reaches(name: str, call: Callable[[], Any]) -> bool:
    before = _host.scalar_calls(name)
    call()
    return bool(_host.scalar_calls(name) != before)

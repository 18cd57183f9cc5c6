"""The dispatch mode: look up, call, settle. Everything below autograd passes through here (numerics §1)."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable
from typing import Any

import torch
from torch._decomp import decomposition_table
from torch.utils._python_dispatch import TorchDispatchMode

import vtrain.engine.ops
from vtrain.engine import foreach
from vtrain.engine.core import Engine
from vtrain.engine.forms import Form, form_of, touches_no_tensor
from vtrain.engine.listener import round_result
from vtrain.engine.optable import OpClass
from vtrain.errors import UnsupportedOperation

assert vtrain.engine.ops  # importing it fills the table

Runner = Callable[[tuple, dict], Any]
_SKIPPED = (os.path.dirname(torch.__file__), os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def user_line() -> str:
    """``file:line in function`` of the innermost frame that is neither torch's nor vtrain's."""
    for frame in reversed(traceback.extract_stack(sys._getframe(1))):
        if not frame.filename.startswith((*_SKIPPED, "<")):
            return f"{frame.filename}:{frame.lineno} in {frame.name}: {frame.line or ''}".rstrip(": ")
    return "unknown line"


def unsupported(name: str, why: str) -> UnsupportedOperation:
    """The error for an operation that can't be run under audit: what, where, and what to do about it."""
    return UnsupportedOperation(
        f"{name}: {why}\n  called from {user_line()}\n  register a handler: "
        f"@vtrain.engine.optable.register({name.removeprefix('aten.')!r}) def handler(engine, *args, **kwargs); "
        f"see CONTRIBUTING.md, 'Add an operation'"
    )


class EngineMode(TorchDispatchMode):
    """Runs every dispatched operation as the table says.

    Args:
        engine: what handlers work with.
    """

    def __init__(self, engine: Engine) -> None:
        super().__init__()
        self.engine = engine
        self._runners: dict[Any, Runner] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        runner = self._runners.get(func)
        if runner is None:
            runner = self._runners[func] = self._build(func)
        return runner(args, kwargs or {})

    def _dispatch(self, func: Any, args: tuple, kwargs: dict) -> Any:
        return self.__torch_dispatch__(func, (), args, kwargs)

    def _build(self, func: Any) -> Runner:
        if str(func).startswith("aten._foreach_"):
            if foreach.single(func) is None:
                raise unsupported(str(func), "no per-tensor operation is known for it")
            return lambda args, kwargs: foreach.run(self._dispatch, func, args, kwargs)
        form = form_of(func)
        if form is None and touches_no_tensor(func):
            return lambda args, kwargs: func(*args, **kwargs)
        if form is None and func._can_decompose():
            return self._implicit(func)
        if form is None:
            raise unsupported(str(func), "not in the operation table; it may round differently on other hardware")
        if form.entry.cls is OpClass.FORBIDDEN:
            raise unsupported(str(func), form.entry.why)
        if form.entry.decomposed:
            return self._decomposed(form)
        runner = self._native(func, form) if form.entry.handler is None else self._handled(form)
        if form.entry.native_when is not None:
            runner = self._either(form.entry.native_when, self._native(func, form), runner)
        runner = self._traced(str(func), runner)
        return self._with_scalars(form, runner) if form.scalars or form.scalar_kwargs else runner

    def _traced(self, name: str, runner: Runner) -> Runner:
        """The runner as a listener to whole operations runs it; itself for all others."""
        operation = getattr(self.engine.listener, "operation", None)
        return runner if operation is None else lambda args, kwargs: operation(name, runner, args, kwargs)

    def _with_scalars(self, form: Form, runner: Runner) -> Runner:
        """Host scalars are recorded, or replaced by the recorded ones, before anything sees them (numerics §2)."""
        engine = self.engine

        def swap(value: Any) -> Any:
            if isinstance(value, float):
                return engine.scalar(float(value))
            if isinstance(value, list | tuple):
                return [swap(v) for v in value]
            return value

        def run(args: tuple, kwargs: dict) -> Any:
            changed: list | None = None
            for i in form.scalars:
                if i < len(args) and isinstance(args[i], float | list | tuple):
                    changed = changed or list(args)
                    changed[i] = swap(args[i])
            if kwargs:
                kwargs = {k: swap(v) if k in form.scalar_kwargs else v for k, v in kwargs.items()}
            return runner(args if changed is None else tuple(changed), kwargs)

        return run

    @staticmethod
    def _either(native_when: Callable[..., bool], native: Runner, handled: Runner) -> Runner:
        def run(args: tuple, kwargs: dict) -> Any:
            return (native if native_when(*args, **kwargs) else handled)(args, kwargs)

        return run

    def _implicit(self, func: Any) -> Runner:
        """An operation that torch itself defines by others (CompositeImplicitAutograd), each looked up in turn."""

        def again(args: tuple, kwargs: dict) -> Any:
            with self:
                return func.decompose(*args, **kwargs)

        return again

    def _decomposed(self, form: Form) -> Runner:
        """PyTorch's decomposition, under this mode again: each operation in it is looked up."""
        decomposition = decomposition_table[form.functional]

        def again(args: tuple, kwargs: dict) -> Any:
            with self, torch.no_grad():
                return decomposition(*args, **kwargs)

        return lambda args, kwargs: form.call(again, args, kwargs)

    def _handled(self, form: Form) -> Runner:
        engine, handler, name = self.engine, form.entry.handler, form.entry.name
        inplace = form.entry.inplace if form.inplace else None
        assert handler is not None

        def run(args: tuple, kwargs: dict) -> Any:
            engine.op = name
            graded = torch.is_grad_enabled()
            torch._C._set_grad_enabled(False)  # below autograd; `out=` refuses operands that require a gradient
            try:
                if inplace is not None:
                    inplace(engine, *args, **kwargs)
                    return args[0]
                return form.call(lambda a, k: handler(engine, *a, **k), args, kwargs)
            except UnsupportedOperation as error:
                if "register a handler" in str(error):
                    raise
                raise unsupported(name, str(error).removeprefix(f"{name}: ")) from error
            finally:
                torch._C._set_grad_enabled(graded)

        return run

    def _native(self, func: Any, form: Form) -> Runner:
        if form.entry.cls is OpClass.EXACT:
            return lambda args, kwargs: func(*args, **kwargs)
        engine, name = self.engine, form.entry.name

        def rounded(args: tuple, kwargs: dict) -> Any:
            out = func(*args, **kwargs)
            if type(out) is torch.Tensor and out.dtype in _NO_WIDER:
                raise unsupported(name, f"an inexact result of dtype {out.dtype}; use float32")
            return out

        if not engine.restricted:
            return rounded

        def restricted(args: tuple, kwargs: dict) -> Any:
            return form.call(lambda a, k: self._round_natively(form, a, k), args, kwargs)

        return restricted

    def _round_natively(self, form: Form, args: tuple, kwargs: dict) -> Any:
        """One IEEE operation in C, then one rounding to a target that is no native format (numerics §1)."""
        engine, func = self.engine, form.functional
        fmt = engine.formats[torch.float32]
        out = func(*args, **kwargs)
        if out.dtype in _NO_WIDER:
            raise unsupported(form.entry.name, f"an inexact result of dtype {out.dtype}; use float32")
        if out.dtype is not torch.float32:
            return out
        if fmt.p > 11:
            out = func(*(_widen(a) for a in args), **{k: v for k, v in kwargs.items() if k != "dtype"})
        return round_result(out.contiguous(), fmt)


_NO_WIDER = (torch.float64, torch.complex64, torch.complex128)


def _widen(a: Any) -> Any:
    if isinstance(a, torch.Tensor):
        return a.to(torch.float64) if a.is_floating_point() else a
    if isinstance(a, float):  # a Python scalar is rounded to float32 first (numerics §2)
        return torch.tensor(a, dtype=torch.float32).item()
    return a

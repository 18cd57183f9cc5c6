"""The dispatch mode: look up, call, settle. Everything below autograd passes through here (numerics §1)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch._decomp import decomposition_table
from torch._ops import HigherOrderOperator
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

import vtrain.engine.ops
from vtrain.engine import foreach
from vtrain.engine.aliases import shifted
from vtrain.engine.callsite import unsupported
from vtrain.engine.core import Engine, Seen
from vtrain.engine.forms import Form, form_of, touches_no_tensor
from vtrain.engine.optable import OpClass
from vtrain.engine.unknown import unknown
from vtrain.errors import UnsupportedOperation
from vtrain.kernels.failures import ran_out

assert vtrain.engine.ops  # importing it fills the table

Runner = Callable[[tuple, dict], Any]


class EngineMode(TorchDispatchMode):
    """Runs every dispatched operation as the table says.

    Wrapper subclasses of Tensor take their operations apart themselves; what they call comes back here.

    Args:
        engine: what handlers work with.

    Attributes:
        calls: how many operations came here.
    """

    supports_higher_order_operators = True  # they come here too, to be refused by name

    def __init__(self, engine: Engine) -> None:
        super().__init__()
        self.engine = engine
        self._runners: dict[Any, Runner] = {}
        self.calls = 0
        engine.watched.begin = self._runners.clear

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        self.calls += 1
        if self.engine.seen is not None:
            return self._shown(self.engine.seen, func, types, args, kwargs or {})
        if types:
            return self._by_subclass(func, types, args, kwargs or {})
        runner = self._runners.get(func)
        if runner is None:
            runner = self._runners[func] = self._build(func, args, kwargs or {})
        try:
            return runner(args, kwargs or {})
        except RuntimeError as error:
            if ran_out(error):
                self.engine.ran_out(str(func))
            raise

    def _shown(self, seen: Seen, func: Any, types: Any, args: tuple, kwargs: dict) -> Any:
        """An operation in front of somebody who wants to see it when it is done, and not what it is made of."""
        self.engine.seen = None
        try:
            out = self.__torch_dispatch__(func, types, args, kwargs)
        finally:
            self.engine.seen = seen
        seen(func, args, kwargs, out)
        return out

    def _dispatch(self, func: Any, args: tuple, kwargs: dict) -> Any:
        return self.__torch_dispatch__(func, (), args, kwargs)

    def _by_subclass(self, func: Any, types: Sequence[type], args: tuple, kwargs: dict) -> Any:
        """An operation on a subclass with a ``__torch_dispatch__``, which takes it apart; its parts come back here.

        Raises:
            UnsupportedOperation: no part came back, so that the class computed what nobody saw.
        """
        for kind in types:
            before = self.calls
            with self:
                out = kind.__torch_dispatch__(func, types, args, kwargs)  # type: ignore[attr-defined]
            if out is NotImplemented:
                continue
            if self.calls == before and not is_exact(func):
                raise unsupported(
                    str(func),
                    f"{kind.__module__}.{kind.__qualname__}.__torch_dispatch__ computed it without calling a tensor "
                    "operation that dispatches (super().__torch_dispatch__ and no_dispatch() don't); call func on the "
                    "tensors that the class wraps",
                )
            return out
        raise unsupported(str(func), f"none of {', '.join(t.__qualname__ for t in types)} implements it")

    def _build(self, func: Any, args: tuple, kwargs: dict) -> Runner:
        """How an overload runs from now on; ``args`` and ``kwargs``, its first ones, are for an error's text alone."""
        if isinstance(func, HigherOrderOperator):
            raise unsupported(
                f"torch.ops.higher_order.{func}",
                "a higher-order operator, whose branches torch would trace; write it with Python's if, for or while",
            )
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
            raise unknown(func, args, kwargs)
        if form.entry.cls is OpClass.FORBIDDEN:
            raise unsupported(str(func), form.entry.why)
        if form.entry.decomposed:
            return self._decomposed(form)
        runner = self._native(func, form) if form.entry.handler is None else self._handled(form)
        if form.entry.native_when is not None and not (self.engine.restricted and form.entry.cls is OpClass.ROUNDED):
            runner = self._either(form, self._native(func, form), runner)
        if self.engine.watched.active and func._schema.is_mutable:
            runner = self._watching(func, form, runner)
        runner = self._traced(str(func), runner)
        return self._with_scalars(str(func), form, runner) if form.scalars or form.scalar_kwargs else runner

    def _traced(self, name: str, runner: Runner) -> Runner:
        """The runner as a listener to whole operations runs it; itself for all others."""
        operation = getattr(self.engine.listener, "operation", None)
        return runner if operation is None else lambda args, kwargs: operation(name, runner, args, kwargs)

    def _with_scalars(self, name: str, form: Form, runner: Runner) -> Runner:
        """Host scalars are recorded, or replaced by the recorded ones, before anything sees them (numerics §2)."""
        engine, plain = self.engine, form.plain

        def swap(value: Any, is_plain: bool) -> Any:
            if isinstance(value, float):
                return engine.scalar(float(value), is_plain)
            if isinstance(value, list | tuple):
                return [swap(v, is_plain) for v in value]
            return value

        def run(args: tuple, kwargs: dict) -> Any:
            engine.op = name
            # in float64 arithmetic a number is not rounded to float32: there it must be the run's in every bit
            loose = plain if plain and not _wide(args) else _NONE
            changed: list | None = None
            for i, word in form.scalars:
                if i < len(args) and isinstance(args[i], float | list | tuple):
                    changed = changed or list(args)
                    changed[i] = swap(args[i], word in loose)
            if kwargs:
                kwargs = {k: swap(v, k in loose) if k in form.scalar_kwargs else v for k, v in kwargs.items()}
            return runner(args if changed is None else tuple(changed), kwargs)

        return run

    @staticmethod
    def _either(form: Form, native: Runner, handled: Runner) -> Runner:
        native_when, outs = form.entry.native_when, form.outs
        assert native_when is not None

        def run(args: tuple, kwargs: dict) -> Any:
            return (native if native_when(*args, **kwargs) else handled)(args, kwargs)

        def into(args: tuple, kwargs: dict) -> Any:
            plain = {k: v for k, v in kwargs.items() if k not in outs}
            return (native if native_when(*args, **plain) else handled)(args, kwargs)

        return into if outs else run

    def _watching(self, func: Any, form: Form, runner: Runner) -> Runner:
        """The runner of an operation that writes, where there is memory that is seen in two ways."""
        watched, name = self.engine.watched, form.entry.name
        written = [(i, a.name) for i, a in enumerate(func._schema.arguments) if a.alias_info and a.alias_info.is_write]

        def run(args: tuple, kwargs: dict) -> Any:
            found = [args[i] if i < len(args) else kwargs.get(word) for i, word in written]
            targets = [t for t in pytree.tree_leaves(found) if isinstance(t, torch.Tensor)]
            if not watched.may_write(targets):
                raise unsupported(name, "it writes to elements that several indices mean; write to a copy (clone)")
            out = runner(args, kwargs)
            watched.written(targets)
            return out

        return run

    def _implicit(self, func: Any) -> Runner:
        """An operation that torch itself defines by others (CompositeImplicitAutograd), each looked up in turn."""

        def again(args: tuple, kwargs: dict) -> Any:
            with self:
                return func.decompose(*args, **kwargs)

        return again

    def _decomposed(self, form: Form) -> Runner:
        """Other operations in its place, under this mode again: each of them is looked up."""
        decomposition = form.entry.handler or decomposition_table[form.functional]

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
        native = self._undisturbed(func, form) if form.inplace or form.outs else func
        if form.entry.cls is OpClass.EXACT:
            return lambda args, kwargs: native(*args, **kwargs)
        name = form.entry.name

        def rounded(args: tuple, kwargs: dict) -> Any:
            out = native(*args, **kwargs)
            if type(out) is torch.Tensor and out.dtype in _OTHER_FLOATS:
                raise unsupported(name, f"a result of {out.dtype}, whose arithmetic is not covered; use float32")
            return out

        return rounded

    @staticmethod
    def _undisturbed(func: Any, form: Form) -> Callable[..., Any]:
        """A form that writes while it reads: operands that share its memory are read before."""
        functional, outs = form.functional, form.outs

        def run(*args: Any, **kwargs: Any) -> Any:
            for target in [kwargs[name] for name in outs] or args[:1]:
                for a in args:
                    operands = a if isinstance(a, list | tuple) else (a,)
                    if any(b is not target and isinstance(b, torch.Tensor) and shifted(target, b) for b in operands):
                        return form.call(lambda a, k: functional(*a, **k), args, kwargs)
            return func(*args, **kwargs)

        return run


_NONE: frozenset[str] = frozenset()


def _wide(args: tuple) -> bool:
    return any(isinstance(a, torch.Tensor) and a.dtype is torch.float64 for a in args)


_OTHER_FLOATS = frozenset(
    t for t in vars(torch).values()
    if isinstance(t, torch.dtype) and (t.is_floating_point or t.is_complex)
    and t not in (torch.float64, torch.float32, torch.bfloat16, torch.float16)
)  # fmt: skip


def is_exact(func: Any) -> bool:
    """Whether an operation moves or selects values: whoever computes it, its bits are the same."""
    if isinstance(func, HigherOrderOperator):
        return False
    form = form_of(func)
    if form is not None:
        return form.entry.cls is OpClass.EXACT and (form.entry.handler is None or func.is_view)
    gives = " ".join(str(r.type) for r in func._schema.returns)
    return func.is_view or not any(word in gives for word in ("Tensor", "float", "number", "Any"))

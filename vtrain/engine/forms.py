"""Forms of an operation: functional, in place, ``out=``; all lead to one table entry."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from vtrain.engine.optable import TABLE, Entry

Call = Callable[[tuple, dict], Any]

# Host scalars that an operation only multiplies, divides or adds, rounded to float32 first: two that round alike give
# the same bits. All others may decide a shape, a branch, a comparison or arithmetic in double (numerics §2).
PLAIN: dict[str, frozenset[str]] = {
    **{f"aten.{name}": frozenset({"other"}) for name in ("mul.Tensor", "mul.Scalar", "div.Tensor", "div.Scalar")},
    **{
        f"aten.{name}.{kind}": frozenset({"other", "alpha"})
        for name in ("add", "sub", "rsub")
        for kind in ("Tensor", "Scalar")
    },
    "aten.addcmul.default": frozenset({"value"}),
    "aten.addcdiv.default": frozenset({"value"}),
}


@dataclass(frozen=True)
class Form:
    """How an overload relates to its table entry.

    Attributes:
        entry: the functional operation's entry.
        functional: the functional overload itself.
        inplace: the result goes into the first argument.
        outs: names of keyword arguments that take the results.
        scalars: positions and names of arguments that may hold host scalars.
        scalar_kwargs: names of such keyword arguments.
        plain: names of those that are operands of plain arithmetic (``PLAIN``).
    """

    entry: Entry
    functional: Any
    inplace: bool
    outs: tuple[str, ...]
    scalars: tuple[tuple[int, str], ...]
    scalar_kwargs: frozenset[str]
    plain: frozenset[str]

    def call(self, run: Call, args: tuple, kwargs: dict) -> Any:
        """Run the functional operation and put its results where this form wants them."""
        if self.inplace:
            _put(args[0], run(args, kwargs))
            return args[0]
        if not self.outs:
            return run(args, kwargs)
        targets = [kwargs[name] for name in self.outs]
        results = run(args, {k: v for k, v in kwargs.items() if k not in self.outs})
        if not isinstance(targets[0], torch.Tensor):  # a list for a result that is one; such a form gives nothing
            targets, results, gives = targets[0], tuple(results), False
        else:
            results, gives = results if isinstance(results, tuple) else (results,), True
        for target, value in zip(targets, results, strict=True):
            _put(target.resize_(value.shape), value)
        if not gives:
            return None
        return targets[0] if len(targets) == 1 else tuple(targets)


def _put(target: torch.Tensor, value: torch.Tensor) -> None:
    if not torch.can_cast(value.dtype, target.dtype):  # as torch's own forms say it
        raise RuntimeError(f"result type {value.dtype} can't be cast to the desired output type {target.dtype}")
    target.copy_(value)


def form_of(func: Any) -> Form | None:
    """The form of an overload, or None if no entry covers it."""
    schema = func._schema
    name = str(func)
    names = [a.name for a in schema.arguments]
    scalars = tuple((i, a.name) for i, a in enumerate(schema.arguments) if _holds_scalar(a))
    words = frozenset(a.name for a in schema.arguments if _holds_scalar(a))
    if name in TABLE:
        return Form(TABLE[name], func, False, (), scalars, words, PLAIN.get(name, frozenset()))
    outs = tuple(a.name for a in schema.arguments if a.is_out)
    functional = _twin(func, [n for n in names if n not in outs], bool(outs))
    if functional is None or str(functional) not in TABLE:
        return None
    plain = PLAIN.get(str(functional), frozenset())
    return Form(TABLE[str(functional)], functional, not outs, outs, scalars, words, plain)


def touches_no_tensor(func: Any) -> bool:
    """Whether an overload neither takes nor gives tensors or floats, such as a library's version number."""
    types = [str(a.type) for a in (*func._schema.arguments, *func._schema.returns)]
    return not any(word in t for t in types for word in ("Tensor", "float", "number", "Any"))


def _holds_scalar(argument: Any) -> bool:
    # A Python float stands for a tensor too: ``x * 0.5`` dispatches ``mul.Tensor(x, 0.5)``.
    kind = str(argument.type)
    return kind in ("Tensor", "Optional[Tensor]") or any(word in kind for word in ("number", "Scalar", "float"))


def _twin(func: Any, names: list[str], is_out: bool) -> Any | None:
    """The functional overload with the same arguments."""
    namespace, packet_name = func._schema.name.split("::")
    if not is_out:
        if not packet_name.endswith("_") or packet_name.startswith("__"):
            return None
        packet_name = packet_name[:-1]
    packet = getattr(getattr(torch.ops, namespace), packet_name, None)
    if packet is None:
        return None
    types = {a.name: str(a.type) for a in func._schema.arguments}
    for overload in packet.overloads():
        candidate = getattr(packet, overload)
        arguments = candidate._schema.arguments
        if any(a.is_out for a in arguments):
            continue
        want = [a for a in arguments if a.name in names]
        extra = [a for a in arguments if a.name not in names]
        if (
            len(want) == len(names)
            and all(str(a.type) == types[a.name] for a in want)
            and all(a.has_default_value() for a in extra)
        ):
            return candidate
    return None

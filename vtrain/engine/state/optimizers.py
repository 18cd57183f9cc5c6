"""An optimizer's state as named tensors, whatever it lives in (protocol §3).

Names: ``<index of the parameter>.<key>`` for what belongs to a parameter, counting parameters in group order;
``<index>`` for a parameter that is none of the model's, such as the float32 copy of a bfloat16 one; ``~<key>`` for
``state`` under a text; ``@<attribute>`` for tensors and counters that the optimizer keeps in an attribute; and all of
it behind ``<attribute>~`` for an optimizer inside the optimizer. Nests are taken apart as ``nest.py`` says.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from vtrain.commit.digest import TensorBytes
from vtrain.engine.state import nest
from vtrain.engine.state.tensors import check_fits, to_tensor
from vtrain.errors import CheckpointError, StateError

Tensor = torch.Tensor
Optimizer = torch.optim.Optimizer
_OF_TORCH = frozenset(vars(torch.optim.SGD([torch.zeros(1)], lr=0.1)))
_INNER = re.compile(r"(\w+)~(?=.)")
_OWN = re.compile(r"(\d{1,9})\.(.+)", re.DOTALL)


def parameters(optimizer: Optimizer) -> list[Tensor]:
    """All of an optimizer's parameters in group order."""
    return [p for group in optimizer.param_groups for p in group["params"]]


def inner(optimizer: Optimizer) -> Iterator[tuple[str, Optimizer]]:
    """(attribute, optimizer) of optimizers inside the optimizer that have a state of their own."""
    for name, value in sorted(vars(optimizer).items()):
        if isinstance(value, Optimizer) and value is not optimizer and value.state is not optimizer.state:
            yield name, value


def collect(optimizer: Optimizer, model: set[int]) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) of an optimizer's state; references.

    Args:
        optimizer: any.
        model: ``id`` of the model's parameters.

    Raises:
        StateError: a value that can't be kept; names the optimizer's class and the value.
    """
    try:
        yield from _collect(optimizer, set(model), "")
    except StateError as error:
        kind = type(optimizer)
        raise StateError(f"state of {kind.__module__}.{kind.__qualname__}: {error}") from error


def _collect(optimizer: Optimizer, known: set[int], prefix: str) -> Iterator[tuple[str, Tensor]]:
    for index, p in enumerate(parameters(optimizer)):
        if id(p) not in known:
            yield from nest.parts(f"{prefix}{index}", p)
            known.add(id(p))
        for key, value in sorted(optimizer.state.get(p, {}).items()):
            if type(value) in nest.WHOLE:  # as flatten would, sooner
                yield f"{prefix}{index}.{key}", value
            else:
                yield from nest.flatten(f"{prefix}{index}.{key}", value)
    for key in sorted(k for k in optimizer.state if isinstance(k, str)):
        yield from nest.flatten(f"{prefix}~{key}", optimizer.state[key])
    for name, value in _attributes(optimizer, known):
        yield from nest.flatten(f"{prefix}@{name}", value)
    for name, other in inner(optimizer):
        yield from _collect(other, known, f"{prefix}{name}~")


def _attributes(optimizer: Optimizer, known: set[int]) -> list[tuple[str, Any]]:
    """Attributes that hold tensors, other than the known ones, or count something in a class that is not torch's."""
    theirs = not type(optimizer).__module__.startswith("torch.")
    found = []
    for name, value in sorted(vars(optimizer).items()):
        if name in _OF_TORCH or callable(value) or isinstance(value, Optimizer):
            continue
        counts = theirs and isinstance(value, bool | int | float) and not name.startswith("_")
        if counts or _holds_tensors(value, known):
            found.append((name, value))
    return found


def _holds_tensors(value: Any, known: set[int], depth: int = 0) -> bool:
    if isinstance(value, Tensor):
        return id(value) not in known
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, list | tuple):
        return False
    return depth < 8 and any(_holds_tensors(v, known, depth + 1) for v in value)


def restore(stored: Mapping[str, TensorBytes], optimizer: Optimizer, model: set[int]) -> None:
    """Put what ``collect`` named into an optimizer. Hostile input.

    Raises:
        CheckpointError: names, shapes or dtypes do not fit the optimizer.
    """
    kinds: dict[str, dict[str, TensorBytes]] = {"": {}}
    for name, t in stored.items():
        found = _INNER.match(name)
        attribute = found.group(1) if found else ""
        kinds.setdefault(attribute, {})[name.removeprefix(f"{attribute}~") if attribute else name] = t
    known = set(model)
    _restore_own(kinds.pop(""), optimizer, known)
    for attribute, other in inner(optimizer):
        restore(kinds.pop(attribute, {}), other, known)
    if kinds:
        raise CheckpointError(f"optimizer/{next(iter(kinds))}~: the optimizer has no other one of this name")


def _restore_own(stored: Mapping[str, TensorBytes], optimizer: Optimizer, known: set[int]) -> None:
    mine = parameters(optimizer)
    optimizer.state.clear()
    nests: dict[str, dict[str, Tensor]] = {}
    for name, t in stored.items():
        nests.setdefault(nest.root(name), {})[name] = to_tensor(t)
    for name, tensors in nests.items():
        own = _OWN.fullmatch(name)
        if nest.PART in name.partition(".")[2]:
            raise CheckpointError(f"optimizer/{name}: a part of a wrapper subclass, which can't be made again from it")
        if name.startswith("@"):
            _restore_attribute(name, tensors, optimizer)
        elif name.startswith("~"):
            optimizer.state[name[1:]] = nest.rebuild(name, tensors)  # type: ignore[index]
        elif own and int(own[1]) < len(mine):
            p = mine[int(own[1])]
            optimizer.state[p][own[2]] = _on(p, own[2], nest.rebuild(name, tensors))
        elif name.isdecimal() and int(name) < len(mine) and id(mine[int(name)]) not in known:
            check_fits(f"optimizer/{name}", stored[name], mine[int(name)])
            mine[int(name)].copy_(tensors[name])
        else:
            raise CheckpointError(f"optimizer/{name}: the optimizer has {len(mine)} parameters")
    known.update(map(id, mine))


def _on(p: Tensor, key: str, value: Any) -> Any:
    """A value on its parameter's device, where PyTorch would have it; counters stay in host memory."""
    if isinstance(value, Tensor):
        return value if key == "step" else value.to(p.device)
    if isinstance(value, dict):
        return {k: _on(p, key, v) for k, v in value.items()}
    return type(value)(_on(p, key, v) for v in value) if isinstance(value, list | tuple) else value


def _restore_attribute(name: str, tensors: Mapping[str, Tensor], optimizer: Optimizer) -> None:
    """Write into the attribute's tensors, which others may refer to; or set it, where it holds other things."""
    attribute = name[1:]
    there = dict(nest.flatten(name, getattr(optimizer, attribute))) if hasattr(optimizer, attribute) else {}
    if there.keys() == tensors.keys() and all(_alike(t, tensors[n], "#" in n) for n, t in there.items()):
        for n, t in there.items():
            if "#" not in n:
                t.copy_(tensors[n])
    else:
        setattr(optimizer, attribute, nest.rebuild(name, tensors))


def _alike(mine: Tensor, theirs: Tensor, whole: bool) -> bool:
    return mine.shape == theirs.shape and mine.dtype is theirs.dtype and (not whole or torch.equal(mine, theirs))

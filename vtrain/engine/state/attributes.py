"""What a model keeps in Python, outside its parameters and buffers: numbers, modes, tensors in attributes.

A checkpoint holds tensors only (protocol §3), so such things are not in it. They are listed to say what changed, and
to know when it is worth trying whether it matters. Of a recorded loop, whose trainer alone goes on from a checkpoint,
those that changed are kept beside it.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch

from vtrain.engine.state.nest import WHOLE, Reference
from vtrain.errors import StateError

_MOST = 100_000  # entries of one model
_DEEPEST = 5
_PLAIN = (bool, int, float, complex, str, bytes, type(None))
# What torch keeps in a module's __dict__ for itself; what counts of it is in the checkpoint.
_OF_TORCH = frozenset({"_parameters", "_buffers", "_modules", "_non_persistent_buffers_set"})


def snapshot(model: torch.nn.Module) -> dict[str, Any]:
    """The values of a model's Python attributes by path, such as ``encoder.warmth``; comparable with ``==``.

    Tensors are compared by identity and version, objects of other classes by their own attributes.
    """
    found: dict[str, Any] = {}
    for path, value in values(model):
        _take(found, path, value, set(), 0)
    for name, p in model.named_parameters():
        found[f"{name}.requires_grad"] = p.requires_grad
    return found


def values(model: torch.nn.Module) -> Iterator[tuple[str, Any]]:
    """(path, value) of the attributes themselves."""
    for name, module in model.named_modules():
        prefix = f"{name}." if name else ""
        yield from ((f"{prefix}{key}", value) for key, value in vars(module).items() if key not in _OF_TORCH)


def own(model: torch.nn.Module, optimizer: torch.optim.Optimizer | None) -> dict[str, torch.Tensor]:
    """By name the tensors that model and optimizer are made of, to which attributes may refer, as an LSTM's do."""
    found: dict[str, torch.Tensor] = dict(model.named_parameters()) | dict(model.named_buffers())
    known = set(map(id, found.values()))
    for i, group in enumerate([] if optimizer is None else optimizer.param_groups):
        found |= {f"{i}/{j}": p for j, p in enumerate(group["params"]) if id(p) not in known}
    return found


def has_memory(t: torch.Tensor) -> bool:
    """Whether it has memory of its own: not one that wraps others, is sparse, or is yet to be made."""
    return type(t) in WHOLE and t.layout is torch.strided


def with_references(value: Any, names: Mapping[int, str], memory: set[int]) -> Any:
    """``value`` with a reference in the place of each tensor whose identity is in ``names``.

    Raises:
        StateError: a tensor that only shares its memory with one of them, which no copy would.
    """

    def stands(v: Any) -> Any:
        if not isinstance(v, torch.Tensor):
            return v
        if id(v) in names:
            return Reference(names[id(v)])
        if has_memory(v) and v.untyped_storage()._cdata in memory:
            raise StateError("a view of a parameter can't be kept in a checkpoint")
        return v

    return _mapped(value, stands)


def without_references(value: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    """What ``with_references`` was given.

    Raises:
        KeyError: there is no tensor of that name.
    """
    return _mapped(value, lambda v: tensors[v] if isinstance(v, Reference) else v)


def _mapped(value: Any, f: Callable[[Any], Any], depth: int = 0) -> Any:
    if depth > _DEEPEST or not isinstance(value, dict | list | tuple | deque):
        return f(value)
    if isinstance(value, dict):
        return {key: _mapped(part, f, depth + 1) for key, part in value.items()}
    parts = [_mapped(part, f, depth + 1) for part in value]
    return parts if isinstance(value, list) else deque(parts) if isinstance(value, deque) else tuple(parts)


def print_of(value: Any) -> dict[str, Any]:
    """One value as ``snapshot`` has it."""
    found: dict[str, Any] = {}
    _take(found, "", value, set(), 0)
    return found


def _take(found: dict[str, Any], path: str, value: Any, above: set[int], depth: int) -> None:
    if len(found) >= _MOST or depth > _DEEPEST or id(value) in above:
        return
    if isinstance(value, _PLAIN):
        found[path] = repr(value)  # NaN equals itself, 0 is not False
    elif isinstance(value, torch.Tensor):
        found[path] = ("tensor", id(value), value._version if not value.is_inference() else -1)
    elif isinstance(value, np.ndarray | np.generic) and not value.dtype.hasobject:
        found[path] = (value.dtype.str, np.shape(value), hashlib.sha256(value.tobytes()).hexdigest())
    else:
        for key, part in _parts(value):
            _take(found, f"{path}{key}", part, above | {id(value)}, depth + 1)


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, torch.nn.Module) or callable(value):
        return  # named by itself, or code
    if isinstance(value, dict):
        yield ".#", len(value)
        yield from ((f"[{key!r}]", part) for key, part in list(value.items()))
    elif isinstance(value, list | tuple | deque):
        yield ".#", len(value)
        yield from ((f"[{i}]", part) for i, part in enumerate(value))
    elif isinstance(value, set | frozenset):
        yield ".#", len(value)
        yield ".all", ", ".join(sorted(map(repr, value)))
    else:
        yield from ((f".{key}", part) for key, part in list(getattr(value, "__dict__", {}).items()))


def changed(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Paths whose values differ, in order, with the values where they are short."""
    names = sorted(name for name in {*before, *now} if before.get(name) != now.get(name))
    return [f"{name}{_values(before.get(name), now.get(name))}" for name in names]


def _values(before: Any, now: Any) -> str:
    if isinstance(before, str) and isinstance(now, str) and len(before) + len(now) < 80:
        return f" ({before} to {now})"
    return ""

"""Nests of tensors, numbers and texts as named tensors: what a ``state_dict`` holds, in a checkpoint's files.

A tensor has its own name. Anything else says in its name what it is, after a ``#``, so that it is made again as it was:
``step#int``, ``betas#tuple.float``; what is in a container is named below it: ``old_dirs#list``, ``old_dirs/0``.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch

from vtrain.errors import CheckpointError, StateError

Tensor = torch.Tensor
PART = ":"  # between a tensor's name and that of a part of it
WHOLE = (Tensor, torch.nn.Parameter)  # classes of tensors that are their own only part
_DEEPEST = 32
_INT64 = range(-(2**63), 2**63)


class Reference(str):
    """Stands in a nest for a tensor that is kept elsewhere, under this name."""


def parts(name: str, t: Tensor) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) of what a tensor is made of: itself, or the tensors that a wrapper subclass holds, by attribute.

    Raises:
        StateError: a subclass that does not say what it holds.
    """
    kind = type(t)
    if kind.__torch_dispatch__ is torch.Tensor.__torch_dispatch__:
        yield name, t
    elif not hasattr(kind, "__tensor_flatten__"):
        raise StateError(
            f"{name}: a {kind.__module__}.{kind.__qualname__} can't be committed to; give the class "
            "__tensor_flatten__ and __tensor_unflatten__, as torch.compile wants them"
        )
    else:
        for attribute in t.__tensor_flatten__()[0]:  # type: ignore[attr-defined]
            yield from parts(f"{name}{PART}{attribute}", getattr(t, attribute))


def flatten(name: str, value: Any, depth: int = 0) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) of everything in a nest; tensors are references.

    Raises:
        StateError: something that can't be made again from tensors; says where it is.
    """
    if isinstance(value, Tensor):
        yield from parts(name, value)
        return
    if depth > _DEEPEST:
        raise StateError(f"{name}: nested more than {_DEEPEST} deep")
    kind, head = _head(name, value)
    yield f"{name}#{kind}", head
    if kind == "dict":
        for key, part in value.items():
            yield from flatten(f"{name}/{_component(name, key)}", part, depth + 1)
    elif kind in _CONTAINERS:
        for i, part in enumerate(value):
            yield from flatten(f"{name}/{i}", part, depth + 1)


def keepable(value: Any) -> bool:
    """Whether a value is such a nest."""
    try:
        for _ in flatten("", value):
            pass
    except StateError:
        return False
    return True


def _head(name: str, value: Any) -> tuple[str, Tensor]:
    """What a value is, and the tensor that says the rest of it."""
    if isinstance(value, np.ndarray | np.generic) and value.dtype.kind in "iufb":
        whole = np.ascontiguousarray(value)
        says = json.dumps([whole.dtype.str, list(np.shape(value))])
        return f"array.{quote(says)}", torch.from_numpy(whole.reshape(-1).view(np.uint8).copy())
    if isinstance(value, bool):
        return "bool", torch.tensor(value)
    if isinstance(value, int) and value in _INT64:
        return "int", torch.tensor(value)
    if isinstance(value, float):
        return "float", torch.tensor(value, dtype=torch.float64)
    if isinstance(value, dict):
        return "dict", _text(json.dumps([_component(name, key) for key in value]))
    for kind, make in _CONTAINERS.items():
        if isinstance(value, make):
            items: list[Any] = list(value)
            if items and all(type(v) is int and v in _INT64 for v in items):
                return f"{kind}.int", torch.tensor(items)
            if items and all(type(v) is float for v in items):
                return f"{kind}.float", torch.tensor(items, dtype=torch.float64)
            return kind, torch.tensor(len(items))
    text = _written(value)
    if text is None:
        kind = f"{type(value).__module__}.{type(value).__qualname__}"
        raise StateError(
            f"{name}: a {kind} can't be kept in a checkpoint; tensors, numbers, texts and nests of them can"
        )
    return text[0], _text(text[1])


def _written(value: Any) -> tuple[str, str] | None:
    """What is kept as a text, and the text."""
    if value is None:
        return "none", ""
    if isinstance(value, Reference):
        return "reference", value
    if isinstance(value, str):
        return "text", value
    if isinstance(value, int):
        return "integer", str(value)
    if isinstance(value, bytes):
        return "bytes", value.hex()
    if isinstance(value, torch.dtype | torch.device):
        return type(value).__name__, str(value)
    return None


_CONTAINERS: dict[str, type[Any]] = {"list": list, "tuple": tuple, "deque": deque, "set": set}
_WRITTEN: dict[str, Callable[[str], Any]] = {
    "none": lambda text: None, "text": str, "reference": Reference, "integer": int, "bytes": bytes.fromhex,
    "dtype": lambda text: getattr(torch, text.removeprefix("torch.")), "device": torch.device,
}  # fmt: skip


def _text(text: str) -> Tensor:
    return torch.tensor(list(text.encode()), dtype=torch.uint8)


def quote(key: str) -> str:
    """A text as a part of a name, in which the signs of this file's grammar stand for nothing."""
    for sign in "%/#=":
        key = key.replace(sign, f"%{ord(sign):02X}")
    return key


def _component(name: str, key: Any) -> str:
    """A key as a part of a name; texts are written as they are."""
    if isinstance(key, str):
        return quote(key)
    if key is None or isinstance(key, bool | int):
        return f"={json.dumps(key)}"
    raise StateError(
        f"{name}: a key of type {type(key).__qualname__} can't be kept in a checkpoint; texts and integers can"
    )


def _key(component: str) -> Any:
    if component.startswith("="):
        return json.loads(component[1:])
    for sign in "=#/%":
        component = component.replace(f"%{ord(sign):02X}", sign)
    return component


def root(name: str) -> str:
    """The name of the nest that a tensor of this name is a part of, or is."""
    for sign in "/#":
        name = name.partition(sign)[0]
    return name


def rebuild(name: str, tensors: Mapping[str, Tensor]) -> Any:
    """The nest that ``flatten(name, ...)`` took apart. Hostile input.

    Args:
        name: of the nest.
        tensors: by name; those of other nests are not looked at.

    Raises:
        CheckpointError: parts are missing or not what they say.
    """
    heads: dict[str, str] = {}
    for full in tensors:
        if full == name or full.startswith((f"{name}/", f"{name}#")):
            own, sign, kind = full.partition("#")
            heads[own] = f"{sign}{kind}"
    try:
        return _made(name, heads, tensors, 0)
    except (KeyError, ValueError, TypeError, AttributeError, RuntimeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{name}: parts are missing or not what they say: {error!r}") from error


def _made(name: str, heads: Mapping[str, str], tensors: Mapping[str, Tensor], depth: int) -> Any:
    kind, t = heads[name], tensors[name + heads[name]]
    if not kind:
        return t
    if depth > _DEEPEST:
        raise ValueError(f"nested more than {_DEEPEST} deep")
    kind = kind[1:]
    if kind in ("int", "float", "bool"):
        return t.item()
    if kind.startswith("array."):
        dtype, shape = json.loads(_key(kind.removeprefix("array.")))
        return np.frombuffer(t.numpy().tobytes(), dtype).reshape(shape).copy()[()]
    if kind == "dict":
        components = json.loads(bytes(t.tolist()))
        return {_key(c): _made(f"{name}/{c}", heads, tensors, depth + 1) for c in components}
    if kind in _CONTAINERS:
        return _CONTAINERS[kind]([_made(f"{name}/{i}", heads, tensors, depth + 1) for i in range(int(t))])
    plain, _, numbers = kind.partition(".")
    if numbers in ("int", "float"):
        return _CONTAINERS[plain](t.tolist())
    return _WRITTEN[kind](bytes(t.tolist()).decode())

"""Training state as named tensors: what a checkpoint holds and a state digest covers (protocol §3, §4)."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from vtrain.commit.digest import StateDigest, TensorBytes, files_digest
from vtrain.errors import CheckpointError, StateError

DTYPES = {
    torch.float32: "F32", torch.float64: "F64", torch.bfloat16: "BF16", torch.float16: "F16", torch.int64: "I64",
    torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
TORCH_DTYPES = {name: dtype for dtype, name in DTYPES.items()}
Files = dict[str, dict[str, torch.Tensor]]


def tensor_bytes(t: torch.Tensor) -> TensorBytes:
    """A tensor's digest view; shares memory with a contiguous CPU tensor.

    Raises:
        StateError: a dtype that can't be committed to.
    """
    name = DTYPES.get(t.dtype)
    if name is None:
        raise StateError(f"a tensor of dtype {t.dtype} can't be committed to; want one of {', '.join(TORCH_DTYPES)}")
    flat = t.detach().cpu().contiguous().reshape(-1)
    return TensorBytes(name, tuple(t.shape), flat.view(torch.uint8).numpy())


def to_tensor(t: TensorBytes) -> torch.Tensor:
    """A new tensor with the same bytes."""
    dtype = TORCH_DTYPES.get(t.dtype)
    if dtype is None:
        raise CheckpointError(f"a tensor of dtype {t.dtype}; want one of {', '.join(TORCH_DTYPES)}")
    if not t.view.nbytes:
        return torch.empty(t.shape, dtype=dtype)
    return torch.frombuffer(bytearray(t.view), dtype=dtype).reshape(t.shape)


_PART = ":"  # between a tensor's name and that of a part of it


def parts(name: str, t: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
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
            yield from parts(f"{name}{_PART}{attribute}", getattr(t, attribute))


def _named(model: torch.nn.Module) -> Iterator[tuple[str, str, torch.Tensor]]:
    """(file, name, tensor) of parameters, buffers and gradients; tied ones once."""
    kept = set(model.state_dict())
    for name, p in model.named_parameters():
        yield from _in("model", name, p)
        if p.grad is not None:
            yield from _in("gradients", name, p.grad)
    for name, b in model.named_buffers():
        yield from _in("model" if name in kept else "buffers", name, b)


def _in(file: str, name: str, t: torch.Tensor) -> Iterator[tuple[str, str, torch.Tensor]]:
    for part, tensor in parts(name, t):
        yield file, part, tensor


def collect(model: torch.nn.Module, optimizer: torch.optim.Optimizer | None) -> Files:
    """All tensors that the next step depends on, by file and name; references, not copies.

    Optimizer tensors are named ``<index of the parameter>.<key>``, the index counting parameters in group order.
    """
    files: Files = {"model": {}}
    for file, name, t in _named(model):
        files.setdefault(file, {})[name] = t.detach()
    if optimizer is not None:
        for name, value in _optimizer_tensors(optimizer):
            files.setdefault("optimizer", {})[name] = value
    return files


def _optimizer_tensors(optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, torch.Tensor]]:
    for name, value in _optimizer_state(optimizer):
        if isinstance(value, torch.Tensor):
            yield from parts(name, value)


def _parameters(optimizer: torch.optim.Optimizer) -> list[torch.nn.Parameter]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def _optimizer_state(optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, Any]]:
    for index, p in enumerate(_parameters(optimizer)):
        for key, value in sorted(optimizer.state.get(p, {}).items()):
            yield f"{index}.{key}", value


def digest(files: Files) -> StateDigest:
    """State digest over all files' tensors, named ``file/name``."""
    return files_digest(as_bytes(files))


def as_bytes(files: Files) -> dict[str, dict[str, TensorBytes]]:
    """The files as a checkpoint writes them."""
    return {f: {n: tensor_bytes(t) for n, t in tensors.items()} for f, tensors in files.items()}


def _plain(value: Any) -> Any:
    """A hyperparameter as JSON with floats as hexadecimal strings, reversibly."""
    if isinstance(value, float):
        return {"float": value.hex()}
    if isinstance(value, list | tuple):
        return {"tuple" if isinstance(value, tuple) else "list": [_plain(v) for v in value]}
    if isinstance(value, dict):
        return {"dict": [[_plain(k), _plain(v)] for k, v in value.items()]}
    if isinstance(value, torch.Tensor) and value.numel() == 1:
        return {"number": [DTYPES[value.dtype], _plain(value.item())]}
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int):
        return {"int": str(value)}
    raise StateError(f"a {type(value).__name__} can't be kept in a checkpoint")


def _value(plain: Any) -> Any:
    if not isinstance(plain, dict):
        return plain
    kind, content = next(iter(plain.items()))
    if kind == "float":
        return float.fromhex(content)
    if kind == "int":
        return int(content)
    if kind == "dict":
        return {_value(k): _value(v) for k, v in content}
    if kind == "number":
        return torch.tensor(_value(content[1]), dtype=TORCH_DTYPES[content[0]])
    items = [_value(v) for v in content]
    return tuple(items) if kind == "tuple" else items


def meta(optimizer: torch.optim.Optimizer | None, extra: Mapping[str, Any]) -> dict[str, Any]:
    """What is no tensor: hyperparameters, counters, the state of schedulers and the like. For resuming, not evidence.

    Args:
        optimizer: its parameter groups and scalar state.
        extra: objects with ``state_dict`` by name.

    Raises:
        StateError: a value that JSON can't hold.
    """
    out: dict[str, Any] = {"extra": {name: _plain(o.state_dict()) for name, o in extra.items()}}
    if optimizer is not None:
        out["groups"] = [_plain({k: v for k, v in g.items() if k != "params"}) for g in optimizer.param_groups]
        out["scalars"] = {n: _plain(v) for n, v in _optimizer_state(optimizer) if not isinstance(v, torch.Tensor)}
    json.dumps(out)
    return out


def restore(
    files: Mapping[str, Mapping[str, TensorBytes]], model: torch.nn.Module, optimizer: torch.optim.Optimizer | None
) -> None:
    """Put a checkpoint's tensors into model and optimizer.

    Raises:
        CheckpointError: names, shapes or dtypes do not fit the model.
    """
    with torch.no_grad():
        _restore_model(files, model)
        if optimizer is not None:
            _restore_optimizer(files.get("optimizer", {}), optimizer)


def _restore_model(files: Mapping[str, Mapping[str, TensorBytes]], model: torch.nn.Module) -> None:
    for p in model.parameters():
        p.grad = None
    mine = {(f, n): t for f, n, t in _named(model)}
    theirs = {(f, n): t for f in ("model", "buffers") for n, t in files.get(f, {}).items()}
    if mine.keys() != theirs.keys():
        names = sorted("/".join(k) for k in mine.keys() ^ theirs.keys())
        raise CheckpointError(f"tensors differ between model and checkpoint: {', '.join(names[:5])}")
    for key, t in mine.items():
        _fits("/".join(key), theirs[key], t)
        t.copy_(to_tensor(theirs[key]))
    parameters = dict(model.named_parameters())
    for name, grad in files.get("gradients", {}).items():
        if name not in parameters:
            raise CheckpointError(f"gradients/{name}: the model has no such parameter")
        _fits(f"gradients/{name}", grad, parameters[name])
        parameters[name].grad = to_tensor(grad).to(parameters[name].device)


def _fits(name: str, found: TensorBytes, want: torch.Tensor) -> None:
    if found.shape != tuple(want.shape) or found.dtype != DTYPES.get(want.dtype):
        raise CheckpointError(f"{name}: {found.dtype}{list(found.shape)}, want {want.dtype}{list(want.shape)}")


def _restore_optimizer(tensors: Mapping[str, TensorBytes], optimizer: torch.optim.Optimizer) -> None:
    parameters = _parameters(optimizer)
    optimizer.state.clear()
    for name, t in tensors.items():
        index, _, key = name.partition(".")
        if not index.isdecimal() or int(index) >= len(parameters) or not key:
            raise CheckpointError(f"optimizer/{name}: the optimizer has {len(parameters)} parameters")
        if _PART in key:
            raise CheckpointError(f"optimizer/{name}: a part of a wrapper subclass, which can't be made again from it")
        p = parameters[int(index)]
        value = to_tensor(t)
        optimizer.state[p][key] = value if key == "step" else value.to(p.device)


def restore_meta(stored: Mapping[str, Any], optimizer: torch.optim.Optimizer | None, extra: Mapping[str, Any]) -> None:
    """Put back what ``meta`` kept; for a trainer resuming its own run.

    Raises:
        CheckpointError: it does not fit.
    """
    try:
        for name, o in extra.items():
            o.load_state_dict(_value(stored["extra"][name]))
        if optimizer is None:
            return
        for group, plain in zip(optimizer.param_groups, stored["groups"], strict=True):
            group.update(_value(plain))
        parameters = _parameters(optimizer)
        for name, plain in stored["scalars"].items():
            index, _, key = name.partition(".")
            optimizer.state[parameters[int(index)]][key] = _value(plain)
    except (KeyError, ValueError, TypeError, IndexError, StopIteration) as error:
        raise CheckpointError(f"a checkpoint's meta does not fit: {error!r}") from error


def versions(model: torch.nn.Module, optimizer: torch.optim.Optimizer | None) -> tuple[int, ...]:
    """In-place version counters of the state: equal as long as nobody writes to it."""
    tensors = [t for whole in (*model.parameters(), *model.buffers()) for _, t in parts("", whole)]
    if optimizer is not None:
        tensors += [t for _, t in _optimizer_tensors(optimizer)]
    return tuple(t._version for t in tensors)

"""Training state as named tensors: what a checkpoint holds and a state digest covers (protocol §3, §4)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import torch
from torch.nn.parameter import UninitializedTensorMixin  # type: ignore[attr-defined]

from vtrain.commit.digest import StateDigest, TensorBytes, files_digest
from vtrain.engine.state import nest, optimizers
from vtrain.engine.state.tensors import DTYPES, check_fits, tensor_bytes, to_tensor
from vtrain.errors import CheckpointError

Files = dict[str, dict[str, torch.Tensor]]


def _named(model: torch.nn.Module) -> Iterator[tuple[str, str, torch.Tensor]]:
    """(file, name, tensor) of parameters, buffers and gradients; tied ones once, lazy ones when they are made."""
    for name, p in model.named_parameters():
        if isinstance(p, UninitializedTensorMixin):
            continue
        yield from _in("model", name, p)
        if p.grad is not None:
            yield from _in("gradients", name, p.grad)
    passing = _not_persistent(model)
    for name, b in model.named_buffers():
        if not isinstance(b, UninitializedTensorMixin):
            yield from _in("buffers" if name in passing else "model", name, b)


def _not_persistent(model: torch.nn.Module) -> set[str]:
    """Names of the buffers that no ``state_dict`` holds."""
    return {
        f"{path}.{key}" if path else key
        for path, module in model.named_modules()
        for key in module._non_persistent_buffers_set
    }


def _in(file: str, name: str, t: torch.Tensor) -> Iterable[tuple[str, str, torch.Tensor]]:
    if type(t) in nest.WHOLE:
        return ((file, name, t.detach()),)
    return _parts_in(file, name, t)


def _parts_in(file: str, name: str, t: torch.Tensor) -> Iterator[tuple[str, str, torch.Tensor]]:
    for part, tensor in nest.parts(name, t):
        yield file, part, tensor.detach()


def collect(model: torch.nn.Module, optimizer: torch.optim.Optimizer | None) -> Files:
    """All tensors that the next step depends on, by file and name; references, not copies.

    Names of an optimizer's are those of ``optimizers.py``.

    Raises:
        StateError: a value that can't be kept; names it.
    """
    files: Files = {"model": {}}
    for file, name, t in _named(model):
        files.setdefault(file, {})[name] = t
    if optimizer is not None:
        for name, value in optimizers.collect(optimizer, set(map(id, model.parameters()))):
            files.setdefault("optimizer", {})[name] = value.detach()
    return files


def digest(files: Files) -> StateDigest:
    """State digest over all files' tensors, named ``file/name``."""
    return files_digest(as_bytes(files))


def as_bytes(files: Files) -> dict[str, dict[str, TensorBytes]]:
    """The files as a checkpoint writes them."""
    return {f: {n: tensor_bytes(t) for n, t in tensors.items()} for f, tensors in files.items()}


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
            optimizers.restore(files.get("optimizer", {}), optimizer, set(map(id, model.parameters())))


def _restore_model(files: Mapping[str, Mapping[str, TensorBytes]], model: torch.nn.Module) -> None:
    for p in model.parameters():
        p.grad = None
    theirs = {(f, n): t for f in ("model", "buffers") for n, t in files.get(f, {}).items()}
    _make_room(theirs, model)
    mine = {(f, n): t for f, n, t in _named(model)}
    if mine.keys() != theirs.keys():
        names = sorted("/".join(k) for k in mine.keys() ^ theirs.keys())
        raise CheckpointError(f"tensors differ between model and checkpoint: {', '.join(names[:5])}")
    for key, t in mine.items():
        check_fits("/".join(key), theirs[key], t)
        t.copy_(to_tensor(theirs[key]))
    parameters = dict(model.named_parameters())
    for name, grad in files.get("gradients", {}).items():
        if name not in parameters:
            raise CheckpointError(f"gradients/{name}: the model has no such parameter")
        check_fits(f"gradients/{name}", grad, parameters[name])
        parameters[name].grad = to_tensor(grad).to(parameters[name].device)


def _make_room(stored: Mapping[tuple[str, str], TensorBytes], model: torch.nn.Module) -> None:
    """Lazy parameters are made, and buffers of another size, such as a cache that grew, made anew."""
    lazy = [*model.named_parameters(), *model.named_buffers()]
    for name, t in lazy:
        if isinstance(t, UninitializedTensorMixin) and ("model", name) in stored:
            t.materialize(stored["model", name].shape)
    for name, b in list(model.named_buffers()):
        found = stored.get(("model", name)) or stored.get(("buffers", name))
        if found is not None and found.shape != tuple(b.shape) and found.dtype == DTYPES.get(b.dtype):
            owner, _, key = name.rpartition(".")
            model.get_submodule(owner)._buffers[key] = b.new_empty(found.shape)


def versions(model: torch.nn.Module, optimizer: torch.optim.Optimizer | None) -> tuple[int, ...]:
    """In-place version counters of the state: equal as long as nobody writes to it."""
    tensors = [t for tensors in collect(model, optimizer).values() for t in tensors.values()]
    return tuple(-1 if t.is_inference() else t._version for t in tensors)

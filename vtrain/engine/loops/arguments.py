"""What ``record`` and ``replay`` are given: checked before anything is written, so that a mistake is told as one."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from typing import Any

import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from vtrain.errors import UsageError
from vtrain.policy import Policy
from vtrain.store.address import Url, place


def _name(value: Any) -> str:
    return f"the class {value.__name__}" if isinstance(value, type) else f"a {type(value).__name__}"


def check_path(path: Any) -> None:
    """Refuse what is no path of a directory.

    Raises:
        UsageError: another type, or the address of a store.
    """
    if not isinstance(path, str | os.PathLike) or isinstance(os.fspath(path), bytes):
        raise UsageError(f"path is {_name(path)}; want the run's directory, as a text or a pathlib.Path")
    if isinstance(path, str) and isinstance(place(path), Url):
        raise UsageError(
            f"path is {place(path)}; a loop's run is a directory here (`vtrain train --out` writes to stores)"
        )


def check_model(model: Any) -> None:
    """Refuse what is neither a module nor a function without arguments.

    Raises:
        UsageError: that, or a module that is spread over processes.
    """
    wanted = "want a torch.nn.Module, or a function without arguments that makes one (model=lambda: Net(...))"
    if isinstance(model, torch.nn.Module):
        check_one_process(model)
        return
    if not callable(model):
        raise UsageError(f"model is {_name(model)}; {wanted}")
    if missing := _missing(model, 0):
        raise UsageError(f"model is {_name(model)} that takes arguments ({missing}); {wanted}")


def check_one_process(model: torch.nn.Module) -> None:
    """Refuse a module that sums gradients between processes, or has one that does in it, before its first step.

    Raises:
        UsageError: that; says what to give instead.
    """
    for path, module in model.named_modules():
        spread = {base.__name__ for base in type(module).__mro__ if base.__module__.startswith("torch.")} & _SPREAD
        if not spread:
            continue
        kind, name = min(spread), f"model.{path}" if path else "model"
        away = "don't call fully_shard(...) on it"
        if kind != "FSDPModule":
            away = f"give what {kind}(...) wraps ({name}.module) to record and replay, and call that in steps"
        raise UsageError(
            f"{name} is a {kind}, which sums or sends tensors between processes, in an order that no run repeats; "
            f"train the module itself, in one process: {away}"
        )


_SPREAD = frozenset({"DistributedDataParallel", "FullyShardedDataParallel", "FSDPModule"})


def check_optimizer(optimizer: Any) -> None:
    """Refuse what is neither an optimizer, nor a function of the model, nor None.

    Raises:
        UsageError: that.
    """
    wanted = "want a torch.optim.Optimizer, or a function of the model that makes one"
    example = "optimizer=lambda m: torch.optim.SGD(m.parameters(), lr=0.1)"
    if optimizer is None or isinstance(optimizer, torch.optim.Optimizer):
        return
    if not callable(optimizer) or isinstance(optimizer, torch.nn.Module):
        raise UsageError(f"optimizer is {_name(optimizer)}; {wanted} ({example})")
    if isinstance(optimizer, type) and issubclass(optimizer, torch.optim.Optimizer):
        raise UsageError(f"optimizer is {_name(optimizer)}; {wanted} ({example})")
    if _missing(optimizer, 1) is not None:
        raise UsageError(
            f"optimizer is {_name(optimizer)} that can't be called with the model alone; {wanted} ({example})"
        )


def check_policy(policy: Any) -> None:
    """Refuse what is neither a policy nor None.

    Raises:
        UsageError: that; says how to write it.
    """
    if policy is None or isinstance(policy, Policy):
        return
    if isinstance(policy, dict) and all(isinstance(key, str) and key.isidentifier() for key in policy):
        found = ", ".join(f"{key}={value!r}" for key, value in policy.items())
    else:
        found = "matmul='chain'"
    raise UsageError(f"policy is {_name(policy)}; want a vtrain.Policy, such as vtrain.Policy({found})")


def check_seed(seed: Any) -> None:
    """Refuse what is no seed.

    Raises:
        UsageError: not an integer in [0, 2^128), nor its decimal digits.
    """
    digits = isinstance(seed, str) and seed.isascii() and seed.isdecimal()
    if isinstance(seed, bool) or not (isinstance(seed, int) or digits) or not 0 <= int(seed) < 2**128:
        raise UsageError(f"seed is {str(seed)[:80]!r}; want an integer in [0, 2^128), or its decimal digits")


def check_private_key(key: Any) -> None:
    """Refuse what is neither a private key, nor a path, nor None.

    Raises:
        UsageError: that.
    """
    if key is not None and not isinstance(key, Ed25519PrivateKey | str | os.PathLike):
        raise UsageError(
            f"key is {_name(key)}; want the file that `vtrain keygen` wrote, or an Ed25519PrivateKey, the trainer's"
        )


def check_public_key(key: Any) -> None:
    """Refuse what is neither a public key, nor a path, nor None.

    Raises:
        UsageError: that.
    """
    if key is not None and not isinstance(key, Ed25519PublicKey | str | os.PathLike):
        raise UsageError(f"trainer_key is {_name(key)}; want the trainer's .pub file, or an Ed25519PublicKey")


def check_resume(resume: Any) -> None:
    """Refuse what says neither whether nor how to resume.

    Raises:
        UsageError: that.
    """
    if not isinstance(resume, bool) and resume != "anew":
        raise UsageError(f"resume is {resume!r}; want True, False or 'anew'")


def check_function(name: str, value: Any) -> None:
    """Refuse what is neither a function nor None.

    Raises:
        UsageError: that.
    """
    if value is not None and not callable(value):
        raise UsageError(f"{name} is {_name(value)}; want a function, or None")


def _missing(function: Callable[..., Any], given: int) -> str | None:
    """The arguments that a call with ``given`` positional ones lacks, or has too few for; None if there are none."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # written in C: the call will tell
        return None
    try:
        signature.bind(*[None] * given)
    except TypeError:
        kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
        return ", ".join(p.name for p in signature.parameters.values() if p.default is p.empty and p.kind not in kinds)
    return None

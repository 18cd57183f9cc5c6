"""Choices that torch makes by processor features or global flags, pinned inside a step (numerics §3, §6)."""

from __future__ import annotations

import contextlib
import functools
import sys
import threading
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from vtrain.engine.callsite import user_line
from vtrain.errors import UsageError
from vtrain.kernels import device


def _unfused_optimizer(params: list, differentiable: bool, use_fused: bool = False) -> tuple[bool, bool]:
    return False, False


@contextlib.contextmanager
def pinned() -> Iterator[None]:
    """Within: attention by the math backend, no oneDNN or cuDNN layers, no transformer fast path, no reduced precision
    (TF32, BF16 reductions, Winograd through cuDNN), default optimizers per tensor, nothing compiled, no deterministic
    forms of torch's own (which take other operations), distributions that check their arguments; all restored at the
    end."""
    from torch.optim import adagrad, adam, adamw, optimizer, rmsprop, sgd

    modules = [m for m in (optimizer, adam, adamw, sgd, adagrad, rmsprop) if hasattr(m, "_default_to_fused_or_foreach")]
    saved = [m._default_to_fused_or_foreach for m in modules]
    fastpath = torch.backends.mha.get_fastpath_enabled()
    libraries = [(put, get()) for backend in device.backends() for get, put in backend.libraries]
    deterministic = torch.get_deterministic_debug_mode()
    for m in modules:
        m._default_to_fused_or_foreach = _unfused_optimizer  # type: ignore[attr-defined]
    torch.backends.mha.set_fastpath_enabled(False)
    torch.set_deterministic_debug_mode(0)
    try:
        for put, _ in libraries:
            put(False)
        with full_precision(), sdpa_kernel(SDPBackend.MATH), uncompiled(), no_loaders(), validated():
            yield
    finally:
        for m, function in zip(modules, saved, strict=True):
            m._default_to_fused_or_foreach = function  # type: ignore[attr-defined]
        for put, before in libraries:
            put(before)
        torch.backends.mha.set_fastpath_enabled(fastpath)
        torch.set_deterministic_debug_mode(deterministic)


def precisions() -> list[tuple[str, str]]:
    """(backend, operation) of every ``torch.backends.*.*.fp32_precision`` that products depend on."""
    return [place for backend in device.backends() for place in backend.precisions]


@contextlib.contextmanager
def full_precision() -> Iterator[None]:
    """Within: float32 products are float32's, whichever of torch's two ways a user set them by."""
    places = precisions()
    saved = [torch._C._get_fp32_precision_getter(*place) for place in places]
    try:
        legacy = torch.get_float32_matmul_precision()
    except RuntimeError:  # set by the newer way: then torch refuses to say
        legacy = "highest"
    torch.set_float32_matmul_precision("highest")  # the newer one's "ieee"
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(legacy)
        for place, value in zip(places, saved, strict=True):
            torch._C._set_fp32_precision_setter(*place, "none")  # what it inherits
            if torch._C._get_fp32_precision_getter(*place) != value:
                torch._C._set_fp32_precision_setter(*place, value)


@contextlib.contextmanager
def uncompiled() -> Iterator[None]:
    """Within: what torch.compile compiled runs as it was written, each operation seen; a warning says so once."""
    dynamo = sys.modules.get("torch._dynamo.eval_frame")
    if dynamo is None:  # nothing can have been compiled
        yield
        return
    chosen = dynamo._callback_from_stance

    def eager(callback: Any) -> Any:
        if callback is not None:
            _warn_uncompiled()
        return chosen(callback)

    dynamo._callback_from_stance = eager  # type: ignore[attr-defined]
    try:
        with torch.compiler.set_stance("force_eager"):
            yield
    finally:
        dynamo._callback_from_stance = chosen  # type: ignore[attr-defined]


@functools.cache
def _warn_uncompiled() -> None:
    warnings.warn(
        "torch.compile has no effect inside a step, as its kernels could be neither logged nor canonical: what it made "
        f"runs uncompiled (first at {user_line()})",
        stacklevel=2,
    )


@contextlib.contextmanager
def validated() -> Iterator[None]:
    """Within: distributions check their arguments, by operations too; torch.compile, once used, turns that off."""
    kind = torch.distributions.Distribution
    before = kind._validate_args
    kind.set_default_validate_args(True)
    try:
        yield
    finally:
        kind.set_default_validate_args(before)


@contextlib.contextmanager
def no_loaders() -> Iterator[None]:
    """Within: to iterate a DataLoader is an error in this thread; others, which fetch the next batch, may.

    A loader draws the seed of its order and its workers' from the global generator, and what it reads is no part of the
    batch that a step commits to.

    Raises:
        UsageError: (inside) one is iterated.
    """
    loader: Any = getattr(sys.modules.get("torch.utils.data.dataloader"), "DataLoader", None)
    if loader is None:
        yield
        return
    original, owner = loader.__iter__, threading.get_ident()

    @functools.wraps(original)
    def iterate(self: Any) -> Any:
        if threading.get_ident() == owner:
            raise UsageError(
                f"a DataLoader was iterated inside a step, at {user_line()}: fetch the batch before run.step(batch), "
                "which commits to it (or before vtrain.seeded)"
            )
        return original(self)

    loader.__iter__ = iterate
    try:
        yield
    finally:
        loader.__iter__ = original

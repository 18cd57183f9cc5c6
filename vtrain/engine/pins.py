"""Choices that torch makes by processor features or global flags, pinned inside a step (numerics §3, §6)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel


def _unfused_optimizer(params: list, differentiable: bool, use_fused: bool = False) -> tuple[bool, bool]:
    return False, False


@contextlib.contextmanager
def pinned() -> Iterator[None]:
    """Within: attention by the math backend, no oneDNN layers, no transformer fast path, no reduced precision
    (TF32, BF16 reductions, Winograd through cuDNN), default optimizers per tensor; all restored at the end."""
    from torch.optim import adagrad, adam, adamw, optimizer, rmsprop, sgd

    modules = [m for m in (optimizer, adam, adamw, sgd, adagrad, rmsprop) if hasattr(m, "_default_to_fused_or_foreach")]
    saved = [m._default_to_fused_or_foreach for m in modules]
    fastpath = torch.backends.mha.get_fastpath_enabled()
    mkldnn = torch._C._get_mkldnn_enabled()
    precision = torch.get_float32_matmul_precision()
    for m in modules:
        m._default_to_fused_or_foreach = _unfused_optimizer  # type: ignore[attr-defined]
    torch.backends.mha.set_fastpath_enabled(False)
    torch.set_float32_matmul_precision("highest")
    try:
        torch._C._set_mkldnn_enabled(False)
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        for m, function in zip(modules, saved, strict=True):
            m._default_to_fused_or_foreach = function  # type: ignore[attr-defined]
        torch._C._set_mkldnn_enabled(mkldnn)
        torch.backends.mha.set_fastpath_enabled(fastpath)
        torch.set_float32_matmul_precision(precision)

"""Operations that torch composes of others in one way on the CPU and in another on accelerators (numerics §6).

Dropout is ``bernoulli_``, ``div_`` and ``mul`` on the CPU, and ``native_dropout`` elsewhere; a recurrent layer takes a
whole sequence at once there, and step by step, by fused cells, elsewhere; so with ``rms_norm``. An auditor on another
device would walk other sites, with other scalars. So within a step they are composed on every device as on the CPU.
Attention is one operation of ours (``sdpa``).

torch composes below Python and above the dispatch mode; what is composed here is registered with the dispatcher for
the device's types, once a process, and outside steps calls torch's own.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.library import Library

from vtrain.engine import recurrent
from vtrain.engine.generators.owner import mine
from vtrain.engine.sdpa import scaled_dot_product_attention
from vtrain.kernels import device

Tensor = torch.Tensor
aten = torch.ops.aten
_COMPOSITE = torch._C.DispatchKey.CompositeImplicitAutograd


def _noise(x: Tensor, p: float) -> Tensor:
    # by overload, as C++ calls them: a dispute compares operations by name
    return aten.div_.Scalar(aten.bernoulli_.float(aten.empty_like.default(x), 1 - p), 1 - p)


def dropout(x: Tensor, p: float, train: bool) -> Tensor:
    """x with each element zero with probability p, else divided by 1 - p."""
    if p == 0 or not train or x.numel() == 0:
        return x
    if p == 1:
        return x * torch.zeros((), dtype=x.dtype, device=x.device)
    return x * _noise(x, p)


def rms_norm(x: Tensor, shape: Sequence[int], weight: Tensor | None = None, eps: float | None = None) -> Tensor:
    """x over the root of the mean of its squares: torch's own composition, which CUDA has a kernel in place of."""
    return aten._fused_rms_norm.default._op_dk(_COMPOSITE, x, shape, weight, eps)[0]


COMPOSED: dict[str, Callable[..., Any]] = {
    "dropout": dropout, "rms_norm": rms_norm, **recurrent.COMPOSED
}  # fmt: skip
FUSED: dict[str, Callable[..., Any]] = {"scaled_dot_product_attention": scaled_dot_product_attention}  # on the CPU too
_overrides: Library | None = None


def _led(name: str, composed: Callable[..., Any]) -> Callable[..., Any]:
    packet, _, overload = name.partition(".")
    native = getattr(getattr(aten, packet), overload or "default")

    @functools.wraps(composed)
    def run(*args: Any, **kwargs: Any) -> Any:
        if mine() is None:
            return native._op_dk(_COMPOSITE, *args, **kwargs)  # not by ``decompose``, which prefers Python's own
        return composed(*args, **kwargs)

    return run


@functools.cache
def as_on_the_cpu(kind: str) -> None:
    """Register them for a type of devices; for the CPU itself, what is one operation of ours there."""
    global _overrides
    _overrides = _overrides or Library("aten", "IMPL")
    key = torch._C._dispatch_key_for_device(kind)
    for name, composed in (FUSED if kind == "cpu" else COMPOSED | FUSED).items():
        run = _led(name, composed)
        _overrides.impl(name, run, f"Autograd{key}")
        _overrides.impl(name, run, key)


def prepare() -> None:
    """Register them for the CPU, and for every type of devices of which there is one."""
    as_on_the_cpu("cpu")
    for found in device.present():
        as_on_the_cpu(found.type)

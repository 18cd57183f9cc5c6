"""Fused optimizer steps: one kernel a tensor, the bits of torch.optim's unfused sequence (numerics §2, class 4)."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from vtrain.engine.core import F32, Engine
from vtrain.engine.optable import forbid, register
from vtrain.kernels import canonical

Tensor = torch.Tensor
Tensors = Sequence[Tensor]


def _check(engine: Engine, tensors: Tensors, grad_scale: Tensor | None, found_inf: Tensor | None) -> None:
    if grad_scale is not None or found_inf is not None:
        engine.refuse("a gradient scaler inside a fused step; unscale the gradients first")
    if engine.restricted or any(t.dtype is not F32 for t in tensors):
        engine.refuse("a fused step of other than float32 parameters; use fused=False")


def _adam(
    engine: Engine, params: Tensors, grads: Tensors, first: Tensors, second: Tensors, most: Tensors, steps: Tensors,
    *, lr: float, beta1: float, beta2: float, weight_decay: float, eps: float, amsgrad: bool, maximize: bool,
    grad_scale: Tensor | None = None, found_inf: Tensor | None = None, decoupled: bool = False,
) -> None:  # fmt: skip
    _check(engine, params, grad_scale, found_inf)
    for i, (param, grad, step) in enumerate(zip(params, grads, steps, strict=True)):
        count = float(step)
        size = engine.scalar(lr / (1 - beta1**count), plain=True)
        root = engine.scalar((1 - beta2**count) ** 0.5, plain=True)
        state = (first[i], second[i], most[i] if amsgrad else None)
        canonical.optimizer_step(
            "adam", param, grad, state, maximize, decoupled, False, False, lr, weight_decay, beta1, beta2, eps, size,
            root, 0.0, 0.0,
        )  # fmt: skip


@register("_fused_adam_.default")
def fused_adam(engine: Engine, *args: Tensors, **kwargs: float) -> None:
    """Adam; weight decay is added to the gradient."""
    _adam(engine, *args, **kwargs)  # type: ignore[arg-type]


@register("_fused_adamw_.default")
def fused_adamw(engine: Engine, *args: Tensors, **kwargs: float) -> None:
    """AdamW; weight decay shrinks the parameter."""
    _adam(engine, *args, **kwargs, decoupled=True)  # type: ignore[arg-type]


@register("_fused_sgd_.default")
def fused_sgd(
    engine: Engine, params: Tensors, grads: Tensors, buffers: Tensors, *, weight_decay: float, momentum: float,
    lr: float, dampening: float, nesterov: bool, maximize: bool, is_first_step: bool,
    grad_scale: Tensor | None = None, found_inf: Tensor | None = None,
) -> None:  # fmt: skip
    """SGD with momentum."""
    _check(engine, params, grad_scale, found_inf)
    for i, (param, grad) in enumerate(zip(params, grads, strict=True)):
        state = (buffers[i] if momentum != 0 else None, None, None)
        canonical.optimizer_step(
            "sgd", param, grad, state, maximize, False, is_first_step, nesterov, lr, weight_decay, 0.0, 0.0, 0.0, 0.0,
            0.0, momentum, dampening,
        )  # fmt: skip


forbid(
    "a fused optimizer step that is not covered; construct the optimizer with fused=False (its default form is)",
    "_fused_adam_.tensor_lr _fused_adamw_.tensor_lr _fused_sgd_.tensor_lr _fused_adagrad_.default".split(),
)

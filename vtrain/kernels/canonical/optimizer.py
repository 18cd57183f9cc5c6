"""Optimizer steps in one pass."""

from __future__ import annotations

from vtrain.kernels import launch
from vtrain.kernels.canonical.checks import Tensor, checked, contiguous, sized


def optimizer_step(name: str, param: Tensor, grad: Tensor, state: tuple[Tensor | None, ...], *numbers: float) -> None:
    """``sgd`` or ``adam`` in place on contiguous float32 tensors.

    Args:
        state: first, second, most: buffers, contiguous; None where the optimizer has none.
        numbers: maximize, decoupled, fresh, nesterov (0 or 1), then lr, decay, beta1, beta2, eps, step_size,
            root_correction, momentum, dampening (families/optimizer.hpp).
    """
    checked(name, param, param=param, grad=grad, first=state[0], second=state[1], most=state[2])
    sized(name, param.numel(), grad=grad, first=state[0], second=state[1], most=state[2])
    contiguous(name, param=param, first=state[0], second=state[1], most=state[2])
    if param.numel():
        flags, reals = (int(n) for n in numbers[:4]), (float(n) for n in numbers[4:])
        launch.launch(name, param, grad.contiguous(), *state, param.numel(), *flags, *reals)

"""Optimizer steps against their definition, and torch's fused optimizers against its unfused ones, in every bit."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from naive import F32, Array, array, assert_same, numbers, quietly, strange

from vtrain.engine.listener import Plain
from vtrain.engine.session import Session
from vtrain.errors import OperandError, UnsupportedOperation
from vtrain.kernels import canonical
from vtrain.policy import Policy

Tensor = torch.Tensor
SIZES = [1, 31, 32, 33, 4097]


# ---- the definitions ------------------------------------------------------------------------------------------------
@quietly
def sgd(p: Array, g: Array, buffer: Array | None, *, maximize: bool, fresh: bool, nesterov: bool, lr: float,
        decay: float, momentum: float, dampening: float) -> tuple[Array, Array | None]:  # fmt: skip
    """Parameter and buffer after a step, each operation rounded to float32."""
    g = -g if maximize else g
    g = g + p * F32(decay) if decay else g
    if buffer is not None:
        share = F32(1 - dampening)
        buffer = g if fresh else buffer * F32(momentum) + (g if share == 1 else g * share)
        g = g + buffer * F32(momentum) if nesterov else buffer
    return p + g * F32(-lr), buffer


@quietly
def adam(p: Array, g: Array, first: Array, second: Array, most: Array | None, *, maximize: bool, decoupled: bool,
         lr: float, decay: float, beta1: float, beta2: float, eps: float, size: float, root: float
         ) -> tuple[Array | None, ...]:  # fmt: skip
    """Parameter, moments and the second one's maximum after a step, each operation rounded to float32."""
    g = -g if maximize else g
    if decay:
        p, g = (p * F32(1 - lr * decay), g) if decoupled else (p, g + p * F32(decay))
    difference = g - first
    toward = 1 - beta1
    first = difference * F32(toward) + first if toward < 0.5 else g - difference * F32(1 - toward)
    second = second * F32(beta2) + (g * F32(1 - beta2)) * g
    most = None if most is None else np.maximum(most, second)
    spread = np.sqrt(second if most is None else most) / F32(root)
    return p + (first * F32(-size)) / (spread + F32(eps)), first, second, most


def tensors(n: int, hard: bool, seed: int) -> list[Tensor]:
    make = strange if hard else numbers
    values = [make(n, seed=seed + q) for q in range(5)]
    return [*values[:3], values[3].abs(), values[4].abs()]  # parameter, gradient, first, second moment, its maximum


FLAGS = list(itertools.product([False, True], repeat=3))


@pytest.mark.parametrize("hard", [False, True], ids=["ordinary", "whole range"])
@pytest.mark.parametrize("n", SIZES)
def test_sgd(n: int, hard: bool) -> None:
    for q, (maximize, fresh, nesterov) in enumerate(FLAGS):
        for lr, decay, momentum, dampening in ((0.1, 0.0, 0.0, 0.0), (1e-3, 1e-2, 0.9, 0.0), (0.3, 0.5, 0.7, 0.25)):
            p, g, buffer, *_ = tensors(n, hard, 10 * q)
            held = buffer if momentum else None
            want = sgd(array(p), array(g), array(held), maximize=maximize, fresh=fresh, nesterov=nesterov, lr=lr,
                       decay=decay, momentum=momentum, dampening=dampening)  # fmt: skip
            before = array(g)
            canonical.optimizer_step("sgd", p, g, (held, None, None), maximize, False, fresh, nesterov, lr, decay,
                                     0.0, 0.0, 0.0, 0.0, 0.0, momentum, dampening)  # fmt: skip
            assert_same(p, want[0], "parameter")
            assert_same(g, before, "gradient")
            if held is not None:
                assert_same(held, want[1], "buffer")


@pytest.mark.parametrize("hard", [False, True], ids=["ordinary", "whole range"])
@pytest.mark.parametrize("n", SIZES)
def test_adam(n: int, hard: bool) -> None:
    for q, (maximize, decoupled, amsgrad) in enumerate(FLAGS):
        for lr, decay, beta1, beta2, eps in (
            (1e-3, 0.0, 0.9, 0.999, 1e-8), (0.1, 0.02, 0.5, 0.9, 1e-3), (0.7, 0.3, 0.2, 0.5, 0.0),
        ):  # fmt: skip
            p, g, first, second, most = tensors(n, hard, 100 + 10 * q)
            top = most if amsgrad else None
            size, root = lr / (1 - beta1**3), (1 - beta2**3) ** 0.5
            want = adam(array(p), array(g), array(first), array(second), array(top), maximize=maximize,
                        decoupled=decoupled, lr=lr, decay=decay, beta1=beta1, beta2=beta2, eps=eps, size=size,
                        root=root)  # fmt: skip
            canonical.optimizer_step("adam", p, g, (first, second, top), maximize, decoupled, False, False, lr, decay,
                                     beta1, beta2, eps, size, root, 0.0, 0.0)  # fmt: skip
            for what, got, expected in zip(("parameter", "first", "second", "most"), (p, first, second, top), want,
                                           strict=True):  # fmt: skip
                if got is not None:
                    assert_same(got, expected, what)


def test_a_gradient_of_any_layout_and_nothing_at_all() -> None:
    p, q = numbers(6, 7, seed=300), numbers(6, 7, seed=300)
    grad = numbers(7, 6, seed=301).T
    flags = (False, False, False, False, 0.1, 0.01, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
    canonical.optimizer_step("sgd", p, grad, (None, None, None), *flags)
    canonical.optimizer_step("sgd", q, grad.contiguous(), (None, None, None), *flags)
    assert_same(p, array(q))
    canonical.optimizer_step("sgd", torch.empty(0), torch.empty(0), (None, None, None), *flags)


# ---- torch's optimizers under the engine ----------------------------------------------------------------------------
def trained(kind: type[torch.optim.Optimizer], fused: bool, options: dict[str, Any]) -> list[Tensor]:
    """Parameters and state after five steps on given gradients: zeros, hard ones, and infinities at the end."""
    params = [numbers(*s, seed=400).requires_grad_() for s in ((3, 5), (1,), (4, 33), (), (2, 0), (7, 2, 3))]
    optimizer = kind(params, fused=fused, **options)  # type: ignore[call-arg]
    session = Session(Plain(), Policy(matmul="chain"), 0)
    for step in range(1, 6):
        for q, p in enumerate(params):
            grad = (strange if step == 4 else numbers)(*p.shape, seed=401 + 10 * step + q)
            p.grad = grad if step != 2 else torch.zeros_like(p)
            if step == 5 and p.numel() > 3:
                p.grad.view(-1)[:3] = torch.tensor([float("inf"), float("nan"), -float("inf")])
            if q == 2 and "momentum" not in options:
                p.grad = p.grad.T.contiguous().T
        with session.step(step):
            optimizer.step()
    state = [v for p in params for _, v in sorted(optimizer.state[p].items()) if isinstance(v, Tensor)]
    return [*(p.detach() for p in params), *state]


def check_fused(kind: type[torch.optim.Optimizer], **options: Any) -> None:
    fused, plain = trained(kind, True, options), trained(kind, False, options)
    assert len(fused) == len(plain)
    for q, (a, b) in enumerate(zip(fused, plain, strict=True)):
        assert_same(a, array(b), f"{options}: {q}")


SGD_OPTIONS = [
    {},
    {"momentum": 0.9},
    {"momentum": 0.9, "nesterov": True},
    {"momentum": 0.9, "nesterov": True, "weight_decay": 0.01, "maximize": True},
    {"momentum": 0.7, "dampening": 0.3},
    {"momentum": 0.7, "dampening": 1.0, "weight_decay": 1e-4},
    {"weight_decay": 0.1, "maximize": True},
]


@pytest.mark.parametrize("options", SGD_OPTIONS, ids=str)
def test_fused_sgd_is_the_unfused_sequence(options: dict[str, Any]) -> None:
    check_fused(torch.optim.SGD, lr=0.1, **options)


ADAM_OPTIONS = [
    {},
    {"amsgrad": True},
    {"weight_decay": 0.1},
    {"weight_decay": 0.0},
    {"betas": (0.3, 0.9)},
    {"betas": (0.5, 0.5), "eps": 1e-3},
    {"betas": (0.0, 0.999), "maximize": True},
    {"amsgrad": True, "maximize": True, "weight_decay": 0.3, "betas": (0.4, 0.8)},
]


@pytest.mark.parametrize("options", ADAM_OPTIONS, ids=str)
@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW])
def test_fused_adam_is_the_unfused_sequence(kind: type[torch.optim.Optimizer], options: dict[str, Any]) -> None:
    check_fused(kind, lr=0.01, **options)


def test_fused_steps_reach_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that the comparisons above are not of the unfused sequence with itself."""
    called: list[str] = []
    monkeypatch.setattr(canonical, "optimizer_step", lambda name, *_: called.append(name))
    for kind, name in ((torch.optim.SGD, "sgd"), (torch.optim.Adam, "adam"), (torch.optim.AdamW, "adam")):
        called.clear()
        trained(kind, True, {"lr": 0.1})
        assert called == [name] * len(called) and len(called) == 5 * 6
        called.clear()
        trained(kind, False, {"lr": 0.1})
        assert called == []


def test_a_buffer_like_a_transposed_gradient_is_refused() -> None:
    """torch gives the buffer the gradient's layout; the kernel walks all tensors side by side."""
    p = torch.ones(3, 4, requires_grad=True)
    p.grad = numbers(4, 3, seed=500).T
    optimizer = torch.optim.SGD([p], lr=0.1, momentum=0.9, fused=True)
    with pytest.raises(OperandError, match="kernel sgd: first is not contiguous"):  # noqa: SIM117
        with Session(Plain(), Policy(matmul="chain"), 0).step(1):
            optimizer.step()


def test_fused_steps_of_other_types_are_refused() -> None:
    p = torch.ones(3, dtype=torch.bfloat16, requires_grad=True)
    p.grad = torch.ones_like(p)
    optimizer = torch.optim.AdamW([p], fused=True)
    with pytest.raises(UnsupportedOperation, match="fused step of other than float32"):  # noqa: SIM117
        with Session(Plain(), Policy(matmul="chain"), 0).step(1):
            optimizer.step()
    assert torch.equal(p.detach(), torch.ones(3, dtype=torch.bfloat16))

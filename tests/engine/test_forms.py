"""In-place, ``out=`` and ``_foreach_`` forms give the bits of the functional form, whatever they write to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from vtrain.engine.listener import Plain
from vtrain.engine.session import Session
from vtrain.policy import Policy

Tensor = torch.Tensor
GENERATOR = torch.Generator().manual_seed(3)
X, Y, Z = (torch.randn(5, 7, generator=GENERATOR) for _ in range(3))
POLICIES = {"float32": Policy(), "18 bits": Policy(bits=18), "bfloat16": Policy(target="bfloat16")}


def bits(t: Tensor) -> Tensor:
    return t.contiguous().view({4: torch.int32, 2: torch.int16, 8: torch.int64}[t.element_size()])


def assert_same(a: Tensor, b: Tensor) -> None:
    assert a.dtype == b.dtype
    assert a.shape == b.shape
    assert torch.equal(bits(a), bits(b))


PAIRS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "add alpha": (lambda x: x.add(Y, alpha=0.3), lambda x: x.add_(Y, alpha=0.3)),
    "sub": (lambda x: x.sub(Y), lambda x: x.sub_(Y)),
    "mul": (lambda x: x.mul(0.3), lambda x: x.mul_(0.3)),
    "div": (lambda x: x.div(Y), lambda x: x.div_(Y)),
    "exp": (lambda x: x.exp(), lambda x: x.exp_()),
    "sqrt": (lambda x: x.abs().sqrt(), lambda x: x.abs_().sqrt_()),
    "lerp": (lambda x: x.lerp(Y, 0.1), lambda x: x.lerp_(Y, 0.1)),
    "addcmul": (lambda x: x.addcmul(Y, Z, value=0.1), lambda x: x.addcmul_(Y, Z, value=0.1)),
    "addcdiv": (lambda x: x.addcdiv(Y, Z, value=0.1), lambda x: x.addcdiv_(Y, Z, value=0.1)),
    "pow": (lambda x: x.abs().pow(2.5), lambda x: x.abs_().pow_(2.5)),
    "sigmoid": (lambda x: x.sigmoid(), lambda x: x.sigmoid_()),
    "addmm": (lambda x: x.addmm(Y, torch.ones(7, 7)), lambda x: x.addmm_(Y, torch.ones(7, 7))),
    "relu": (lambda x: x.relu(), lambda x: x.relu_()),
    "clamp": (lambda x: x.clamp(-0.3, 0.4), lambda x: x.clamp_(-0.3, 0.4)),
    "index_add": (
        lambda x: x.index_add(0, torch.tensor([1, 1, 3]), Y[:3]),
        lambda x: x.index_add_(0, torch.tensor([1, 1, 3]), Y[:3]),
    ),
    "out= mm": (lambda x: torch.mm(x, Y.t()), lambda x: torch.mm(x, Y.t(), out=torch.empty(0))),
    "out= sum": (lambda x: torch.sum(x, 1), lambda x: torch.sum(x, 1, out=torch.empty(5))),
    "out= tanh": (lambda x: torch.tanh(x), lambda x: torch.tanh(x, out=x)),
    "foreach add": (lambda x: x.add(Y, alpha=0.3), lambda x: torch._foreach_add([x, Z], [Y, Z], alpha=0.3)[0]),
    "foreach mul": (lambda x: x.mul(0.3), lambda x: torch._foreach_mul([Z, x], 0.3)[1]),
    "foreach mul list": (lambda x: x.mul(0.3), lambda x: torch._foreach_mul([Z, x], [0.1, 0.3])[1]),
    "foreach lerp": (lambda x: x.lerp(Y, 0.1), lambda x: torch._foreach_lerp([x], [Y], 0.1)[0]),
    "foreach sqrt": (lambda x: x.abs().sqrt(), lambda x: torch._foreach_sqrt([x.abs()])[0]),
    "foreach addcdiv": (lambda x: x.addcdiv(Y, Z, value=0.1), lambda x: torch._foreach_addcdiv([x], [Y], [Z], 0.1)[0]),
    "foreach addcmul list": (
        lambda x: x.addcmul(Y, Z, value=0.1),
        lambda x: torch._foreach_addcmul([x], [Y], [Z], [0.1])[0],
    ),
    "foreach norm": (lambda x: torch.linalg.vector_norm(x), lambda x: torch._foreach_norm([x])[0]),
    "foreach maximum": (lambda x: torch.maximum(x, Y), lambda x: torch._foreach_maximum([x], [Y])[0]),
}


@pytest.mark.parametrize("policy", list(POLICIES))
@pytest.mark.parametrize("name", list(PAIRS))
def test_forms_agree(name: str, policy: str) -> None:
    functional, other = PAIRS[name]
    session = Session(Plain(), POLICIES[policy], 0)
    with session.step(1):
        wanted = functional(X.clone())
        found = other(X.clone())
    assert_same(found, wanted)


@pytest.mark.parametrize("name", ["add alpha", "exp", "lerp", "addcmul", "index_add"])
def test_in_place_writes_through_a_view(name: str) -> None:
    functional, inplace = PAIRS[name]
    base = torch.zeros(7, 10)
    view = base[:, 1:6].t()  # neither contiguous nor at the start
    view.copy_(X)
    session = Session(Plain(), Policy(), 0)
    with session.step(1):
        wanted = functional(X.clone())
        returned = inplace(view)
    assert returned is view
    assert_same(base[:, 1:6].t(), wanted)
    assert not base[:, 0].any()
    assert not base[:, 6:].any()


OPTIMIZERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "sgd": (torch.optim.SGD, {"momentum": 0.9}),
    "adam": (torch.optim.Adam, {}),
    "amsgrad": (torch.optim.Adam, {"amsgrad": True}),
    "adamw": (torch.optim.AdamW, {}),
    "rmsprop": (torch.optim.RMSprop, {"momentum": 0.9}),
    "centered rmsprop": (torch.optim.RMSprop, {"centered": True}),
    "adamax": (torch.optim.Adamax, {}),
    "adadelta": (torch.optim.Adadelta, {}),
}


@pytest.mark.parametrize("name", list(OPTIMIZERS))
@pytest.mark.parametrize("policy", list(POLICIES))
def test_foreach_optimizers_give_the_bits_of_the_default_ones(name: str, policy: str) -> None:
    make, extra = OPTIMIZERS[name]
    results = []
    for foreach in (None, False, True):
        parameters = [torch.nn.Parameter(X.clone()), torch.nn.Parameter(Y.clone())]
        optimizer = make(parameters, lr=0.1, weight_decay=0.01, foreach=foreach, **extra)
        session = Session(Plain(), POLICIES[policy], 0)
        for step in (1, 2, 3):
            for p in parameters:
                p.grad = Z * step
            with session.step(step):
                optimizer.step()
        results.append([p.detach() for p in parameters])
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert_same(a, b)

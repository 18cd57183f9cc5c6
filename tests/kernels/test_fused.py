"""What the engine makes of the kernels of composites: the bits of the unfused sequences of operations."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).parent))
from naive import array, assert_same, numbers

from vtrain.engine.listener import Plain
from vtrain.engine.ops import normalization, pointwise, softmax
from vtrain.engine.session import Session
from vtrain.kernels import canonical
from vtrain.policy import Policy

Tensor = torch.Tensor


def by_pieces(f: Callable[..., Any]) -> Callable[..., Any]:
    """f with canonical sums and functions, for a composite that is not fused."""

    def wrapped(engine: Any, *args: Any, **kwargs: Any) -> Any:
        before, engine.canonical = engine.canonical, True
        try:
            return f(engine, *args, **kwargs)
        finally:
            engine.canonical = before

    return wrapped


PIECES = "settled_sum settle_function exp32 log32 mean_square moments product_sum".split()


@contextlib.contextmanager
def unfused(patch: pytest.MonkeyPatch) -> Iterator[Session]:
    """A session whose composites are sequences of operations, of which sums and functions are canonical kernels."""
    with patch.context() as p:
        for module in (softmax, normalization, pointwise):
            for name in PIECES:
                if hasattr(module, name):
                    p.setattr(module, name, by_pieces(getattr(module, name)))
        session = Session(Plain(), Policy(matmul="chain", other="logged"), 0)
        yield session


def batch_norm(x: Tensor) -> Tensor:
    mean, var = torch.zeros(x.shape[1]), torch.ones(x.shape[1])
    y = F.batch_norm(x, mean, var, numbers(x.shape[1], seed=51), numbers(x.shape[1], seed=52), True)
    return torch.cat([y.flatten(), mean, var])


COMPOSITES: dict[str, Callable[[Tensor], Tensor]] = {
    "softmax": lambda x: F.softmax(x, 1),
    "softmax of columns": lambda x: F.softmax(x, 0),
    "log_softmax": lambda x: F.log_softmax(x, 1),
    "layer_norm": lambda x: F.layer_norm(
        x, x.shape[2:], numbers(*x.shape[2:], seed=53), numbers(*x.shape[2:], seed=54)
    ),
    "layer_norm of two": lambda x: F.layer_norm(x, x.shape[1:]),
    "rms_norm": lambda x: F.rms_norm(x, x.shape[2:], numbers(*x.shape[2:], seed=55), 1e-6),
    "batch_norm": batch_norm,
    "gelu": F.gelu,
    "gelu tanh": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
    "softplus": lambda x: F.softplus(x, 0.7, 5.0),
}


@pytest.mark.parametrize("shape", [(3, 5, 33), (7, 33, 1), (2, 3, 100)], ids=str)
@pytest.mark.parametrize("name", COMPOSITES)
def test_fused_composites_are_the_unfused_sequence(
    name: str, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(session: Session) -> list[Tensor]:
        x = numbers(*shape, seed=56, spread=2).requires_grad_()
        with session.step(1):
            y = COMPOSITES[name](x)
            y.backward(numbers(*y.shape, seed=57))
        assert x.grad is not None
        return [y.detach(), x.grad]

    fused = run(Session(Plain(), Policy(matmul="chain"), 0))
    with unfused(monkeypatch) as session:
        sequence = run(session)
    for what, a, b in zip(("y", "gradient"), fused, sequence, strict=True):
        assert_same(a, array(b), what)


def test_the_unfused_session_reaches_no_fused_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that the comparison above is not one of a kernel with itself."""
    called: list[str] = []
    for name in "softmax layer_norm layer_norm_backward rms_norm rms_norm_backward channel_norm activation".split():
        monkeypatch.setattr(canonical, name, lambda *_, n=name: called.append(n))
    with unfused(monkeypatch) as session:
        for f in COMPOSITES.values():
            x = numbers(3, 5, 33, seed=58, spread=2).requires_grad_()
            with session.step(1):
                f(x).sum().backward()
    assert called == []

"""Tensor subclasses and higher-order operators: what they compute comes back to the engine, or is an error by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._mode_utils import no_dispatch

from auditor import replay
from trainer import record
from vtrain import Policy
from vtrain.engine import state
from vtrain.engine.listener import Plain
from vtrain.engine.session import Session
from vtrain.errors import BatchError, CheckpointError, StateError, UnsupportedOperation

Tensor = torch.Tensor
A, B = torch.arange(12.0).view(3, 4) / 7, torch.arange(20.0).view(4, 5) / 3


def unwrapped(value: Any) -> Any:
    return value.a @ value.b if isinstance(value, Closed) else value


class Closed(Tensor):
    """a @ b, without the product; does not say what it holds."""

    @staticmethod
    def __new__(cls, a: Tensor, b: Tensor) -> Any:
        return Tensor._make_wrapper_subclass(cls, (len(a), b.shape[1]), requires_grad=a.requires_grad)

    def __init__(self, a: Tensor, b: Tensor) -> None:
        self.a, self.b = a, b

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.detach.default:
            return cls(args[0].a.detach(), args[0].b.detach())
        return func(*map(unwrapped, args), **(kwargs or {}))


class LowRank(Closed):
    """The same, with its parts named."""

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["a", "b"], None

    @classmethod
    def __tensor_unflatten__(cls, inner: dict[str, Tensor], meta: None, size: Any, stride: Any) -> LowRank:
        return cls(inner["a"], inner["b"])


class Native(Tensor):
    """Runs its operations natively."""

    @staticmethod
    def __new__(cls, elem: Tensor) -> Any:
        return Tensor._make_subclass(cls, elem)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return super().__torch_dispatch__(func, types, args, kwargs or {})


class Undispatched(Native):
    """The same by another door."""

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with no_dispatch():
            return func(*args, **(kwargs or {}))


@pytest.fixture
def session() -> Session:
    return Session(Plain(), Policy(), 0)


def test_inner_operations_come_back(session: Session) -> None:
    with session.step(1):
        product = (LowRank(A, B) * 2.0).sum()
    names = [name.split()[0] for name in session.engine.sites]
    assert names == ["aten.mm.default", "aten.sum.default"]
    with session.step(1):
        assert torch.equal(product, ((A @ B) * 2.0).sum())


@pytest.mark.parametrize("kind", [Native, Undispatched])
def test_what_runs_natively_is_an_error(session: Session, kind: type) -> None:
    with session.step(1), pytest.raises(UnsupportedOperation, match=f"{kind.__qualname__}.__torch_dispatch__ computed"):
        kind(A) @ B


def test_moving_values_natively_is_none(session: Session) -> None:
    with session.step(1):
        assert torch.equal(torch.as_tensor(Native(A).view(-1)), A.view(-1))


class Net(torch.nn.Module):
    def __init__(self, kind: type = LowRank) -> None:
        super().__init__()
        self.register_buffer("weight", kind(A.clone(), B.clone()))
        self.layer = torch.nn.Linear(5, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x @ self.weight)


def sgd(model: torch.nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1)


def train(run: Any) -> None:
    for number in range(3):
        with run.step():
            run.model(torch.full((2, 3), number / 3)).sum().backward()
            run.optimizer.step()
            run.optimizer.zero_grad()
            run.model.weight.a.mul_(0.5)


def test_a_model_that_holds_one_is_recorded_and_replayed(tmp_path: Path) -> None:
    with record(tmp_path / "run", model=Net, optimizer=sgd) as run:
        train(run)
        assert {"weight:a", "weight:b"} <= set(state.collect(run.model, run.optimizer)["model"])
    with replay(tmp_path / "run", model=Net, optimizer=sgd) as run:
        train(run)
    assert run.verdict.verified


def test_its_parts_are_restored_and_watched() -> None:
    net = Net()
    files = state.as_bytes({f: {n: t.clone() for n, t in ts.items()} for f, ts in state.collect(net, None).items()})
    before = state.versions(net, None)
    net.weight.a.zero_()
    assert state.versions(net, None) != before
    state.restore(files, net, None)
    assert torch.equal(net.weight.a, A)


def test_what_does_not_say_what_it_holds_is_named() -> None:
    with pytest.raises(StateError, match=r"weight: a test_subclasses\.Closed"):
        state.collect(Net(Closed), None)


def test_states_of_optimizers_are_committed_to_and_not_restored() -> None:
    model = torch.nn.Linear(4, 3)
    optimizer = sgd(model)
    optimizer.state[model.weight]["momentum_buffer"] = LowRank(A, B)
    files = state.as_bytes(state.collect(model, optimizer))
    assert set(files["optimizer"]) == {"0.momentum_buffer:a", "0.momentum_buffer:b"}
    with pytest.raises(CheckpointError, match="wrapper subclass"):
        state.restore(files, model, optimizer)


def test_batches_that_hold_one_are_refused(tmp_path: Path) -> None:
    with record(tmp_path / "run", model=Net) as run, pytest.raises(BatchError, match="LowRank"):  # noqa: SIM117
        with run.step({"x": LowRank(A, B)}):
            pass


def conditional(x: Tensor) -> Tensor:
    return torch.cond(x.sum() > 0, torch.sin, torch.cos, (x,))


def loop(x: Tensor) -> Tensor:
    from torch._higher_order_ops.while_loop import while_loop

    return while_loop(lambda v: v.sum() < 100, lambda v: (v + 1,), (x,))[0]


def attention(x: Tensor) -> Tensor:
    from torch.nn.attention.flex_attention import flex_attention

    q = torch.ones(1, 1, 16, 16)
    return flex_attention(q, q, q, score_mod=lambda score, *_: score * 2)


@pytest.mark.filterwarnings("ignore:flex_attention called", "ignore:torch.compile has no effect")
@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("operator", [conditional, loop, attention])
def test_higher_order_operators_are_refused_by_name(
    session: Session, operator: Callable[[Tensor], Tensor], grad: bool
) -> None:
    x = A.clone().requires_grad_(grad)
    with session.step(1), pytest.raises(UnsupportedOperation) as caught:
        operator(x)
    assert "higher_order" in str(caught.value) and __file__ in str(caught.value)


def test_jagged_tensors_are_taken_apart(session: Session) -> None:
    rows = [A[:1], A[1:]]
    with session.step(1):
        jagged = torch.nested.nested_tensor(rows, layout=torch.jagged)
        found = torch.nn.functional.linear(jagged, A).exp().values()
    names = [name.split()[0] for name in session.engine.sites]
    with session.step(1):
        assert torch.equal(found, torch.nn.functional.linear(A, A).exp())
    assert names == ["aten.mm.default", "aten.exp.default"]

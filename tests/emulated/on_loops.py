"""Loops on the device: recorded there and replayed on the CPU, and the other way round."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.append(str(Path(__file__).parent))
import emulated
from emulated import BACKEND

import vtrain
from auditor import replay
from trainer import record

DEVICES = ["cpu", "emulated"]
PAIRS = [("emulated", "cpu"), ("cpu", "emulated")]
STEPS = 3


@pytest.fixture(autouse=True)
def clean() -> Any:
    """No test writes beyond its memory; what one asked of the backend is over."""
    yield
    BACKEND.most, BACKEND.damage = 0, None
    assert torch.ops.emulated.violations() == 0


def data(step: int, *shape: int) -> torch.Tensor:
    n = int(torch.tensor(shape).prod())
    return ((torch.arange(n) * 7919 + step * 101) % 257 - 128).view(shape) / 64.0


def perceptron(device: str) -> torch.nn.Module:
    with vtrain.seeded(0):
        net = torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.GELU(), torch.nn.Linear(32, 1))
    return net.to(device)


def adamw(m: torch.nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(m.parameters(), lr=0.01)


def train(run: Any, device: str) -> None:
    for step in range(STEPS):
        x, y = data(step, 16, 8), data(step + 50, 16, 1)
        with run.step((x, y)):
            loss = (run.model(x.to(device)) - y.to(device)).square().mean()
            loss.backward()
            run.optimizer.step()
            run.optimizer.zero_grad()
            run.metric(loss=loss)


def words(model: torch.nn.Module) -> list[list[int]]:
    return [p.detach().cpu().contiguous().view(-1).view(torch.int32).tolist() for p in model.parameters()]


@pytest.mark.parametrize("most", [0, 1 << 20], ids=["host", "ptx"])
@pytest.mark.parametrize("policy", [{"matmul": "chain"}, {"matmul": "logged"}], ids=lambda p: p["matmul"])
@pytest.mark.parametrize(("there", "here"), PAIRS)
def test_a_perceptron(there: str, here: str, policy: dict[str, Any], most: int, tmp_path: Path) -> None:
    BACKEND.most, BACKEND.launched = most, set()
    with record(tmp_path / "run", model=perceptron(there), optimizer=adamw, policy=vtrain.Policy(**policy)) as run:
        train(run, there)
        recorded = words(run.model)
    with replay(tmp_path / "run", model=perceptron(here), optimizer=adamw) as run:
        train(run, here)
    assert run.verdict.verified, run.verdict
    assert words(run.model) == recorded
    assert {how for _, how in BACKEND.launched} == {"ptx" if most else "host"}


def test_the_device_s_own_arithmetic_is_another() -> None:
    """Or equal bits would say nothing about the log."""
    a, b = data(0, 40, 300) / 3, data(1, 300, 40) / 7
    assert not torch.equal((a @ b), (a.to(emulated.NAME) @ b.to(emulated.NAME)).cpu())
    x = data(2, 1000).double()
    assert not torch.equal(x.exp(), x.to(emulated.NAME).exp().cpu())
    assert not torch.equal(x.float() / 3.0, (x.float().to(emulated.NAME) / 3.0).cpu())


# ---- optimizers, layers, states --------------------------------------------------------------------------------------
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
    "sgd, fused": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, fused=True),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01, amsgrad=True),
    "adam, foreach": lambda p: torch.optim.Adam(p, lr=0.01, foreach=True),
    "adamw, fused": lambda p: torch.optim.AdamW(p, lr=0.01, fused=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.5, centered=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.01),
}


@pytest.mark.parametrize("name", list(OPTIMIZERS))
@pytest.mark.parametrize(("there", "here"), PAIRS)
def test_optimizers(name: str, there: str, here: str, tmp_path: Path) -> None:
    def optimizer(m: torch.nn.Module) -> torch.optim.Optimizer:
        return OPTIMIZERS[name](m.parameters())

    with record(tmp_path / "run", model=perceptron(there), optimizer=optimizer) as run:
        train(run, there)
    with replay(tmp_path / "run", model=perceptron(here), optimizer=optimizer) as run:
        train(run, here)
    assert run.verdict.verified, run.verdict


class Recurrent(torch.nn.Module):
    """A recurrent layer on padded or packed sequences, a norm, and dropout in place."""

    def __init__(self, kind: type[torch.nn.Module], packed: bool, words: dict[str, Any]) -> None:
        super().__init__()
        self.net, self.packed = kind(6, 8, batch_first=True, **words), packed
        size = words.get("proj_size") or 8 * (1 + words.get("bidirectional", False))
        self.norm, self.drop = torch.nn.RMSNorm(size), torch.nn.Dropout(0.3, inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.packed:
            x = torch.nn.utils.rnn.pack_padded_sequence(x, torch.tensor([5, 3, 2]), batch_first=True)
        y = self.net(x)[0]
        return self.drop(self.norm(y.data if self.packed else y) + 0.5)


LAYERS: dict[str, tuple[type[torch.nn.Module], dict[str, Any]]] = {
    "lstm": (torch.nn.LSTM, {"num_layers": 2, "dropout": 0.3, "bidirectional": True}),
    "lstm, projected": (torch.nn.LSTM, {"proj_size": 4}),
    "gru": (torch.nn.GRU, {"num_layers": 2, "dropout": 0.5, "bidirectional": True, "bias": False}),
    "rnn": (torch.nn.RNN, {"nonlinearity": "relu", "bidirectional": True}),
}


@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("name", list(LAYERS))
@pytest.mark.parametrize(("there", "here"), PAIRS)
def test_layers_that_torch_composes_by_device(name: str, packed: bool, there: str, here: str, tmp_path: Path) -> None:
    kind, words = LAYERS[name]

    def model(device: str) -> torch.nn.Module:
        with vtrain.seeded(0):
            made = Recurrent(kind, packed, words)
        return made.to(device)

    def steps(run: Any, device: str) -> None:
        for step in range(2):
            x = data(step, 3, 5, 6)
            with run.step(x):
                loss = run.model(x.to(device)).square().mean()
                loss.backward()
                run.optimizer.step()
                run.optimizer.zero_grad()
                run.metric(loss=loss)

    with record(tmp_path / "run", model=model(there), optimizer=adamw) as run:
        steps(run, there)
    with replay(tmp_path / "run", model=model(here), optimizer=adamw) as run:
        steps(run, here)
    assert run.verdict.verified, run.verdict


def test_outside_steps_torch_composes_as_ever() -> None:
    x = torch.ones(64, device=emulated.NAME, requires_grad=True)
    y = torch.nn.functional.dropout(x, 0.5)
    assert "NativeDropout" in y.grad_fn.name()
    layer = torch.nn.GRU(6, 8).to(emulated.NAME)
    with pytest.raises(NotImplementedError, match="fused_gru_cell"):  # of which this device has no kernel
        layer(torch.ones(3, 2, 6, device=emulated.NAME))


@pytest.mark.parametrize(("first", "then"), [("emulated", "cpu"), ("cpu", "emulated"), ("emulated", "emulated")])
def test_a_loop_goes_on_elsewhere(first: str, then: str, tmp_path: Path) -> None:
    """Resumed from a checkpoint on another device; state put back after a failure lies where it lay."""
    policy = vtrain.Policy(matmul="chain")
    for place in ("whole", "run"):
        with record(
            tmp_path / place, model=perceptron(first), optimizer=adamw, policy=policy, checkpoint_every=1
        ) as run:
            train(run, first)
            if place == "whole":
                train(run, first)
                wanted = words(run.model)
    again = {"policy": policy, "checkpoint_every": 1, "resume": True}
    with record(tmp_path / "run", model=perceptron(then), optimizer=adamw, **again) as run:
        train(run, then)
        assert words(run.model) == wanted
        with pytest.raises(ZeroDivisionError), run.step((data(9, 16, 8),)):
            run.model[0].weight.data.mul_(2)
            raise ZeroDivisionError
        run.rollback()
        assert words(run.model) == wanted and run.model[0].weight.device.type == then
    assert run.steps_done == 2 * STEPS


def test_a_change_between_steps_is_seen(tmp_path: Path) -> None:
    with (
        pytest.raises(vtrain.errors.StateError, match=r"0\.weight"),
        record(tmp_path / "run", model=perceptron("emulated"), optimizer=adamw) as run,
    ):
        train(run, "emulated")
        run.model[0].weight.data[0, 0] += 1
        train(run, "emulated")

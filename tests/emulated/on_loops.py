"""Loops on the device: recorded there and replayed on the CPU, and the other way round."""

from __future__ import annotations

import sys
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

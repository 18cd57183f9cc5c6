"""The device target on a device: run wherever there is one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from test_device import GROUPS, elsewhere, same_bits

import vtrain
from auditor import replay
from trainer import record
from vtrain.kernels import launch

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


@pytest.mark.parametrize("group", list(GROUPS))
def test_a_gpu_has_the_bits_of_the_host(group: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    host = GROUPS[group]()
    monkeypatch.setattr(launch, "launch", elsewhere("cuda"))
    torch.manual_seed(0)
    assert all(same_bits(a, b) for a, b in zip(host, GROUPS[group](), strict=True))


@pytest.mark.parametrize("matmul", ["chain", "integer", "logged"])
def test_trained_on_a_gpu_audited_on_the_cpu(matmul: str, tmp_path: Path) -> None:
    x, y = torch.randn(16, 8), torch.randn(16, 1)

    def model(device: str) -> torch.nn.Module:
        with vtrain.seeded(0):
            net = torch.nn.Sequential(
                torch.nn.Linear(8, 32), torch.nn.GELU(), torch.nn.LayerNorm(32), torch.nn.Linear(32, 1)
            )
        return net.to(device)

    def optimizer(m: torch.nn.Module) -> torch.optim.Optimizer:
        return torch.optim.AdamW(m.parameters(), lr=0.01)

    def train(run: object, device: str) -> None:
        for _ in range(3):
            with run.step((x, y)):  # type: ignore[attr-defined]
                (run.model(x.to(device)) - y.to(device)).square().mean().backward()  # type: ignore[attr-defined]
                run.optimizer.step()  # type: ignore[attr-defined]
                run.optimizer.zero_grad()  # type: ignore[attr-defined]

    policy = vtrain.Policy(matmul=matmul)  # type: ignore[arg-type]
    with record(tmp_path / "run", model=model("cuda"), optimizer=optimizer, policy=policy) as run:
        train(run, "cuda")
    with replay(tmp_path / "run", model=model("cpu"), optimizer=optimizer) as run:
        train(run, "cpu")
    assert run.verdict.verified, run.verdict

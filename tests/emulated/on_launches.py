"""What a step asks of the device: kernels launched, and how often the host waits for it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.append(str(Path(__file__).parent))
from emulated import NAME

import vtrain
from vtrain.engine.listener import Plain
from vtrain.engine.session import Session
from vtrain.kernels import launch
from vtrain.programs import language

TOKENS = torch.arange(4 * 16).view(4, 16) * 7 % 50


def counts(policy: vtrain.Policy, where: str, steps: int) -> list[tuple[int, dict[str, int], int]]:
    """(operations, launches by device, waits of the host) of each step of a small GPT, without dropout."""
    with vtrain.seeded(0):
        model = language.gpt2(layers=2, width=32, heads=2, block=16).model
    model.to(where).eval()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    session, found, tokens = Session(Plain(), policy, 0), [], TOKENS.to(where)

    def step(number: int) -> None:
        with session.step(number):
            model(input_ids=tokens, labels=tokens).loss.backward()
            optimizer.step()
            optimizer.zero_grad()

    for number in range(1, steps + 1):
        before, waited = session.operations, torch.ops.emulated.crossings()[0]
        with launch.counted() as launches:
            step(number)
        found.append((session.operations - before, dict(launches), torch.ops.emulated.crossings()[0] - waited))
    return found


@pytest.mark.parametrize("where", ["cpu", NAME])
def test_a_step_has_the_same_counts_each_time(where: str) -> None:
    policy = vtrain.Policy(matmul="chain")
    second, third = counts(policy, where, 3)[1:]  # in the first one the device is checked, and Adam's state made
    assert second == third and counts(policy, where, 3)[1:] == [second, third]
    operations, launches, _ = second
    assert list(launches) == [str(torch.empty(0, device=where).device)]
    assert 50 < sum(launches.values()) < 0.25 * operations


def test_how_often_the_host_waits() -> None:
    """In a canonical step: almost only for an embedding's gradient, whose shapes depend on data."""
    found: Any = counts(vtrain.Policy(matmul="chain"), NAME, 2)[1]
    assert found[2] <= MOST_WAITS


MOST_WAITS = 7  # three for each of two embeddings, one of the model's own


def test_nobody_counts_unasked() -> None:
    with launch.counted() as found:
        pass
    with Session(Plain(), vtrain.Policy(), 0).step(1):
        torch.ones(3).exp()
    assert not found

"""What a replay says where it differs from the start, or in a number that the host computed."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from auditor import replay
from trainer import record


def linear() -> nn.Module:
    return nn.Linear(4, 2)


def deeper() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 2), nn.Linear(2, 2))


def broader() -> nn.Module:
    return nn.Linear(5, 2)


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1)


def loop(run: Any, steps: int = 2) -> None:
    x = torch.ones(3, next(run.model.parameters()).shape[1])  # uses what the run gives before its first step
    for _ in range(steps):
        with run.step(x):
            loss = run.model(x).square().mean()
            loss.backward()
            run.optimizer.step()
            run.optimizer.zero_grad()
            run.metric(loss=loss)


@pytest.mark.parametrize("other", [deeper, broader, linear()], ids=["deeper", "broader", "a finished module"])
def test_another_initialisation_is_refuted_at_step_0(tmp_path: Path, other: Any) -> None:
    with record(tmp_path / "run", model=linear, optimizer=sgd, checkpoint_every=2) as run:
        loop(run)
    with replay(tmp_path / "run", model=other, optimizer=sgd) as replayed:
        loop(replayed)
        time.sleep(60)  # not reached: the body ends in its first step
    assert (replayed.verdict.result, replayed.verdict.first_bad_step) == ("refuted", 0), replayed.verdict.detail
    assert replayed.verdict.replayed == []


FORMS: dict[str, Callable[[torch.Tensor, float], torch.Tensor]] = {
    "product": lambda x, c: x * c,
    "product in place": lambda x, c: x.clone().mul_(c),
    "quotient": lambda x, c: c / x,
    "sum": lambda x, c: x + c,
    "weighted sum": lambda x, c: x.add(x, alpha=c),
    "list of products": lambda x, c: torch._foreach_mul([x], c)[0],
}


@pytest.mark.parametrize("form", FORMS)
def test_host_scalars_are_recorded_in_every_form(tmp_path: Path, form: str) -> None:
    def step(run: Any, c: float) -> None:
        x = torch.ones(3)
        with run.step():
            FORMS[form](x, c)  # neither a metric nor a state: only the scalar itself can tell

    with record(tmp_path / "run", model=linear) as run:
        step(run, 0.1)
    for ulps, verdict in ((0, ("verified", "")), (4, ("verified", "")), (5, ("refuted", "scalars"))):
        with replay(tmp_path / "run", model=linear) as replayed:
            step(replayed, 0.1 + ulps * 2.0**-56)  # an ulp of 0.1 is 2^-56
        assert (replayed.verdict.result, replayed.verdict.what) == verdict, replayed.verdict.detail

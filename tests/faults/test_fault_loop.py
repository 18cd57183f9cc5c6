"""Resuming a run that was recorded around somebody's own loop."""

from __future__ import annotations

import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from fault_helpers import child, same
from run_helpers import KEY, evidence_bytes, finding

from auditor import replay
from auditor.evidence import open_run
from trainer import record
from vtrain.errors import JobError, UsageError
from vtrain.policy import Policy

STEPS = 7
ADAPTIVE = Policy(target="bfloat16", calibration_steps=3)


def net() -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.GELU(), torch.nn.Dropout(0.2), torch.nn.Linear(8, 1))


def optimizer(model: torch.nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=0.1)


class Average:
    """Something with a state of its own, such as a scheduler."""

    def __init__(self) -> None:
        self.value, self.steps = 0.0, 0

    def state_dict(self) -> dict[str, Any]:
        return {"value": self.value, "steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.value, self.steps = state["value"], state["steps"]


def body(run: Any, average: Average, at: Callable[[int], object]) -> None:
    """The loop of trainer and auditor; its rate depends on a running average that must survive an interruption."""
    for step in range(run.steps_done + 1, STEPS + 1):
        x = torch.randn(5, 6, generator=torch.Generator().manual_seed(step))
        for group in run.optimizer.param_groups:
            group["lr"] = 0.1 / (1 + average.steps)
        with run.step({"x": x}):
            loss = run.model(x).square().mean()
            loss.backward()
            run.optimizer.step()
            run.optimizer.zero_grad()
            run.metric(loss=loss)
            average.value, average.steps = 0.9 * average.value + 0.1 * float(loss.detach()), average.steps + 1
        at(step)


def train(path: Path, policy: Policy, at: Callable[[int], object] = lambda step: None, resume: bool = False) -> None:
    average = Average()
    with record(path, model=net, optimizer=optimizer, policy=policy, seed=5, checkpoint_every=2, key=KEY,
                resume=resume, extra={"average": average}) as run:  # fmt: skip
        body(run, average, at)


def stop_at(number: int) -> Callable[[int], None]:
    def at(step: int) -> None:
        if step == number:
            raise KeyboardInterrupt

    return at


POLICIES = {"float32": Policy(), "adaptive": ADAPTIVE}


@pytest.fixture(scope="module", params=POLICIES)
def policy(request: pytest.FixtureRequest) -> Policy:
    return POLICIES[request.param]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, policy: Policy) -> Path:
    """The run that was not interrupted."""
    path = tmp_path_factory.mktemp("whole") / "run"
    train(path, policy)
    return path


@pytest.mark.parametrize("step", range(1, STEPS + 1))
def test_interrupted_and_resumed(tmp_path: Path, whole: Path, policy: Policy, step: int) -> None:
    path = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        train(path, policy, stop_at(step))
    # whether the rate is set before a step or after it is not to be told, so that the checkpoint of an even step waits
    assert open_run(path).last_step == (step - 1) // 2 * 2
    train(path, policy, resume=True)
    same(path, whole)


def test_killed_and_resumed(tmp_path: Path, whole: Path, policy: Policy) -> None:
    import os

    path = tmp_path / "run"
    for kill_at in (1, 3, 6):
        resume = (path / "job.json").exists()
        kill = lambda step, kill_at=kill_at: os.kill(os.getpid(), signal.SIGKILL) if step == kill_at else None  # noqa: E731
        assert child(partial(train, path, policy, kill, resume)) == 9
    assert child(partial(train, path, policy, resume=True)) == 0
    same(path, whole)


def test_resumed_run_is_audited(tmp_path: Path, policy: Policy) -> None:
    path = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        train(path, policy, stop_at(3))
    train(path, policy, resume=True)
    with replay(path, model=net, optimizer=optimizer) as run:
        body(run, Average(), lambda step: None)
    assert finding(run.verdict) == (None, "") and run.verdict.steps == STEPS


def test_exception_in_the_body_keeps_the_run(tmp_path: Path, whole: Path, policy: Policy) -> None:
    """Of any kind: within a step too, whose log is given up."""
    path = tmp_path / "run"
    average = Average()
    with (
        pytest.raises(ZeroDivisionError),
        record(path, model=net, optimizer=optimizer, policy=policy, seed=5, checkpoint_every=2, key=KEY,
               extra={"average": average}) as run,
    ):  # fmt: skip
        for step in range(1, 4):
            x = torch.randn(5, 6, generator=torch.Generator().manual_seed(step))
            with run.step({"x": x}):
                run.model(x).sum().backward()
                1 / (3 - step)
                run.optimizer.zero_grad()
    assert open_run(path).last_step == 2 and not (path / "attestation.json").exists()


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"seed": 6}, "seed"),
        ({"checkpoint_every": 3}, "checkpoint_every"),
        ({"policy": Policy(bits=20)}, "policy.bits"),
    ],
)
def test_resumed_as_something_else(tmp_path: Path, change: dict[str, Any], text: str) -> None:
    path = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        train(path, Policy(), stop_at(3))
    before = evidence_bytes(path)
    arguments = {"policy": Policy(), "seed": 5, "checkpoint_every": 2, **change}
    with (
        pytest.raises(JobError, match=f"begun as another job: {text} differ"),
        record(path, model=net, optimizer=optimizer, key=KEY, resume=True, **arguments),
    ):
        pytest.fail("resumed")
    assert evidence_bytes(path) == before


def test_resume_of_no_run(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no run to resume"), record(tmp_path / "x", model=net, key=KEY, resume=True):
        pytest.fail("resumed")
    assert list(tmp_path.iterdir()) == []

"""Tensors that a program carries from step to step in variables of its own are found, and said."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from loop_cases import batch, net, sgd, two_nets

from trainer import record
from vtrain.errors import StateError


def second_optimizer(run: Any, steps: int) -> None:
    second = torch.optim.Adam(run.model["d"].parameters())
    for step in range(run.steps_done + 1, steps + 1):
        with run.step(batch(step)):
            run.model["d"](run.model["g"](batch(step))).square().mean().backward()
            for optimizer in (run.optimizer, second):
                optimizer.step()
                optimizer.zero_grad()


def average_in_place(run: Any, steps: int) -> None:
    average = [p.detach().clone() for p in run.model.parameters()]
    for step in range(run.steps_done + 1, steps + 1):
        with run.step(batch(step)):
            pull = sum((p - a).square().sum() for p, a in zip(run.model.parameters(), average, strict=True))
            (run.model(batch(step)).square().mean() + pull).backward()
            run.optimizer.step()
            run.optimizer.zero_grad()
            with torch.no_grad():
                for a, p in zip(average, run.model.parameters(), strict=True):
                    a.mul_(0.5).add_(p, alpha=0.5)


def made_anew(run: Any, steps: int) -> None:
    hidden = torch.zeros(4, 8)
    for step in range(run.steps_done + 1, steps + 1):
        with run.step(batch(step)):
            hidden = torch.tanh(run.model[0](batch(step)) + 0.5 * hidden.detach())
            run.model[2](hidden).square().mean().backward()
            run.optimizer.step()
            run.optimizer.zero_grad()


def every_other_step(run: Any, steps: int) -> None:
    """Samples are made in one step, and trained on in it and in the next one."""
    held = torch.zeros(0)
    for step in range(run.steps_done + 1, steps + 1):
        with run.step(batch(step)):
            if step % 2:
                held = run.model[0](batch(step)).detach().tanh()
            run.model[2](held).square().mean().backward()
            run.optimizer.step()
            run.optimizer.zero_grad()


CARRIED = {
    "second optimizer": (second_optimizer, two_nets, lambda m: torch.optim.SGD(m["g"].parameters(), lr=0.1), 3),
    "average": (average_in_place, net, sgd, 3),
    "hidden state": (made_anew, net, sgd, 3),
    "every other step": (every_other_step, net, sgd, 4),
}


@pytest.mark.parametrize("kind", list(CARRIED))
def test_it_is_said_at_the_step_and_not_resumed(tmp_path: Path, kind: str) -> None:
    body, model, optimizer, seen = CARRIED[kind]
    settings: dict[str, Any] = {"model": model, "optimizer": optimizer, "checkpoint_every": 2}
    with (
        pytest.warns(UserWarning, match=rf"step {seen} depends on a tensor .*test_carried.py:\d+.* extra="),
        record(tmp_path / "run", **settings) as run,
    ):
        body(run, 6)
    with pytest.raises(StateError, match="can't be resumed"), record(tmp_path / "run", resume=True, **settings):
        pass


# ---- what is not carried, or does not matter ------------------------------------------------------------------------
def logged(run: Any, steps: int) -> None:
    total, average = torch.zeros(()), [p.detach().clone() for p in run.model.parameters()]
    mask = None
    for step in range(run.steps_done + 1, steps + 1):
        with run.step(batch(step)):
            if mask is None:
                mask = torch.ones(8).cumsum(0) > 2  # a cache
            loss = (run.model[2](torch.tanh(run.model[0](batch(step))) * mask)).square().mean()
            loss.backward()
            run.optimizer.step()
            run.optimizer.zero_grad()
            total += loss.detach()
            with torch.no_grad():  # for later, and of no weight in training
                average = [0.9 * a + 0.1 * p for a, p in zip(average, run.model.parameters(), strict=True)]


def kept(run: Any, steps: int) -> None:
    for step in range(run.steps_done + 1, steps + 1):
        with run.step(batch(step)):
            run.model(batch(step)).square().mean().backward()
            run.optimizer.step()
            run.optimizer.zero_grad()
            run.extra["average"].update_parameters(run.model)


@pytest.mark.parametrize("body", [logged, kept])
def test_no_false_word(tmp_path: Path, body: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        extra = lambda m, o: {"average": torch.optim.swa_utils.AveragedModel(m)}  # noqa: E731
        with record(tmp_path / "run", model=net, optimizer=sgd, extra=extra) as run:
            body(run, 12)


def test_what_is_watched_may_outlive_the_interpreter(tmp_path: Path) -> None:
    """A script's run is freed at the very end, after torch's own names."""
    code = (
        "import json, sys\nimport vtrain\nfrom loop_cases import each, net, sgd\n"
        "with vtrain.record(sys.argv[1], model=net, optimizer=sgd) as run:\n    each(run, lambda step: None)\n"
        "json.kept = run\n"
    )
    paths = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-c", code, str(tmp_path / "run")]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")

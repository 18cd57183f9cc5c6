"""A run killed at any moment and resumed is bit for bit the run that was never killed (protocol §3).

The children are forked from this process, which has torch warm; they train on one thread, so that no pool of threads is
lost in the fork.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from run_helpers import HERE, KEY, audited, evidence_bytes, finding, job, make, silent

from trainer import record
from trainer.train import resume, train
from vtrain.job import Job
from vtrain.policy import Policy
from vtrain.store.checkpoint import list_checkpoints
from vtrain.store.layout import Layout

LONG: dict[str, Any] = {"train": {"steps": 24, "checkpoint_every": 3}}
POLICIES = {"certified": {}, "adaptive": {"target": "bfloat16"}}


def in_a_child(work: Callable[[], None], seconds: float | None) -> bool:
    """Run in a forked child, killed with SIGKILL after so many seconds; whether it finished by itself."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            torch.set_num_threads(1)
            work()
            status = 0
        finally:
            os._exit(status)
    deadline = None if seconds is None else time.monotonic() + seconds
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            assert os.waitstatus_to_exitcode(status) == 0, "the child failed by itself"
            return True
        if deadline is not None and time.monotonic() >= deadline:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return False
        time.sleep(0.001)


def begin_or_go_on(made: Job, out: Path) -> None:
    """What a supervisor does after a kill: go on, or begin anew where nothing was acknowledged."""
    if (out / "job.json").exists():
        resume(out, HERE, KEY, silent)
        return
    if out.exists():
        import shutil

        shutil.rmtree(out)
    train(made, HERE, out, KEY, silent)


def killed_often(made: Job, out: Path, kills: int, seed: int, length: float) -> int:
    """Train ``out`` with so many kills at random moments of a span ``length`` (seconds); how many hit."""
    draw, hit = random.Random(seed), 0
    for _ in range(kills):
        if in_a_child(lambda: begin_or_go_on(made, out), draw.uniform(0.0, length)):
            break
        hit += 1
    in_a_child(lambda: begin_or_go_on(made, out), None)
    return hit


def measured(made: Job, out: Path) -> float:
    """Train without a kill; seconds."""
    start = time.monotonic()
    assert in_a_child(lambda: train(made, HERE, out, KEY, silent), None)
    return time.monotonic() - start


@pytest.mark.timeout(300)
@pytest.mark.parametrize("policy", list(POLICIES))
def test_killed_and_resumed(policy: str, tmp_path: Path) -> None:
    made = job(**LONG, policy=POLICIES[policy])
    seconds = measured(made, tmp_path / "whole")
    hit = killed_often(made, tmp_path / "killed", kills=8, seed=1, length=0.6 * seconds)
    assert hit >= 2
    assert evidence_bytes(tmp_path / "killed") == evidence_bytes(tmp_path / "whole")
    assert finding(audited(tmp_path / "killed")) == (None, "")


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seed", range(5))
def test_killed_a_hundred_times(seed: int, tmp_path: Path) -> None:
    made = job(**LONG)
    seconds = measured(made, tmp_path / "whole")
    hits, runs = 0, 0
    while hits < 20:
        out = tmp_path / f"killed{runs}"
        hits += killed_often(made, out, kills=10, seed=100 * seed + runs, length=0.5 * seconds)
        runs += 1
        assert evidence_bytes(out) == evidence_bytes(tmp_path / "whole")


@pytest.mark.timeout(120)
@pytest.mark.parametrize("at", [0, 1, 2, 3, 5])
def test_interrupted_calibration_goes_on_as_if_it_had_not_been(at: int, tmp_path: Path) -> None:
    """Adaptive thresholds come from the first steps; what was seen before the kill is in the leaves."""
    made = job(train={"steps": 6, "checkpoint_every": 1}, policy={"target": "bfloat16", "calibration_steps": 3})
    make(tmp_path / "whole", made)

    def stop(done: Any) -> None:
        if done.step == at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(made, HERE, tmp_path / "stopped", KEY, stop)
    resume(tmp_path / "stopped", HERE, KEY, silent)
    assert evidence_bytes(tmp_path / "stopped") == evidence_bytes(tmp_path / "whole")


def test_resuming_a_finished_run_changes_nothing(run: Path) -> None:
    before = evidence_bytes(run)
    resume(run, HERE, KEY, silent)
    assert evidence_bytes(run) == before


# ---- somebody's own loop --------------------------------------------------------------------------------------------
def own_loop(path: Path, *, until: int | None = None, again: bool = False) -> None:
    """Nine steps of a loop with a scheduler, stopped by an exception in the middle of step ``until``."""

    def model() -> torch.nn.Module:
        return torch.nn.Sequential(
            torch.nn.Linear(6, 12), torch.nn.Tanh(), torch.nn.Dropout(0.2), torch.nn.Linear(12, 3)
        )

    def optimizer(m: torch.nn.Module) -> torch.optim.Optimizer:
        return torch.optim.Adam(m.parameters(), lr=0.01)

    schedulers: dict[str, Any] = {}

    class Late:
        """The scheduler, which can only be made for the run's optimizer."""

        def state_dict(self) -> Any:
            return schedulers["cosine"].state_dict() if schedulers else {}

        def load_state_dict(self, value: Any) -> None:
            schedulers["stored"] = value

    with record(
        path, model=model, optimizer=optimizer, checkpoint_every=2, key=KEY, resume=again, policy=Policy(),
        extra={"scheduler": Late()},
    ) as run:  # fmt: skip
        stored = schedulers.pop("stored", None)
        schedulers["cosine"] = torch.optim.lr_scheduler.CosineAnnealingLR(run.optimizer, 9)
        if stored:
            schedulers["cosine"].load_state_dict(stored)
        for step in range(run.steps_done + 1, 10):
            x = torch.arange(24.0).view(4, 6) / (step + 1)
            with run.step({"x": x}):
                loss = run.model(x).square().mean()
                loss.backward()
                if step == until:
                    raise RuntimeError("stopped")
                run.optimizer.step()
                run.optimizer.zero_grad()
                schedulers["cosine"].step()
                run.metric(loss=loss)


@pytest.mark.parametrize("until", [1, 4, 5, 9])
def test_own_loop_resumed(until: int, tmp_path: Path) -> None:
    own_loop(tmp_path / "whole")
    with pytest.raises(RuntimeError, match="stopped"):
        own_loop(tmp_path / "stopped", until=until)
    assert list_checkpoints(Layout(tmp_path / "stopped"))[-1] == 2 * ((until - 1) // 2)
    own_loop(tmp_path / "stopped", again=True)
    assert evidence_bytes(tmp_path / "stopped") == evidence_bytes(tmp_path / "whole")

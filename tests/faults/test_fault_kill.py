"""``kill -9`` at any moment, then resuming: bit for bit the run that was never killed (protocol §3)."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from fault_helpers import child, same, train_or_resume
from run_helpers import HERE, KEY, POLICIES, audited, copied, evidence_bytes, finding, honest, job, make, silent

from auditor.evidence import open_run
from trainer.train import resume, train
from vtrain.commit import keys
from vtrain.errors import RunExistsError, UsageError
from vtrain.job import Job


@pytest.fixture(scope="module")
def long_job() -> Job:
    """Many small steps with checkpoints between: most of the time is spent in writing."""
    return job(train={"steps": 12, "checkpoint_every": 2}, policy=POLICIES["adaptive16"])


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory, long_job: Job) -> Path:
    """The run of a process that nobody killed."""
    run = tmp_path_factory.mktemp("reference") / "run"
    assert child(partial(make, run, long_job)) == 0
    return run


def progress(run: Path) -> int:
    """The last step that the run has acknowledged; -1 for none."""
    return open_run(run).last_step if (run / "transcript.jsonl").exists() and leaves(run) else -1


def leaves(run: Path) -> int:
    return (run / "transcript.jsonl").read_bytes().count(b'"type":"head"')


def kill_and_resume(run: Path, made: Job, reference: Path, kills: int, seed: int) -> None:
    """Kill that many times at random moments, and resume; whenever a run gets to its end, compare it and begin anew."""
    draw = random.Random(seed)
    started = time.perf_counter()
    assert child(partial(make, run, made)) == 0
    whole = time.perf_counter() - started
    for _ in range(10 * kills):
        if (run / "attestation.json").exists():
            same(run, reference)
            shutil.rmtree(run)
            if not kills:
                return
        # Short spans too, so that a kill hits the opening of a run as well as its middle.
        span = draw.uniform(0.0, draw.choice([0.1, 0.4, 0.9])) * whole
        kills -= child(partial(train_or_resume, run, made), span if kills else None) == 9
    pytest.fail(f"{kills} kills are left: the children end before they are killed")


def test_random_kills(tmp_path: Path, long_job: Job, reference: Path) -> None:
    kill_and_resume(tmp_path / "run", long_job, reference, 10, 1)


@pytest.mark.slow
def test_two_hundred_kills(tmp_path: Path, long_job: Job, reference: Path) -> None:
    kill_and_resume(tmp_path / "run", long_job, reference, 200, 2)


class Countdown:
    """SIGKILL of this very process at the n-th call of something."""

    def __init__(self, at: int) -> None:
        self.left = at

    def wrap(self, function: Callable[..., Any], before: bool) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            self.left -= 1
            if self.left == 0 and before:
                os.kill(os.getpid(), signal.SIGKILL)
            result = function(*args, **kwargs)
            if self.left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return wrapped


def killed_at(run: Path, name: str, at: int, before: bool, made: Job) -> int:
    """Train in a child that is killed at the n-th call of a function of ``os``."""

    def work() -> None:
        setattr(os, name, Countdown(at).wrap(getattr(os, name), before))
        train_or_resume(run, made)

    return child(work)


# fsync and rename are where an order of writes could be wrong: a kill at each of their first calls, and at later ones.
@pytest.mark.parametrize(
    ("before", "calls"), [(True, (1, 3, 8, 17, 30)), (False, (2, 5, 12, 23))], ids=["before", "after"]
)
@pytest.mark.parametrize("name", ["fsync", "rename", "replace"])
def test_kill_around_every_kind_of_write(tmp_path: Path, name: str, before: bool, calls: tuple[int, ...]) -> None:
    run, killed, made = tmp_path / "run", 0, job()
    honest()
    for at in calls:
        if run.exists():
            shutil.rmtree(run)
        if killed_at(run, name, at, before, made) != 9:
            break  # there are fewer calls
        killed += 1
        assert child(partial(train_or_resume, run, made)) == 0
        same(run, honest())
    assert killed >= 2


def test_kill_while_a_checkpoint_is_written(tmp_path: Path) -> None:
    """Half of a tensor file is on disk: it never counts."""
    run = tmp_path / "run"

    def work() -> None:
        import vtrain.store.checkpoint as module

        write = module.write_safetensors

        def half(path: Path, tensors: Any) -> None:
            write(path, tensors)
            if "000004" in str(path) and path.name.startswith("optimizer"):
                os.truncate(path, os.path.getsize(path) // 2)
                os.kill(os.getpid(), signal.SIGKILL)

        module.write_safetensors = half
        make(run)

    assert child(work) == 9
    assert any(".tmp-" in p.name for p in (run / "checkpoints").iterdir())
    assert progress(run) == 2
    assert child(partial(resume, run, HERE, KEY, silent)) == 0
    same(run, honest())


def stop_after(step: int) -> Callable[[Any], None]:
    def on_step(done: Any) -> None:
        if done.step == step:
            raise KeyboardInterrupt

    return on_step


def interrupted(run: Path, made: Job, step: int) -> Path:
    with pytest.raises(KeyboardInterrupt):
        train(made, HERE, run, KEY, stop_after(step))
    return run


@pytest.mark.parametrize("step", range(7))
def test_interrupt_after_each_step(tmp_path: Path, step: int) -> None:
    run = interrupted(tmp_path / "run", job(), step)
    assert progress(run) == step // 2 * 2
    resume(run, HERE, KEY, silent)
    same(run, honest())


def test_interrupts_follow_each_other(tmp_path: Path) -> None:
    run = interrupted(tmp_path / "run", job(), 1)
    for step in (3, 1, 4, 5, 6):
        if step > progress(run):
            with pytest.raises(KeyboardInterrupt):
                resume(run, HERE, KEY, stop_after(step))
    resume(run, HERE, KEY, silent)
    same(run, honest())


@pytest.mark.parametrize("step", [0, 1, 2, 3, 4, 5])
def test_interrupt_around_calibration(tmp_path: Path, step: int) -> None:
    """The adaptive policy measures in its first three steps here; interrupted within and after, with checkpoints in
    between, its thresholds go on as if nothing had happened."""
    made = job(policy={"target": "bfloat16", "calibration_steps": 3}, train={"checkpoint_every": 1})
    whole = make(tmp_path / "whole", made)
    calibrations = [leaf.calibration for leaf in open_run(whole).leaves]
    assert [bool(c) for c in calibrations] == [False, True, True, True, False, False, False]
    run = interrupted(tmp_path / "run", made, step)
    resume(run, HERE, KEY, silent)
    same(run, whole)
    assert finding(audited(run)) == (None, "")


def test_interrupt_in_calibration_between_checkpoints(tmp_path: Path) -> None:
    made = job(policy={"target": "bfloat16", "calibration_steps": 3}, train={"checkpoint_every": 4})
    whole = make(tmp_path / "whole", made)
    for step in (1, 2, 3, 4, 5):
        run = interrupted(tmp_path / f"run{step}", made, step)
        resume(run, HERE, KEY, silent)
        same(run, whole)


def test_resume_of_a_finished_run(run: Path) -> None:
    before = evidence_bytes(run)
    resume(run, HERE, KEY, lambda done: pytest.fail("a step was done"))
    assert evidence_bytes(run) == before


def test_resume_without_the_statement(run: Path) -> None:
    """Killed after the last checkpoint: only the statement is missing."""
    (run / "attestation.json").unlink()
    resume(run, HERE, KEY, lambda done: pytest.fail("a step was done"))
    same(run, honest())


def test_metrics_have_each_step_once(tmp_path: Path) -> None:
    import json

    run = interrupted(tmp_path / "run", job(), 5)
    resume(run, HERE, KEY, silent)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(7))


def test_resumed_where_the_last_checkpoint_is_lost(tmp_path: Path) -> None:
    """A head without its checkpoint acknowledges nothing: the one before is gone on from."""
    run = interrupted(tmp_path / "run", job(), 5)
    shutil.rmtree(run / "checkpoints" / "000004")
    resume(run, HERE, KEY, silent)
    same(run, honest())


def test_resumed_from_a_damaged_checkpoint(tmp_path: Path) -> None:
    """Not trained on: the trainer's own disk is checked too."""
    from vtrain.errors import CheckpointError

    run = interrupted(tmp_path / "run", job(), 5)
    path = run / "checkpoints" / "000004" / "optimizer.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    before = evidence_bytes(run)
    with pytest.raises(CheckpointError, match="not the state that its leaf commits to"):
        resume(copied(run, tmp_path / "copy"), HERE, KEY, silent)
    assert evidence_bytes(run) == before


def test_begun_without_a_job(tmp_path: Path) -> None:
    """Killed before its job was written, a run says nothing: its directory is taken anew, also by another key."""
    run = tmp_path / "run"
    for name in ("log.zarr", "checkpoints", "programs"):
        (run / name).mkdir(parents=True)
    (run / ".lock").touch()
    (run / "trainer.pub").write_text(keys.public_text(keys.generate()))
    (run / "job.json.tmp-1-abcd").write_text("{")
    with pytest.raises(UsageError, match="no run to resume"):
        resume(run, HERE, KEY, silent)
    make(run)
    same(run, honest())


@pytest.mark.parametrize("name", ["transcript.jsonl", "checkpoints", "notes.txt"])
def test_directory_without_a_job_that_holds_something(run: Path, name: str) -> None:
    """It is not ours to overwrite."""
    for entry in run.iterdir():
        if entry.name == name:
            continue
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    if not (run / name).exists():
        (run / name).write_text("mine")
    before = evidence_bytes(run)
    with pytest.raises(RunExistsError):
        make(run)
    assert evidence_bytes(run) == before

"""A disk that is full, at any write: a clear error, and what was acknowledged before stays valid (protocol §3)."""

from __future__ import annotations

import errno
import os
import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fault_helpers import child, same, train_or_resume
from run_helpers import HERE, KEY, audited, evidence_bytes, finding, honest, job, make, silent

from auditor.evidence import open_run
from trainer import record
from trainer.train import resume
from vtrain.errors import MalformedRunError, StorageError


class FullDisk:
    """From the n-th call of a function of ``os`` on, there is no space left."""

    def __init__(self, patch: pytest.MonkeyPatch, name: str, calls: int) -> None:
        self.calls, self.function = calls, getattr(os, name)
        patch.setattr(os, name, self)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.calls -= 1
        if self.calls < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self.function(*args, **kwargs)


class HalfWrites:
    """The n-th ``os.write`` takes half of its data, as a full disk does, and the next ones none."""

    def __init__(self, patch: pytest.MonkeyPatch, calls: int) -> None:
        self.calls, self.function = calls, os.write
        patch.setattr(os, "write", self)

    def __call__(self, descriptor: int, data: Any) -> int:
        self.calls -= 1
        if self.calls < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self.function(descriptor, data if self.calls else bytes(data)[: len(data) // 2])


def fails_and_goes_on(run: Path, fill: Callable[[pytest.MonkeyPatch], object]) -> bool:
    """Train on a disk that fills up; then with room again. False if it never filled up."""
    with pytest.MonkeyPatch.context() as patch:
        fill(patch)
        try:
            make(run)
        except StorageError as error:
            assert error.exit_code == 3
            assert "No space left on device" in str(error) and "stays valid" in str(error)
            assert str(run.parent) in str(error)
        else:
            return False
    if not (run / "job.json").exists():
        make(run)
    else:
        with pytest.raises(MalformedRunError):
            audited(run)
        resume(run, HERE, KEY, silent)
    same(run, honest())
    return True


@pytest.mark.parametrize("calls", [0, 2, 5, 9, 14, 20, 40, 80, 110])
def test_full_when_made_durable(tmp_path: Path, calls: int) -> None:
    honest()
    assert fails_and_goes_on(tmp_path / "run", lambda patch: FullDisk(patch, "fsync", calls))


@pytest.mark.parametrize(
    ("name", "calls"),
    [(name, calls) for name in ("mkdir", "replace", "open") for calls in (0, 1, 4, 9)] + [("rename", 0), ("rename", 7)],
)
def test_full_when_a_name_is_made(tmp_path: Path, name: str, calls: int) -> None:
    honest()
    assert fails_and_goes_on(tmp_path / "run", lambda patch: FullDisk(patch, name, calls))


@pytest.mark.parametrize("calls", range(1, 12))
def test_full_in_the_middle_of_a_line(tmp_path: Path, calls: int) -> None:
    """Of the transcript, which has eleven: no part of the line stays."""
    honest()
    run = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch, pytest.raises(StorageError):
        HalfWrites(patch, calls)
        make(run)
    if run.exists():
        assert (run / "transcript.jsonl").read_bytes().endswith(b"\n")
    shutil.rmtree(run, ignore_errors=True)
    assert fails_and_goes_on(run, lambda patch: HalfWrites(patch, calls))


@pytest.mark.parametrize("limit", [200, 2_000, 20_000])
def test_limit_on_file_sizes(tmp_path: Path, limit: int) -> None:
    """The kernel's own refusal, for whoever writes: ours, zarr's or Python's buffers."""
    honest()
    run, said = tmp_path / "run", tmp_path / "said"

    def work() -> None:
        descriptor = os.open(said, os.O_CREAT | os.O_WRONLY)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        try:
            make(run)
        except StorageError as error:
            os.write(descriptor, str(error).encode()[-150:])
            raise SystemExit(0) from error

    assert child(work) == 1
    assert "File too large" in said.read_text()
    train_or_resume(run, job())
    same(run, honest())


def test_full_at_the_last_checkpoint(tmp_path: Path) -> None:
    """The earlier ones are there, and a run that is resumed from them is the honest one."""
    import vtrain.store.checkpoint as module

    run = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        write = module.write_safetensors

        def full(path: Path, tensors: Any) -> None:
            if "000006" in str(path):
                raise StorageError(f"{path}: No space left on device; what was acknowledged before stays valid")
            write(path, tensors)

        patch.setattr(module, "write_safetensors", full)
        with pytest.raises(StorageError):
            make(run)
    assert open_run(run).checkpoints == [0, 2, 4]
    assert not any(".tmp-" in p.name for p in (run / "checkpoints").iterdir())
    resume(run, HERE, KEY, silent)
    same(run, honest())


def test_full_for_the_background_writer(tmp_path: Path) -> None:
    """An error of the thread that writes the log reaches the training."""
    import vtrain.store.log as module

    run = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        commit = module._SegmentWriter.commit

        def full(self: Any, last: int) -> None:
            if last == 4:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            commit(self, last)

        patch.setattr(module._SegmentWriter, "commit", full)
        with pytest.raises(StorageError, match="No space left"):
            make(run)
    assert open_run(run).last_step == 2
    resume(run, HERE, KEY, silent)
    same(run, honest())


def test_full_for_a_recorded_loop(tmp_path: Path) -> None:
    import torch

    def model() -> torch.nn.Module:
        return torch.nn.Linear(4, 2)

    def body(run: Any) -> None:
        for step in range(run.steps_done + 1, 5):
            with run.step({"n": step}):
                run.model.weight.data.mul_(torch.tensor(0.5))

    whole, path = tmp_path / "whole", tmp_path / "run"
    with record(whole, model=model, key=KEY, checkpoint_every=2) as run:
        body(run)
    with (
        pytest.MonkeyPatch.context() as patch,
        pytest.raises(StorageError),
        record(path, model=model, key=KEY, checkpoint_every=2) as run,
    ):
        FullDisk(patch, "fsync", 25)
        body(run)
    assert open_run(path).last_step in (0, 2)
    with record(path, model=model, key=KEY, checkpoint_every=2, resume=True) as run:
        body(run)
    assert evidence_bytes(path) == evidence_bytes(whole)


def test_verdict_on_a_full_disk(run: Path, tmp_path: Path) -> None:
    """No half of a verdict is left."""
    verdict = audited(run)
    assert finding(verdict) == (None, "")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(StorageError):
        FullDisk(patch, "fsync", 0)
        verdict.sign(tmp_path / "verdict.json", KEY)
    assert not (tmp_path / "verdict.json").exists() and os.listdir(tmp_path) == ["run"]


def test_unwritable_verdict(run: Path, tmp_path: Path) -> None:
    verdict = audited(run)
    with pytest.raises(StorageError):
        verdict.sign(tmp_path / "nowhere" / "verdict.json", KEY)


def test_job_of_this_file() -> None:
    """What is trained here has a checkpoint at its end and two before: the counts above reach each."""
    assert (job().train.steps, job().train.checkpoint_every) == (6, 2)

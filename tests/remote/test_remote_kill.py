"""Killed at any moment, a run on a store goes on to the same bits (protocol §3); two writers don't meet there."""

from __future__ import annotations

import itertools
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from fault_helpers import child, same
from remote_helpers import S3Process, left, names, put, url_of
from run_helpers import HERE, KEY, evidence_bytes, honest, job, silent

from auditor.evidence import open_run
from trainer.train import resume, train
from vtrain.errors import BusyError, RunExistsError, StorageError, UsageError
from vtrain.store import publish
from vtrain.store.address import Url
from vtrain.store.objects import S3Store, Store, open_store
from vtrain.store.publish import publishing
from vtrain.store.remote import local_copy
from vtrain.store.writer import acknowledged_step


class Killed(BaseException):
    """Stands for the end of the process: from its first one on, nothing reaches the store."""


@contextmanager
def killed_after(writes: int, patch: pytest.MonkeyPatch) -> Iterator[None]:
    """No write, upload or removal after the n-th one; the signs of life are not counted."""
    count = 0
    guard = threading.Lock()

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(self: Store, *args: Any, **more: Any) -> Any:
            nonlocal count
            name = args[-1] if function.__name__ == "upload" else args[0]
            with guard:
                count += name != ".lock"
                dead = count > writes
            if dead and name == ".lock" and function.__name__ == "write":
                return None  # a thread's sign of life
            if dead:
                raise Killed
            return function(self, *args, **more)

        return wrapped

    with patch.context() as inner:
        for name in ("write", "upload", "delete"):
            inner.setattr(Store, name, counted(getattr(Store, name)))
        yield


def train_at(url: Url) -> None:
    with publishing(url) as (path, publish_now):
        train(job(), HERE, path, KEY, silent, publish_now)


def resume_at(url: Url) -> None:
    with publishing(url, resume=True) as (path, publish_now):
        resume(path, HERE, KEY, silent, publish_now)


def train_or_resume_at(url: Url) -> None:
    if "job.json" in names(url):
        resume_at(url)
    else:
        train_at(url)


def same_there(url: Url) -> None:
    with local_copy(url) as path:
        same(path, honest())
        wanted = [name for name in evidence_bytes(honest()) if not name.endswith("/")]
        assert sorted(set(names(url)) - {"metrics.jsonl", ".lock"}) == sorted(wanted)  # and nothing else


def acknowledged(url: Url) -> int:
    """The step that the store acknowledges, after a check that all of it is there."""
    if "transcript.jsonl" not in names(url):
        return -1
    with local_copy(url) as path:
        evidence = open_run(path, KEY.public_key())
        for step in range(evidence.last_step + 1):
            evidence.measure(step)
            evidence.sites(step)
        for step in evidence.checkpoints:
            evidence.state(step)
        assert acknowledged_step(evidence.layout) == evidence.last_step
        return evidence.last_step


@pytest.mark.parametrize("every", [8, pytest.param(1, marks=pytest.mark.slow)])
def test_killed_after_each_object(memory: str, monkeypatch: pytest.MonkeyPatch, surroundings: Path, every: int) -> None:
    """What is acknowledged is complete, never goes back, and is gone on from."""
    seen: list[int] = []
    for writes in range(0, 400, every):
        url = url_of(f"{memory}/run{writes}")
        try:
            with killed_after(writes, monkeypatch):
                train_at(url)
        except Killed:
            assert ".lock" in names(url)
        else:
            same_there(url)
            break
        seen.append(acknowledged(url))
        train_or_resume_at(url)
        same_there(url)
        assert ".lock" not in names(url)
    assert seen == sorted(seen)
    assert set(seen) - {6} == {-1, 0, 2, 4}
    assert 6 in seen or every > 1  # only the statement is missing
    assert left(surroundings) == []


def test_killed_again_while_resuming(memory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    url = url_of(f"{memory}/run")
    kills = 0
    before = -1
    while True:
        try:
            with killed_after(31, monkeypatch):
                train_or_resume_at(url)
            break
        except Killed:
            kills += 1
            assert acknowledged(url) >= before
            before = acknowledged(url)
    assert kills >= 2
    same_there(url)


@pytest.mark.parametrize("uploads", [4, 30, 55])
def test_killed_for_good_on_s3(s3: S3Process, uploads: int) -> None:
    """SIGKILL as the n-th upload begins, while others are under way."""
    url = url_of(f"{s3.bucket()}/run")

    def work() -> None:
        upload, numbers = S3Store.upload, itertools.count()

        def counted(self: S3Store, source: Path, name: str) -> None:
            if next(numbers) == uploads:
                os.kill(os.getpid(), signal.SIGKILL)
            upload(self, source, name)

        S3Store.upload = counted  # type: ignore[method-assign]
        train_at(url)

    assert child(work) == 9
    acknowledged(url)
    assert child(partial(train_or_resume_at, url)) == 0
    same_there(url)


def test_what_is_beyond_the_transcript_is_removed(memory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Objects of a checkpoint that nothing acknowledges, and which the resumed run doesn't write again."""
    url = put(honest(), url_of(f"{memory}/run"))
    store = open_store(url)
    store.delete("attestation.json")
    store.write("checkpoints/000009/meta.json", b"{}")
    store.write("checkpoints/000009/model.safetensors", b"half")
    resume_at(url)
    same_there(url)


def test_only_what_changed_is_uploaded(memory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    url = url_of(f"{memory}/run")
    uploads: list[str] = []
    upload = Store.upload

    def noted(self: Store, source: Path, name: str) -> None:
        uploads.append(name)
        upload(self, source, name)

    monkeypatch.setattr(Store, "upload", noted)
    train_at(url)
    again = {name for name in uploads if uploads.count(name) > 1}
    assert again == {"transcript.jsonl", "metrics.jsonl"}
    assert uploads[:2] == ["trainer.pub", "job.json"]
    assert uploads[-1] == "attestation.json"
    heads = [i for i, name in enumerate(uploads) if name == "transcript.jsonl"]
    assert len(heads) == 4
    ends = [i for i, name in enumerate(uploads) if name.endswith("/model.safetensors")]
    segments = [i for i, name in enumerate(uploads) if name.startswith("log.zarr/0") and name.count("/") == 2]
    assert all(s < e < h for s, e, h in zip(segments[::7], ends, heads, strict=False))


def test_a_finished_run_is_left_alone(memory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    url = put(honest(), url_of(f"{memory}/run"))
    monkeypatch.setattr(Store, "upload", lambda self, source, name: pytest.fail(f"{name} was uploaded"))
    resume_at(url)
    same_there(url)


def test_a_store_that_fails_stops_the_training(
    memory: str, monkeypatch: pytest.MonkeyPatch, surroundings: Path
) -> None:
    url = url_of(f"{memory}/run")
    upload = Store.upload

    def full(self: Store, source: Path, name: str) -> None:
        with self.errors(name):
            if name.startswith("checkpoints/000004"):
                raise OSError(28, "No space left on device")
        upload(self, source, name)

    with monkeypatch.context() as patch:
        patch.setattr(Store, "upload", full)
        with pytest.raises(StorageError, match="checkpoints/000004"):
            train_at(url)
    assert acknowledged(url) == 2
    assert left(surroundings) == []
    resume_at(url)
    same_there(url)


# ---- two writers ----------------------------------------------------------------------------------------------------
def test_a_second_writer_is_refused(url: Url) -> None:
    with publishing(url):
        with pytest.raises(BusyError, match="another process is writing"), publishing(url):
            pytest.fail("let in")
        with pytest.raises(BusyError, match="another process is writing"), publishing(url, resume=True):
            pytest.fail("let in")
        assert names(url) == [".lock"]
    assert names(url) == []


def test_a_dead_writers_lock_is_outwaited(url: Url) -> None:
    said: list[str] = []
    open_store(url).write(".lock", b"0" * 32 + b" 7\n")
    started = time.monotonic()
    with publishing(url, say=said.append):
        assert time.monotonic() - started >= publish.PATIENCE
    assert "waiting" in said[0]
    assert names(url) == []


def test_who_has_lost_the_lock_acknowledges_nothing(memory: str) -> None:
    """A writer that was suspended for long, while another one took over."""
    url = url_of(f"{memory}/run")

    def taken_over(done: Any) -> None:
        if done.step == 3:
            open_store(url).write(".lock", b"f" * 32 + b" 1\n")

    with pytest.raises(BusyError, match="taken over"), publishing(url) as (path, publish_now):
        train(job(), HERE, path, KEY, taken_over, publish_now)
    assert open_store(url).read(".lock", 100) == b"f" * 32 + b" 1\n"  # the other's, still
    open_store(url).delete(".lock")
    assert acknowledged(url) == 2
    resume_at(url)
    same_there(url)


def test_two_that_begin_at_once(s3: S3Process) -> None:
    """S3 makes an object only if there is none: of many writers one is let in."""
    url = url_of(f"{s3.bucket()}/run")
    tokens = [bytes([48 + i]) * 32 for i in range(8)]
    outcomes: list[bool] = []

    def begin(token: bytes) -> None:
        try:
            open_store(url).write(".lock", token, create=True)
            outcomes.append(True)
        except BusyError:
            outcomes.append(False)

    threads = [threading.Thread(target=begin, args=(token,)) for token in tokens]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == [False] * 7 + [True]


def test_begun_without_a_job_on_a_store(memory: str) -> None:
    """Killed between the key and the job: the name is taken anew, and nothing else is overwritten."""
    url = url_of(f"{memory}/run")
    open_store(url).write("trainer.pub", b"anything")
    with pytest.raises(UsageError, match="no run to resume"):
        resume_at(url)
    train_at(url)
    same_there(url)
    other = url_of(f"{memory}/other")
    open_store(other).write("notes.txt", b"mine")
    with pytest.raises(RunExistsError):
        train_at(other)
    assert names(other) == ["notes.txt"]

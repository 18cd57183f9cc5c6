"""An auditor that is killed, on disks that fail and under clocks that jump: the same verdict, or a clear error."""

from __future__ import annotations

import errno
import io
import json
import os
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fault_helpers import child, same
from run_helpers import (
    HERE,
    KEY,
    audited,
    finding,
    forging,
    honest,
    job,
    make,
    silent,
    tree_bytes,
)

from auditor.audit import Request, audit
from auditor.audit.progress import Progress, from_json, to_json
from auditor.evidence.segments import Segment
from vtrain.errors import StorageError

Audit = Callable[[], None]


@pytest.fixture(scope="module")
def long_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixteen steps with a checkpoint each: seventeen segments."""
    made = job(train={"steps": 16, "checkpoint_every": 1}, policy={"target": "bfloat16"})
    run = tmp_path_factory.mktemp("long") / "run"
    audited(honest())  # what a process does once, it has done before it is forked: segments are what is killed
    assert child(lambda: make(run, made)) == 0
    return run


def auditing(run: Path, folder: Path, **request: Any) -> Audit:
    """An audit that keeps its progress, and then writes the verdict."""

    def work() -> None:
        made = Request(run, HERE, nonce="mine", progress=folder / "progress", **request)
        audit(made, silent, silent).sign(folder / "verdict.json", KEY)

    return work


@pytest.fixture(scope="module")
def expected(long_run: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The verdict of an auditor that nobody killed, and that kept no progress."""
    path = tmp_path_factory.mktemp("expected") / "verdict.json"
    assert child(lambda: audit(Request(long_run, HERE, nonce="mine"), silent, silent).sign(path, KEY)) == 0
    return path.read_bytes()


def lines(folder: Path) -> list[bytes]:
    return (folder / "progress").read_bytes().splitlines(keepends=True)


# ---- killed ---------------------------------------------------------------------------------------------------------
def kill_and_resume(run: Path, folder: Path, expected: bytes, kills: int, seed: int) -> set[int]:
    """Kill that many times at random moments, and go on; at each end compare, and begin anew.

    A moment is a while after the progress has some more lines: by the clock alone, a process that takes longer to
    begin than another was killed before its first line, or had ended.

    Returns:
        Numbers of whole lines that a kill left.
    """
    draw, left, before, seen = random.Random(seed), kills, tree_bytes(run), set()
    started = time.perf_counter()
    assert child(auditing(run, folder)) == 0
    whole, segments = time.perf_counter() - started, len(lines(folder)) - 1
    for _ in range(10 * kills):
        if (folder / "verdict.json").exists():
            assert (folder / "verdict.json").read_bytes() == expected
            for path in folder.iterdir():
                path.unlink()
            if not left:
                assert tree_bytes(run) == before
                return seen
        kept = len(lines(folder)) if (folder / "progress").exists() else 0
        goal, span = kept + draw.randrange(4), draw.uniform(0.0, 1.0) * whole / segments
        written = lambda goal=goal: not goal or ((folder / "progress").exists() and len(lines(folder)) >= goal)  # noqa: E731
        killed = child(auditing(run, folder), span if left else None, once=written) == 9
        left -= killed
        if killed and (folder / "progress").exists():
            seen.add(len(lines(folder)))
    pytest.fail(f"{left} kills are left: the children end before they are killed")


def test_random_kills(long_run: Path, tmp_path: Path, expected: bytes) -> None:
    assert len(kill_and_resume(long_run, tmp_path, expected, 10, 1)) > 2


@pytest.mark.slow
def test_two_hundred_kills(long_run: Path, tmp_path: Path, expected: bytes) -> None:
    assert len(kill_and_resume(long_run, tmp_path, expected, 200, 2)) > 8


@pytest.mark.parametrize("size", [0, 1, 30])
def test_torn_lines(run: Path, tmp_path: Path, size: int) -> None:
    """Of the header, of a segment, of the last one: replayed again."""
    auditing(run, tmp_path)()
    verdict, kept = (tmp_path / "verdict.json").read_bytes(), lines(tmp_path)
    for whole in range(5):
        (tmp_path / "progress").write_bytes(b"".join(kept[:whole]) + kept[whole][:size])
        auditing(run, tmp_path)()
        assert (tmp_path / "verdict.json").read_bytes() == verdict and lines(tmp_path) == kept


def test_what_was_found_is_not_replayed_again(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from auditor.audit.segment import TaskReplay

    auditing(run, tmp_path)()
    first, kept = (tmp_path / "verdict.json").read_bytes(), lines(tmp_path)
    (tmp_path / "progress").write_bytes(b"".join(kept[:3]))
    replay, replayed = TaskReplay.replay, []

    def counted(self: TaskReplay, segment: Segment, *rest: Any) -> Any:
        replayed.append(segment.last)
        return replay(self, segment, *rest)

    monkeypatch.setattr(TaskReplay, "replay", counted)
    auditing(run, tmp_path)()
    assert replayed == [4, 6] and (tmp_path / "verdict.json").read_bytes() == first
    auditing(run, tmp_path)()
    assert replayed == [4, 6] and (tmp_path / "verdict.json").read_bytes() == first


def test_refuted_stays_refuted(run: Path, tmp_path: Path) -> None:
    with forging(run) as forger:
        forger.leaves[3]["metrics"] = {}
        forger.leaves[6]["metrics"] = {}
    auditing(run, tmp_path)()
    first, kept = (tmp_path / "verdict.json").read_bytes(), lines(tmp_path)
    assert len(kept) == 1 + 3
    for count in (1, 2, 4):
        (tmp_path / "progress").write_bytes(b"".join(kept[:count]))
        auditing(run, tmp_path)()
        assert (tmp_path / "verdict.json").read_bytes() == first and lines(tmp_path) == kept


def test_a_made_nonce_is_kept(run: Path, tmp_path: Path) -> None:
    """Otherwise a killed audit could be begun again until the draw suits."""
    drawn = [audited(run, sampled=2, progress=tmp_path / "p") for _ in range(2)]
    assert drawn[0].to_json() == drawn[1].to_json() and len(drawn[0].nonce) == 32


def test_what_is_kept_is_what_was_found(tmp_path: Path) -> None:
    """Histograms of adaptive thresholds among it."""
    run = honest("adaptive16")
    audited(run, progress=tmp_path / "p", nonce="x")
    with Progress(tmp_path / "p") as progress:
        values = list(progress.found.values())
    assert [to_json(from_json(v)) for v in values] == values
    assert any(tally["sides"] for v in values for tally in v["freedom"].values())
    kept = audited(run, progress=tmp_path / "p", nonce="x").to_json()
    assert kept == audited(run, nonce="x").to_json() and kept["freedom"]["inDoubt"] > 0


# ---- disks ----------------------------------------------------------------------------------------------------------
class Failing:
    """The n-th call of a function of ``os``, and those after it, fail; ``half`` lets the n-th write half."""

    def __init__(self, patch: pytest.MonkeyPatch, name: str, calls: int, code: int, half: bool = False) -> None:
        self.left, self.code, self.half, self.function = calls, code, half, getattr(os, name)
        patch.setattr(os, name, self)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.left -= 1
        if self.left == -1 and self.half:
            return self.function(args[0], bytes(args[1])[: len(args[1]) // 2])
        if self.left < 0:
            raise OSError(self.code, os.strerror(self.code))
        return self.function(*args, **kwargs)


@pytest.mark.parametrize("calls", range(5))
@pytest.mark.parametrize("how", ["write", "half a write", "fsync"])
def test_full_disk_for_progress(run: Path, tmp_path: Path, how: str, calls: int) -> None:
    """What was kept stays; with room again, the audit goes on to the same verdict."""
    auditing(run, tmp_path)()
    verdict, kept = (tmp_path / "verdict.json").read_bytes(), lines(tmp_path)
    for path in tmp_path.glob("[pv]*"):
        path.unlink()
    with pytest.MonkeyPatch.context() as patch:
        Failing(patch, how.split()[-1], calls, errno.ENOSPC, half="half" in how)
        with pytest.raises(StorageError, match="No space left on device") as error:
            auditing(run, tmp_path)()
    assert error.value.exit_code == 3 and not (tmp_path / "verdict.json").exists()
    whole = len(lines(tmp_path))
    assert whole < 5 and lines(tmp_path) == kept[:whole]  # no part of a line
    auditing(run, tmp_path)()
    assert (tmp_path / "verdict.json").read_bytes() == verdict and lines(tmp_path) == kept


def test_full_disk_for_the_verdict(run: Path, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch, pytest.raises(StorageError, match=r"verdict.json: No space left"):
        Failing(patch, "replace", 0, errno.ENOSPC)
        auditing(run, tmp_path)()
    assert sorted(os.listdir(tmp_path)) == ["progress", "run"]
    auditing(run, tmp_path)()
    assert (tmp_path / "verdict.json").exists()


def test_permission_denied(run: Path, tmp_path: Path) -> None:
    """For the progress' directory, and for a file of the run; root may do everything, so it is the call that fails."""
    with pytest.raises(StorageError, match="No such file"):
        audited(run, progress=tmp_path / "nowhere" / "p")
    opened = os.open

    def denied(path: Any, *args: Any, **kwargs: Any) -> int:
        if str(path).endswith(name):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return opened(path, *args, **kwargs)

    for name in ("progress", "job.json", "transcript.jsonl", "model.safetensors", "zarr.json"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "open", denied)
            with pytest.raises(StorageError, match=f"{name}: Permission denied") as error:
                auditing(run, tmp_path)()
        assert error.value.exit_code == 3


class _Bad(io.RawIOBase):
    """A file on a disk with bad sectors."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def readable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._descriptor

    def readinto(self, buffer: Any) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    def close(self) -> None:
        if not self.closed:
            os.close(self._descriptor)
        super().close()


def count_opened(run: Path, bad: int | None) -> int:
    """Audit while the file opened as number ``bad`` can't be read; how many files were opened."""
    fdopen, count = os.fdopen, 0

    def failing(descriptor: int, *args: Any, **kwargs: Any) -> Any:
        nonlocal count
        count += 1
        return io.BufferedReader(_Bad(descriptor)) if count - 1 == bad else fdopen(descriptor, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fdopen", failing)
        audit(Request(run, HERE), silent, silent)
    return count


def test_read_errors(run: Path) -> None:
    """Of any file of the run, whenever it is read: no verdict, and nothing that looks like the trainer's fault."""
    count = count_opened(run, None)
    assert count > 20
    for bad in range(count):
        with pytest.raises(StorageError, match="Input/output error") as error:
            count_opened(run, bad)
        assert error.value.exit_code == 3 and "Traceback" not in str(error.value)


def test_slow_disk(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    auditing(run, tmp_path)()
    verdict, sync, calls = (tmp_path / "verdict.json").read_bytes(), os.fsync, 0
    (tmp_path / "progress").unlink()

    def slow(descriptor: int) -> None:
        nonlocal calls
        calls += 1
        time.sleep(0.02)
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", slow)
    auditing(run, tmp_path)()
    assert (tmp_path / "verdict.json").read_bytes() == verdict and calls > 5
    make(tmp_path / "slow")
    same(tmp_path / "slow", honest())
    assert calls > 50


# ---- clocks ---------------------------------------------------------------------------------------------------------
class Jumping:
    """A clock that jumps by years, back and forth, at every look at it."""

    def __init__(self, unit: float) -> None:
        self.looks, self._unit, self._random = 0, unit, random.Random(3)

    def __call__(self) -> Any:
        self.looks += 1
        return type(self._unit)(self._unit * (1_700_000_000 + self._random.randint(-(10**9), 10**9)))


def test_clock_that_jumps(run: Path, tmp_path: Path) -> None:
    """No effect on the bits of a run or a verdict; in a process of its own, as everything looks at the clock."""
    auditing(run, tmp_path)()
    verdict = (tmp_path / "verdict.json").read_bytes()
    for path in tmp_path.glob("[pv]*"):
        path.unlink()

    def work() -> None:
        seconds, nanoseconds = Jumping(1.0), Jumping(10**9)
        time.time, time.time_ns = seconds, nanoseconds
        make(tmp_path / "jumped")
        auditing(run, tmp_path)()
        (tmp_path / "looks").write_text(json.dumps(seconds.looks + nanoseconds.looks))

    assert child(work) == 0
    assert json.loads((tmp_path / "looks").read_text()) >= 0
    assert (tmp_path / "verdict.json").read_bytes() == verdict
    same(tmp_path / "jumped", honest())
    assert finding(audited(tmp_path / "jumped")) == (None, "")

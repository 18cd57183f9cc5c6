from __future__ import annotations

import errno
import hashlib
import json
import os
import random
import signal
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from store_helpers import same, sample, step_logs, tree_bytes

from vtrain.errors import LogError, StorageError, UsageError
from vtrain.store import log as log_module
from vtrain.store.log import LogWriter, discard_after, read_segment, segments, step_digest
from vtrain.store.logformat import SPECS, array_metadata
from vtrain.store.steplog import COLUMNS, StepLog

MAX = 1 << 28


def write(root: Path, logs: dict[int, StepLog], ends: list[int]) -> None:
    with LogWriter(root) as writer:
        for step, log in logs.items():
            writer.append(step, log)
            if step in ends:
                writer.end_segment(step)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(logs=st.lists(step_logs(), min_size=1, max_size=5), first=st.integers(1, 10**7))
def test_round_trip(tmp_path_factory: pytest.TempPathFactory, logs: list[StepLog], first: int) -> None:
    root = tmp_path_factory.mktemp("log") / "log.zarr"
    last = first + len(logs) - 1
    write(root, {first + number: log for number, log in enumerate(logs)}, [last])
    assert segments(root) == [last]
    segment = read_segment(root, last, max_bytes=MAX)
    assert (segment.first, segment.last) == (first, last)
    # Backwards: no step needs the one before.
    for number in reversed(range(len(logs))):
        found = segment.step(first + number)
        assert same(found, logs[number])
        assert step_digest(found) == step_digest(logs[number])
    for step in (first - 1, last + 1):
        with pytest.raises(UsageError, match="the segment has"):
            segment.step(step)


def test_segments_are_independent(tmp_path: Path) -> None:
    root = tmp_path / "log.zarr"
    logs = {step: sample(step) for step in range(1, 10)}
    write(root, logs, [3, 4, 9])
    assert segments(root) == [3, 4, 9]
    before = tree_bytes(root / "000003")
    discard_after(root, 4)
    assert segments(root) == [3, 4]
    write(root, {step: logs[step] for step in range(5, 10)}, [9])
    assert tree_bytes(root / "000003") == before
    for first, last in ((1, 3), (4, 4), (5, 9)):
        segment = read_segment(root, last, max_bytes=MAX)
        assert all(same(segment.step(step), logs[step]) for step in range(first, last + 1))


def test_many_shards(tmp_path: Path) -> None:
    """Steps that straddle chunks and shards; and columns of zeros only, whose chunks must be stored all the same."""
    zeros = StepLog(
        sites=np.array([[7, 10**7, 1, 5, 0, 0]], "<u8"),
        gaps=np.zeros(0, np.uint8),
        codes=np.zeros(2 * 10**6, np.uint8),
        values=np.zeros(0, "<u4"),
        scalars=np.zeros(3, "<u8"),
    )
    logs = {step: zeros if step % 2 else sample(step, sites=9, entries=20_000) for step in range(1, 7)}
    root = tmp_path / "log.zarr"
    write(root, logs, [6])
    assert len(list((root / "000006" / "codes" / "c").iterdir())) == 2
    segment = read_segment(root, 6, max_bytes=MAX)
    assert all(same(segment.step(step), logs[step]) for step in logs)


def test_zarr_alone_reads_it(tmp_path: Path) -> None:
    """It is plain Zarr v3, with exactly the metadata that the reader demands."""
    root = tmp_path / "log.zarr"
    logs = {step: sample(step) for step in range(1, 4)}
    write(root, logs, [3])
    group = zarr.open_group(root, mode="r")["000003"]
    assert isinstance(group, zarr.Group)
    for name in COLUMNS:
        array = group[name]
        assert isinstance(array, zarr.Array)
        expected = np.concatenate([getattr(log, name).reshape(-1) for log in logs.values()])
        assert np.asarray(array[:]).tobytes() == expected.tobytes()
        written = json.loads((root / "000003" / name / "zarr.json").read_text())
        assert written == array_metadata(SPECS[name], len(expected))


def test_digest_by_hand() -> None:
    log = sample(1, sites=2, entries=3)
    text = b"vtrain step log v1\n"
    for name in ("sites", "gaps", "codes", "values", "scalars"):
        column = getattr(log, name)
        text += name.encode() + b"\0" + struct.pack("<Q", column.size) + column.tobytes()
    assert step_digest(log) == hashlib.sha256(text).digest()


@pytest.mark.parametrize("name", COLUMNS)
def test_digest_depends_on_every_column(name: str) -> None:
    log = sample(1)
    changed = getattr(log, name).copy()
    changed.reshape(-1)[-1] ^= 1
    assert step_digest(StepLog(**{**vars(log), name: changed})) != step_digest(log)
    with pytest.raises(LogError, match="expected"):
        step_digest(StepLog(**{**vars(log), name: getattr(log, name).astype(np.float64)}))


def test_order_of_steps(tmp_path: Path) -> None:
    with LogWriter(tmp_path / "log.zarr") as writer:
        with pytest.raises(UsageError, match="last step appended is None"):
            writer.end_segment(1)
        writer.append(5, sample(5))
        for step in (5, 7, 4):
            with pytest.raises(UsageError, match="expected 6"):
                writer.append(step, sample(0))
        with pytest.raises(UsageError, match="last step appended is 5"):
            writer.end_segment(6)
        with pytest.raises(UsageError, match="are in no segment"):
            writer.close()
        writer.end_segment(5)
        with pytest.raises(UsageError, match="last step appended is 5"):
            writer.end_segment(5)
    with pytest.raises(UsageError, match="closed"):
        writer.append(6, sample(6))
    assert segments(tmp_path / "log.zarr") == [5]


def test_contradictory_log_is_refused(tmp_path: Path) -> None:
    log = sample(1)
    with LogWriter(tmp_path / "log.zarr") as writer, pytest.raises(LogError, match="values has"):
        writer.append(1, StepLog(**{**vars(log), "values": log.values[1:]}))


def test_arrays_may_be_reused_at_once(tmp_path: Path) -> None:
    log, kept = sample(1), sample(1)
    with LogWriter(tmp_path / "log.zarr") as writer:
        writer.append(1, log)
        for name in COLUMNS:
            getattr(log, name)[:] = 0
        writer.end_segment(1)
    assert same(read_segment(tmp_path / "log.zarr", 1, max_bytes=MAX).step(1), kept)


def test_append_waits_only_beyond_its_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = threading.Event()
    add = log_module._SegmentWriter.add

    def slow(self: log_module._SegmentWriter, step: int, columns: dict[str, bytes]) -> None:
        assert gate.wait(20)
        add(self, step, columns)

    monkeypatch.setattr(log_module._SegmentWriter, "add", slow)
    size = sum(getattr(sample(1), name).nbytes for name in COLUMNS) + 48
    writer = LogWriter(tmp_path / "log.zarr", max_bytes=3 * size + size // 2)
    for step in range(1, 4):
        writer.append(step, sample(step))
    last = threading.Thread(target=writer.append, args=(4, sample(4)))
    last.start()
    last.join(0.2)
    assert last.is_alive()
    gate.set()
    last.join(20)
    assert not last.is_alive()
    writer.end_segment(4)
    writer.close()
    segment = read_segment(tmp_path / "log.zarr", 4, max_bytes=MAX)
    assert all(same(segment.step(step), sample(step)) for step in range(1, 5))


def _full(*_: object, **__: object) -> NoReturn:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("target", ["zarr.storage._local._put", "os.fsync", "os.rename"])
def test_disk_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str) -> None:
    root = tmp_path / "log.zarr"
    writer = LogWriter(root)
    writer.append(1, sample(1))
    writer.end_segment(1)
    monkeypatch.setattr(target, _full)
    writer.append(2, sample(2))
    for _ in range(2):
        with pytest.raises(StorageError, match="No space left"):
            writer.end_segment(2)
    with pytest.raises(StorageError, match="No space left"):
        writer.append(3, sample(3))
    monkeypatch.undo()
    with pytest.raises(StorageError, match="No space left"):
        writer.close()
    writer.close()
    assert sorted(os.listdir(root)) == ["000001", "zarr.json"]
    assert same(read_segment(root, 1, max_bytes=MAX).step(1), sample(1))


def test_abort_leaves_nothing(tmp_path: Path) -> None:
    root = tmp_path / "log.zarr"
    with pytest.raises(RuntimeError), LogWriter(root) as writer:
        writer.append(1, sample(1))
        raise RuntimeError
    assert os.listdir(root) == ["zarr.json"]


def test_discard_incomplete(tmp_path: Path) -> None:
    root = tmp_path / "log.zarr"
    write(root, {step: sample(step) for step in range(1, 4)}, [1, 2, 3])
    (root / "000002" / "zarr.json").unlink()
    (root / "000004.tmp-1-ab").mkdir()
    assert segments(root) == [1, 3]
    discard_after(root, 3)
    assert sorted(os.listdir(root)) == ["000001", "000003", "zarr.json"]


WRITER = """
import os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from store_helpers import sample
from vtrain.store.log import LogWriter
writer = LogWriter(Path(sys.argv[1]))
step = 0
while True:
    step += 1
    writer.append(step, sample(step, entries=500))
    if step % 3 == 0:
        writer.end_segment(step)
        os.write(1, b"%d\\n" % step)
"""


def test_killed_at_any_time(tmp_path: Path) -> None:
    """After kill -9, every acknowledged segment is whole, and nothing else passes for a segment."""
    draw = random.Random(1)
    for attempt in range(4):
        root = tmp_path / f"{attempt}" / "log.zarr"
        root.parent.mkdir()
        command = [sys.executable, "-c", WRITER, str(root), str(Path(__file__).parent)]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            first = process.stdout.readline()
            time.sleep(draw.uniform(0, 0.25))
            os.kill(process.pid, signal.SIGKILL)
            acknowledged = [int(line) for line in (first + process.stdout.read()).splitlines()]
        found = segments(root)
        assert acknowledged and found[: len(acknowledged)] == acknowledged and len(found) <= len(acknowledged) + 1
        for end in found:
            segment = read_segment(root, end, max_bytes=MAX)
            assert all(same(segment.step(step), sample(step, entries=500)) for step in range(end - 2, end + 1))
        discard_after(root, acknowledged[-1])
        assert {int(name) for name in os.listdir(root) if name != "zarr.json"} == set(acknowledged)

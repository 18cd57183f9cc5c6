from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from store_helpers import flip

from vtrain.errors import PathError, StorageError, TranscriptError, UsageError, VtrainError
from vtrain.store import canonical
from vtrain.store.transcript import TranscriptWriter, read, truncate_after

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
OBJECTS = st.dictionaries(TEXT, VALUES, max_size=4).map(lambda value: {**value, "type": "leaf"})


def leaf(step: int) -> dict[str, Any]:
    return {"type": "leaf", "step": step, "digest": f"{step:064x}"}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "transcript.jsonl"


def write(path: Path, steps: range) -> None:
    with TranscriptWriter(path) as writer:
        for step in steps:
            writer.append(leaf(step))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(objects=st.lists(OBJECTS, max_size=4), cut=st.integers(0, 400))
def test_round_trip_and_any_cut(tmp_path: Path, objects: list[dict[str, Any]], cut: int) -> None:
    path = tmp_path / "transcript.jsonl"
    path.unlink(missing_ok=True)
    with TranscriptWriter(path) as writer:
        lines = [writer.append(value) for value in objects]
        assert writer.count == len(objects)
    found = read(path)
    assert [value for _, value in found.lines] == objects and [line for line, _ in found.lines] == lines
    assert not found.torn and found.size == path.stat().st_size
    # Cut anywhere, the whole lines before are there, and writing goes on after them.
    data = path.read_bytes()[:cut]
    path.write_bytes(data)
    found = read(path)
    assert [line for line, _ in found.lines] == data.split(b"\n")[:-1] == lines[: data.count(b"\n")]
    assert found.torn == (not data.endswith(b"\n") and data != b"")
    with TranscriptWriter(path) as writer:
        assert writer.count == len(found.lines)
        writer.append(leaf(1))
    assert [line for line, _ in read(path).lines] == [*lines[: len(found.lines)], canonical.dumps(leaf(1))]


LINES: dict[str, bytes] = {
    "not JSON": b"{",
    "empty": b"",
    "not an object": b"[]",
    "repeated key": b'{"a":1,"a":1,"type":"leaf"}',
    "space": b'{"type": "leaf"}',
    "order of keys": b'{"type":"leaf","a":1}',
    "escape": b'{"type":"\\u006ceaf"}',
    "float": b'{"a":1.5,"type":"leaf"}',
    "integral float": b'{"a":1.0,"type":"leaf"}',
    "exponent": b'{"a":1e2,"type":"leaf"}',
    "NaN": b'{"a":NaN,"type":"leaf"}',
    "infinity": b'{"a":-Infinity,"type":"leaf"}',
    "minus zero": b'{"a":-0,"type":"leaf"}',
    "2**53": b'{"a":9007199254740992,"type":"leaf"}',
    "many digits": b'{"a":' + b"1" * 10_000 + b',"type":"leaf"}',
    "deep": b'{"a":' + b"[" * 50_000 + b"]" * 50_000 + b',"type":"leaf"}',
    "deeper than any": b'{"a":' + b"[" * 40 + b"]" * 40 + b',"type":"leaf"}',
    "surrogate": b'{"a":"\\ud800","type":"leaf"}',
    "not UTF-8": b'{"a":"\xff","type":"leaf"}',
    "byte order mark": b'\xef\xbb\xbf{"type":"leaf"}',
    "carriage return": b'{"type":"leaf"}\r',
    "type": b'{"type":"root"}',
    "no type": b"{}",
    "type of another type": b'{"type":["leaf"]}',
}


@pytest.mark.parametrize("case", LINES)
def test_bad_line(path: Path, case: str) -> None:
    write(path, range(2))
    good = path.read_bytes()
    path.write_bytes(good + LINES[case] + b"\n" + good)
    for act in (read, TranscriptWriter, lambda path: truncate_after(path, 1)):
        with pytest.raises(TranscriptError, match=r"line 3"):
            act(path)
    assert path.read_bytes() == good + LINES[case] + b"\n" + good


@pytest.mark.parametrize("case", LINES)
def test_bad_last_line(path: Path, case: str) -> None:
    """Only what is no JSON at all was torn; the rest was written on purpose."""
    write(path, range(2))
    with open(path, "ab") as handle:
        handle.write(LINES[case] + b"\n")
    if case in ("not JSON", "empty", "not UTF-8"):
        found = read(path)
        assert found.torn and len(found.lines) == 2
        TranscriptWriter(path).close()
        assert not read(path).torn
    else:
        with pytest.raises(TranscriptError, match="line 3"):
            read(path)


def test_bounds(path: Path) -> None:
    write(path, range(3))
    longest = max(len(line) for line, _ in read(path).lines)
    assert len(read(path, max_line=longest, max_lines=3).lines) == 3
    with pytest.raises(TranscriptError, match=f"line 1: longer than {longest - 1}"):
        read(path, max_line=longest - 1)
    with pytest.raises(TranscriptError, match="more than 2 lines"):
        read(path, max_lines=2)
    with pytest.raises(PathError, match="at most 10"):
        read(path, max_bytes=10)
    path.write_bytes(b"x" * 2_000_000)
    with pytest.raises(TranscriptError, match="line 1: longer"):
        read(path)


def test_truncate_after(path: Path) -> None:
    write(path, range(5))
    with open(path, "ab") as handle:
        handle.write(b'{"torn')
    truncate_after(path, 3)
    assert [value for _, value in read(path).lines] == [leaf(0), leaf(1), leaf(2)]
    truncate_after(path, 3)
    with pytest.raises(TranscriptError, match="has 3 lines"):
        truncate_after(path, 4)
    truncate_after(path, 0)
    assert path.stat().st_size == 0


@pytest.mark.parametrize(
    "value",
    [
        {},
        {"type": "x"},
        {"type": "leaf", "a": 1.0},
        {"type": "leaf", "a": 2**53},
        {"type": "leaf", "a": b""},
        {"type": "leaf", 1: 1},
        {"type": "leaf", "a": "\ud800"},
        {"type": "leaf", "a": "x" * (1 << 20)},
        [],
    ],
)
def test_objects_that_cannot_be_stored(path: Path, value: Any) -> None:
    with TranscriptWriter(path) as writer:
        writer.append(leaf(0))
        with pytest.raises(UsageError):
            writer.append(value)
    assert len(read(path).lines) == 1
    with pytest.raises(UsageError, match="closed"):
        writer.append(leaf(1))


def test_links_and_pipes(path: Path, tmp_path: Path) -> None:
    os.symlink(tmp_path / "elsewhere", path)
    for act in (read, TranscriptWriter):
        with pytest.raises(VtrainError):
            act(path)
    assert not (tmp_path / "elsewhere").exists()
    path.unlink()
    os.mkfifo(path)
    for act in (read, TranscriptWriter):
        with pytest.raises(PathError, match="FIFO"):
            act(path)
    path.unlink()
    with pytest.raises(PathError, match="missing"):
        read(path)


def test_flipped_bits(path: Path) -> None:
    """Whatever a flip makes of the transcript, it is not read as the same lines."""
    write(path, range(3))
    before, size = read(path).lines, path.stat().st_size
    data = path.read_bytes()
    for bit in range(0, size * 8, 7):
        path.write_bytes(data)
        flip(path, bit)
        try:
            assert read(path).lines != before
        except TranscriptError as error:
            assert "line" in str(error)


def test_disk_full_in_the_middle_of_a_line(path: Path) -> None:
    """The kernel takes a part of the line; nothing of it stays, and the writer still works when there is room again."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with TranscriptWriter(path) as writer:
        writer.append(leaf(0))
        size = path.stat().st_size
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 10, hard))
        try:
            with pytest.raises(StorageError, match=r"transcript\.jsonl: File too large"):
                writer.append(leaf(1))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert path.stat().st_size == size and writer.count == 1
        writer.append(leaf(2))
    assert [value for _, value in read(path).lines] == [leaf(0), leaf(2)]


WRITER = """
import os, sys
from pathlib import Path
from vtrain.store.transcript import TranscriptWriter
writer = TranscriptWriter(Path(sys.argv[1]))
while True:
    writer.append({"type": "leaf", "step": writer.count, "filler": "x" * 5000})
    if writer.count % 5 == 0:
        writer.sync()
        os.write(1, b"%d\\n" % writer.count)
"""


def test_killed_at_any_time(path: Path) -> None:
    for delay in (0.001, 0.01, 0.03):
        with subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            first = process.stdout.readline()
            time.sleep(delay)
            os.kill(process.pid, signal.SIGKILL)
            acknowledged = int((first + process.stdout.read()).split()[-1])
        found = read(path)
        assert len(found.lines) >= acknowledged
        assert [value["step"] for _, value in found.lines] == list(range(len(found.lines)))

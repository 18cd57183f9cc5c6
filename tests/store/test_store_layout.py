from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from vtrain.errors import BusyError, PathError, RunExistsError
from vtrain.store.layout import Layout, WriterLock, check_tree, create, parse_step, safe_open, step_name


@pytest.fixture
def run(tmp_path: Path) -> Layout:
    layout = create(tmp_path / "run")
    layout.job.write_text("{}")
    return layout


def test_names(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    assert layout.checkpoint(12) == tmp_path / "checkpoints" / "000012"
    assert layout.checkpoint(1234567) == tmp_path / "checkpoints" / "1234567"


@pytest.mark.parametrize("step", [0, 1, 999_999, 1_000_000, 10**12])
def test_step_names(step: int) -> None:
    assert parse_step(step_name(step)) == step


@pytest.mark.parametrize("name", ["", "1", "00001", "0000001", "-00001", "00000a", "001.tmp-1", "\u0661" * 6, "1" * 50])
def test_no_step_names(name: str) -> None:
    assert parse_step(name) is None


def test_create_refuses_what_is_there(tmp_path: Path, run: Layout) -> None:
    with pytest.raises(RunExistsError, match="not an empty"):
        create(run.root)
    (tmp_path / "file").touch()
    with pytest.raises(RunExistsError, match="not an empty"):
        create(tmp_path / "file")
    (tmp_path / "empty").mkdir()
    check_tree(create(tmp_path / "empty").root)


def test_lock_within_and_across_processes(run: Layout) -> None:
    program = (
        "import sys; from pathlib import Path; from vtrain.errors import BusyError\n"
        "from vtrain.store.layout import Layout, WriterLock\n"
        "try:\n  WriterLock(Layout(Path(sys.argv[1]))).__enter__(); print('free')\n"
        "except BusyError: print('busy')"
    )
    command = [sys.executable, "-c", program, str(run.root)]
    with WriterLock(run):
        with pytest.raises(BusyError, match="another process"), WriterLock(run):
            pass
        assert subprocess.check_output(command, text=True) == "busy\n"
    assert subprocess.check_output(command, text=True) == "free\n"
    with WriterLock(run):
        pass


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


SPECIAL: dict[str, Callable[[Path], None]] = {
    "link": lambda path: os.symlink("/etc/passwd", path),
    "dangling link": lambda path: os.symlink("nowhere", path),
    "link to directory": lambda path: os.symlink("/etc", path),
    "link to itself": lambda path: os.symlink(path.name, path),
    "FIFO": lambda path: os.mkfifo(path),
    "socket": _socket,
    "hard link": lambda path: os.link(path.parents[1] / "job.json", path),
}


@pytest.mark.parametrize("kind", SPECIAL)
def test_special_files(run: Layout, kind: str) -> None:
    check_tree(run.root)
    SPECIAL[kind](run.programs / "odd")
    with pytest.raises(PathError):
        check_tree(run.root)
    with pytest.raises(PathError):
        safe_open(run.root, "programs/odd", max_bytes=10**6)


def test_device() -> None:
    with pytest.raises(PathError, match="device"):
        safe_open(Path("/dev"), "zero", max_bytes=10**6)


def test_linked_directory_on_the_way(run: Layout) -> None:
    (run.programs / "real").mkdir()
    (run.programs / "real" / "file").write_text("content")
    os.symlink("real", run.programs / "link")
    with safe_open(run.root, "programs/real/file", max_bytes=7) as handle:
        assert handle.read() == b"content"
    with pytest.raises(PathError):
        safe_open(run.root, "programs/link/file", max_bytes=7)


@pytest.mark.parametrize("name", ["job.json.bak", "evil.py", "log.zarr2", ".git"])
def test_unexpected_names(run: Layout, name: str) -> None:
    (run.root / name).touch()
    with pytest.raises(PathError, match="unexpected name"):
        check_tree(run.root)


def test_leftovers_and_wrong_types(run: Layout) -> None:
    (run.root / "job.json.tmp-1-ab").touch()
    check_tree(run.root)
    run.transcript.mkdir()
    with pytest.raises(PathError, match="expected a file"):
        check_tree(run.root)


def test_too_many_files(run: Layout) -> None:
    for number in range(20):
        (run.programs / f"{number}").touch()
    check_tree(run.root, max_files=24)
    with pytest.raises(PathError, match="more than 23"):
        check_tree(run.root, max_files=23)


@pytest.mark.parametrize(
    "relative", ["/etc/passwd", "../run/job.json", "programs/../job.json", "", ".", "job.json/", "a\0"]
)
def test_paths_that_leave(run: Layout, relative: str) -> None:
    with pytest.raises(PathError, match="plain path"):
        safe_open(run.root, relative, max_bytes=10)


def test_safe_open_bounds(run: Layout) -> None:
    run.metrics.write_bytes(b"12345")
    with safe_open(run.root, "metrics.jsonl", max_bytes=5) as handle:
        assert handle.read() == b"12345"
    with pytest.raises(PathError, match="at most 4"):
        safe_open(run.root, "metrics.jsonl", max_bytes=4)
    with pytest.raises(PathError, match="missing"):
        safe_open(run.root, "nothing", max_bytes=4)
    with pytest.raises(PathError, match="a directory"):
        safe_open(run.root, "programs", max_bytes=10**6)
    with pytest.raises(PathError):
        safe_open(run.root, "job.json/below", max_bytes=10**6)

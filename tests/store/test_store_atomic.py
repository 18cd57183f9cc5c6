from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

import pytest

from vtrain.errors import StorageError
from vtrain.store import atomic


def _full(*_: object) -> NoReturn:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_write_bytes_replaces(tmp_path: Path) -> None:
    path = tmp_path / "file"
    atomic.write_bytes(path, b"old")
    atomic.write_bytes(path, b"new")
    assert path.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("function", ["fsync", "replace"])
def test_failed_write_keeps_the_old_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str) -> None:
    path = tmp_path / "file"
    atomic.write_bytes(path, b"old")
    monkeypatch.setattr(os, function, _full)
    with pytest.raises(StorageError, match=r"file: No space left"):
        atomic.write_bytes(path, b"new")
    monkeypatch.undo()
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_size_limit_of_the_process(tmp_path: Path) -> None:
    """A real write error of the kernel, part of the way through the data."""
    program = """
import resource, sys
from pathlib import Path
from vtrain.errors import StorageError
from vtrain.store.atomic import write_bytes
path = Path(sys.argv[1])
write_bytes(path, b"old")
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    write_bytes(path, b"x" * 100000)
except StorageError as error:
    print(error)
"""
    path = tmp_path / "file"
    done = subprocess.run([sys.executable, "-c", program, str(path)], capture_output=True, text=True, check=True)
    assert "file: File too large" in done.stdout
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


@pytest.fixture
def trace(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of what is made durable or renamed, in order."""
    done: list[str] = []
    fsync, replace, rename = os.fsync, os.replace, os.rename

    def name(path: str | Path) -> str:
        return Path(path).name.split(atomic.TEMPORARY)[0]

    def traced_fsync(descriptor: int) -> None:
        done.append("fsync " + name(os.readlink(f"/proc/self/fd/{descriptor}")))
        fsync(descriptor)

    def traced_replace(source: Path, target: Path) -> None:
        done.append("rename")
        replace(source, target)

    def traced_rename(source: Path, target: Path) -> None:
        done.append("rename")
        rename(source, target)

    monkeypatch.setattr(os, "fsync", traced_fsync)
    monkeypatch.setattr(os, "replace", traced_replace)
    monkeypatch.setattr(os, "rename", traced_rename)
    return done


def test_order_of_operations(tmp_path: Path, trace: list[str]) -> None:
    """The content is durable before the name, and the name before the return."""
    atomic.write_bytes(tmp_path / "file", b"data")
    assert trace == ["fsync file", "rename", f"fsync {tmp_path.name}"]


def test_order_of_operations_for_directories(tmp_path: Path, trace: list[str]) -> None:
    scratch = atomic.temporary(tmp_path / "final")
    (scratch / "below").mkdir(parents=True)
    (scratch / "below" / "file").touch()
    atomic.commit_dir(scratch, tmp_path / "final")
    assert trace == ["fsync file", "fsync below", "fsync final", "rename", f"fsync {tmp_path.name}"]


def test_commit_dir_replaces_and_leaves_nothing(tmp_path: Path) -> None:
    for content in ("one", "two"):
        scratch = atomic.temporary(tmp_path / "final")
        (scratch / "below").mkdir(parents=True)
        (scratch / "below" / "file").write_text(content)
        atomic.commit_dir(scratch, tmp_path / "final")
        assert (tmp_path / "final" / "below" / "file").read_text() == content
    assert os.listdir(tmp_path) == ["final"]


def test_remove_temporaries(tmp_path: Path) -> None:
    (tmp_path / "keep").touch()
    atomic.temporary(tmp_path / "file").touch()
    (atomic.temporary(tmp_path / "directory") / "below").mkdir(parents=True)
    os.symlink(tmp_path / "keep", atomic.temporary(tmp_path / "link"))
    atomic.remove_temporaries(tmp_path)
    assert os.listdir(tmp_path) == ["keep"]

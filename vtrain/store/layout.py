"""Names inside a run directory (protocol §3), its lock, and the checks before anything is opened (protocol §7.1)."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from vtrain.errors import BusyError, PathError, RunExistsError, StorageError, UsageError
from vtrain.store.atomic import TEMPORARY, fsync_dir, storage_errors

# What may lie at the top of a run, and whether it is a directory.
TOP_LEVEL: dict[str, bool] = {
    "job.json": False,
    "run.json": False,
    "log.zarr": True,
    "checkpoints": True,
    "transcript.jsonl": False,
    "metrics.jsonl": False,
    "attestation.json": False,
    "programs": True,
    "trainer.pub": False,
    ".lock": False,
}
# A sequence of sites as JSON; one of 100,000 sites takes some 5 MB. An auditor's parser needs up to 25 times as much.
MAX_PROGRAM_BYTES = 16 << 20
_STEP = re.compile(r"[0-9]{6,15}", re.ASCII)


def step_name(step: int) -> str:
    """The name of a checkpoint or log segment that ends at `step`: decimal, at least 6 digits."""
    return f"{step:06d}"


def parse_step(name: str) -> int | None:
    """The step that `name` stands for, or None where it is not a name that :func:`step_name` gives."""
    if not _STEP.fullmatch(name) or step_name(int(name)) != name:
        return None
    return int(name)


@dataclass(frozen=True)
class Layout:
    """Where things are in the run directory `root`."""

    root: Path

    @property
    def job(self) -> Path:
        """The job, canonical JSON."""
        return self.root / "job.json"

    @property
    def identity(self) -> Path:
        """Which of the job's runs it is, canonical JSON."""
        return self.root / "run.json"

    @property
    def log(self) -> Path:
        """The rounding log: a Zarr group of segments."""
        return self.root / "log.zarr"

    @property
    def checkpoints(self) -> Path:
        """The directory of all checkpoints."""
        return self.root / "checkpoints"

    def checkpoint(self, step: int) -> Path:
        """The directory of the checkpoint after `step` steps."""
        return self.checkpoints / step_name(step)

    @property
    def transcript(self) -> Path:
        """Leaves and heads, JSON Lines."""
        return self.root / "transcript.jsonl"

    @property
    def metrics(self) -> Path:
        """Loss and timing, for people; not evidence."""
        return self.root / "metrics.jsonl"

    @property
    def attestation(self) -> Path:
        """The trainer's statement."""
        return self.root / "attestation.json"

    @property
    def programs(self) -> Path:
        """One JSON file a distinct sequence of sites, named by its SHA-256."""
        return self.root / "programs"

    @property
    def public_key(self) -> Path:
        """The trainer's public key."""
        return self.root / "trainer.pub"

    @property
    def lock(self) -> Path:
        """The file that the writing process holds locked."""
        return self.root / ".lock"


def create(root: Path) -> Layout:
    """Make an empty run directory, or take one whose writer was stopped before it wrote the job.

    Raises:
        RunExistsError: `root` exists and is neither an empty directory nor such a one.
        StorageError: the disk refuses.
    """
    layout = Layout(root)
    with storage_errors(root):
        if root.exists() and not (root.is_dir() and all(_says_nothing(entry) for entry in root.iterdir())):
            raise RunExistsError(f"{root}: exists and is not an empty directory; {_way_out(layout)}")
        for directory in (layout.log, layout.checkpoints, layout.programs):
            directory.mkdir(parents=True, exist_ok=True)
    fsync_dir(root)
    fsync_dir(root.absolute().parent)
    return layout


def _way_out(layout: Layout) -> str:
    """What somebody can do who wants to train where something lies."""
    if layout.attestation.exists() or not layout.job.is_file():
        return "choose another place for the run"
    with storage_errors(layout.job):
        around_a_loop = b'"kind":"loop"' in layout.job.read_bytes()
    go_on = "record(..., resume=True)" if around_a_loop else f"`vtrain resume {layout.root}`"
    return f"an unfinished run is there, with which {go_on} goes on"


def require_run(root: Path) -> None:
    """Check that there is something that may be a run, to tell a mistyped name from a malformed run.

    Raises:
        UsageError: nothing, no directory, or one in which nothing has a name of a run.
        StorageError: the disk fails, or access is denied.
    """
    with storage_errors(root):
        if not os.path.lexists(root):
            raise UsageError(f"{root}: no such run")
        if not root.is_dir():
            raise UsageError(f"{root}: no such run: want a run's directory, and it is none")
        if not any(name in TOP_LEVEL for name in os.listdir(root)):
            raise UsageError(f"{root}: no such run: the directory has no job.json nor anything else of a run")


def _says_nothing(entry: Path) -> bool:
    """Whether `entry` can be the beginning of a run that has no job yet."""
    if entry.name in (".lock", "trainer.pub") or TEMPORARY in entry.name:
        return entry.is_file()
    return TOP_LEVEL.get(entry.name, False) and entry.is_dir() and not any(entry.iterdir())


class WriterLock:
    """Holds a run for one writing process, as a context manager; the lock ends with the process, however it ends.

    Raises:
        BusyError: on entry: somebody else writes this run.
        StorageError: on entry: the lock file can't be made.
    """

    def __init__(self, layout: Layout) -> None:
        self._path = layout.lock
        self._descriptor: int | None = None

    def __enter__(self) -> WriterLock:
        with storage_errors(self._path):
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                os.close(descriptor)
                raise BusyError(f"{self._path.parent}: another process is writing this run") from error
            except BaseException:
                os.close(descriptor)
                raise
        self._descriptor = descriptor
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def check_tree(root: Path, *, max_files: int = 1_000_000) -> None:
    """Check that the run `root` is only plain directories and files under known names.

    Not checked: what the files hold. Names below the top level are checked by the reader of each part.

    Args:
        root: the run directory.
        max_files: bound on directories and files together.

    Raises:
        PathError: a symbolic link, FIFO, socket or device, a file with more than one hard link, an unknown or wrongly
            typed top-level name, or too many files.
        StorageError: the disk fails, or access is denied.
    """
    with storage_errors(root):
        if not root.is_dir():
            raise PathError(f"{root}: expected a run directory")
        _check_top(root)
        seen, pending = 0, [root]
        while pending:
            with os.scandir(pending.pop()) as entries:
                for entry in entries:
                    seen += 1
                    if seen > max_files:
                        raise PathError(f"{root}: more than {max_files} files")
                    if _is_directory(entry):
                        pending.append(Path(entry.path))


def _check_top(root: Path) -> None:
    with os.scandir(root) as entries:
        for entry in entries:
            if TEMPORARY in entry.name:
                continue
            if entry.name not in TOP_LEVEL:
                raise PathError(f"{entry.path!r}: unexpected name in a run; expected one of {sorted(TOP_LEVEL)}")
            if _is_directory(entry) != TOP_LEVEL[entry.name]:
                raise PathError(f"{entry.path}: expected a {'directory' if TOP_LEVEL[entry.name] else 'file'}")


def _is_directory(entry: os.DirEntry[str]) -> bool:
    """Whether `entry` is a directory; an error where it is neither a directory nor a plain, unshared file."""
    found = entry.stat(follow_symlinks=False)
    if stat.S_ISDIR(found.st_mode):
        return True
    if not stat.S_ISREG(found.st_mode):
        raise PathError(f"{entry.path!r}: {_kind(found.st_mode)}; expected a regular file or directory")
    if found.st_nlink != 1:
        raise PathError(f"{entry.path!r}: has {found.st_nlink} hard links; expected 1, so that no other name shares it")
    return False


def _kind(mode: int) -> str:
    kinds = {
        stat.S_IFLNK: "a symbolic link",
        stat.S_IFIFO: "a FIFO",
        stat.S_IFSOCK: "a socket",
        stat.S_IFDIR: "a directory",
    }
    return kinds.get(stat.S_IFMT(mode), "a device")


def safe_open(root: Path, relative: str, *, max_bytes: int) -> BinaryIO:
    """Open a file of a run for reading, following no link and leaving the run by no path.

    Args:
        root: the run directory, or another directory that is trusted to be one.
        relative: path below `root`, with ``/``.
        max_bytes: bound on the file's size in bytes.

    Returns:
        The file, opened for buffered binary reading, at its start.

    Raises:
        PathError: `relative` is absolute or has ``..``; a part of it is a link; the file is missing, is not a regular
            file, is shared by hard links, or is larger than `max_bytes`.
        StorageError: the disk fails, or access is denied.
    """
    parts = relative.split("/")
    path = root / relative
    if "\0" in relative or any(part in ("", ".", "..") for part in parts):
        raise PathError(f"{relative!r}: expected a plain path below the run")
    directory = -1
    try:
        directory = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        for part in parts[:-1]:
            below = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
            os.close(directory)
            directory = below
        # O_NONBLOCK: opening a FIFO must not wait for its other end.
        descriptor = os.open(parts[-1], os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
    except OSError as error:
        raise _open_error(path, error) from error
    finally:
        if directory >= 0:
            os.close(directory)
    try:
        _check_opened(path, os.fstat(descriptor), max_bytes)
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def _open_error(path: Path, error: OSError) -> PathError | StorageError:
    if error.errno == errno.ENOENT:
        return PathError(f"{path}: missing")
    if error.errno in (errno.ELOOP, errno.ENOTDIR, errno.ENXIO, errno.ENAMETOOLONG):
        return PathError(f"{path}: a link or special file; expected a regular file")
    return StorageError(f"{path}: {error.strerror}")


def _check_opened(path: Path, found: os.stat_result, max_bytes: int) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise PathError(f"{path}: {_kind(found.st_mode)}; expected a regular file")
    if found.st_nlink != 1:
        raise PathError(f"{path}: has {found.st_nlink} hard links; expected 1")
    if found.st_size > max_bytes:
        raise PathError(f"{path}: {found.st_size} bytes; expected at most {max_bytes}")

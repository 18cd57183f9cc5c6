"""The transcript: JSON Lines, one canonical object a line, appended to and never changed (protocol §3, §4, §5).

A kill may tear the last line. It is recognised by its missing newline, or by not being JSON at all, and dropped;
anything else that is wrong, anywhere, is an error.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from vtrain.errors import StorageError, TranscriptError, UsageError
from vtrain.store import canonical
from vtrain.store.atomic import fsync_dir, storage_errors
from vtrain.store.layout import safe_open

TYPES = ("leaf", "head")
MAX_LINE_BYTES = 1024 * 1024
MAX_LINES = 20_000_000
MAX_FILE_BYTES = 4 * 1024 * 1024 * 1024


@dataclass(frozen=True)
class Transcript:
    """What :func:`read` found.

    Attributes:
        lines: each whole line without its newline, and the object it holds.
        size: bytes that these lines take in the file, newlines included.
        torn: whether a torn line follows them.
    """

    lines: list[tuple[bytes, dict[str, Any]]]
    size: int
    torn: bool


def read(
    path: Path, *, max_line: int = MAX_LINE_BYTES, max_lines: int = MAX_LINES, max_bytes: int = MAX_FILE_BYTES
) -> Transcript:
    """Read a transcript; hostile input. Not checked: what the objects say beyond their type.

    Args:
        path: the file.
        max_line: bound on a line, in bytes without its newline.
        max_lines: bound on their number.
        max_bytes: bound on the file.

    Raises:
        TranscriptError: a line, named by its number from 1, is too long, not the canonical JSON of an object, or not a
            leaf or head; there are too many lines. A last line that is torn is no error.
        PathError: the file is missing, a link, a special file or too large.
        StorageError: the disk fails.
    """
    found: list[tuple[bytes, dict[str, Any]]] = []
    torn: list[bool] = []
    for pair in walk(
        path, max_line=max_line, max_lines=max_lines, max_bytes=max_bytes, on_torn=lambda: torn.append(True)
    ):
        found.append(pair)
    return Transcript(found, sum(len(line) + 1 for line, _ in found), bool(torn))


def walk(
    path: Path,
    *,
    max_line: int = MAX_LINE_BYTES,
    max_lines: int = MAX_LINES,
    max_bytes: int = MAX_FILE_BYTES,
    on_torn: Callable[[], object] = lambda: None,
) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """A transcript's whole lines and their objects, one at a time, for readers who can't trust them all to fit.

    Args:
        path, max_line, max_lines, max_bytes: as :func:`read`.
        on_torn: called at the end if a torn line is there.

    Raises:
        TranscriptError, PathError, StorageError: as :func:`read`.
    """
    count = 0
    with safe_open(path.parent, path.name, max_bytes=max_bytes) as handle, storage_errors(path):
        while raw := handle.readline(max_line + 1):
            where = f"{path}: line {count + 1}"
            line = raw.removesuffix(b"\n")
            if len(line) > max_line:
                raise TranscriptError(f"{where}: longer than {max_line} bytes")
            last = not handle.peek(1)  # type: ignore[attr-defined]
            if last and (line is raw or not _is_json(line)):
                on_torn()
                return
            if count == max_lines:
                raise TranscriptError(f"{path}: more than {max_lines} lines")
            value = canonical.loads(line, where=where, error=TranscriptError)
            if value.get("type") not in TYPES:
                raise TranscriptError(f"{where}: type {str(value.get('type'))[:32]!r}; expected one of {list(TYPES)}")
            count += 1
            yield line, value


def _is_json(line: bytes) -> bool:
    """Whether this is any JSON: a line that is, was not torn, so other faults in it are no accident."""
    try:
        json.loads(line, parse_int=str)  # Python's own limit on digits is no matter of JSON
    except RecursionError:
        return True
    except ValueError:
        return False
    return True


def truncate_after(path: Path, line_count: int) -> None:
    """Keep the first `line_count` lines, durably; for the writer alone, on resuming.

    Raises:
        TranscriptError: there are fewer whole lines, or a bad one.
        PathError, StorageError: as :func:`read`.
    """
    found = read(path)
    if not 0 <= line_count <= len(found.lines):
        raise TranscriptError(f"{path}: has {len(found.lines)} lines; expected at least {line_count}")
    _truncate(path, sum(len(line) + 1 for line, _ in found.lines[:line_count]))


def _truncate(path: Path, size: int) -> None:
    with storage_errors(path), open(path, "r+b") as handle:
        handle.truncate(size)
        os.fsync(handle.fileno())


class TranscriptWriter:
    """Appends to a transcript; one writer a run (:class:`vtrain.store.layout.WriterLock`).

    Opening drops a torn last line. Only :meth:`sync` acknowledges.

    Args:
        path: the file, made where it is missing.

    Attributes:
        count: whole lines in the file.

    Raises:
        TranscriptError: the file has a bad line that is not a torn last one.
        PathError: it is a link or special file.
        StorageError: the disk refuses.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.count = self._size = 0
        if os.path.lexists(path):
            found = read(path)
            self.count, self._size = len(found.lines), found.size
            if found.torn:
                _truncate(path, found.size)
        with storage_errors(path):
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
            self._descriptor = os.open(path, flags, 0o644)
        fsync_dir(path.parent)

    def append(self, value: dict[str, Any]) -> bytes:
        """Append one object; returns its line without the newline. A failed write leaves no part of it.

        Raises:
            UsageError: no canonical JSON, type not leaf or head, longer than a line may be, or the writer is closed.
            StorageError: the disk is full, read-only or failing.
        """
        if self._descriptor < 0:
            raise UsageError(f"{self._path}: the transcript is closed")
        line = canonical.dumps(value)
        if value.get("type") not in TYPES or len(line) > MAX_LINE_BYTES:
            found = f"type {value.get('type')!r} with {len(line)} bytes"
            raise UsageError(f"{self._path}: {found}; expected a leaf or head of at most {MAX_LINE_BYTES} bytes")
        with storage_errors(self._path):
            try:
                self._write(line + b"\n")
            except OSError:
                os.ftruncate(self._descriptor, self._size)
                raise
        self._size += len(line) + 1
        self.count += 1
        return line

    def _write(self, data: bytes) -> None:
        # A full disk first takes a part of the data without an error.
        view = memoryview(data)
        while view:
            view = view[os.write(self._descriptor, view) :]

    def sync(self) -> None:
        """Return when everything appended is durable.

        Raises:
            StorageError: the disk fails.
        """
        with storage_errors(self._path):
            os.fsync(self._descriptor)

    def close(self) -> None:
        """Sync and close. Harmless when closed before.

        Raises:
            StorageError: the disk fails.
        """
        if self._descriptor < 0:
            return
        try:
            self.sync()
        finally:
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> TranscriptWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self.close()
        except StorageError:
            if kind is None:
                raise

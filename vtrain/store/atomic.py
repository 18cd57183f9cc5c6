"""Durable, atomic writes: temporary name, fsync, rename, fsync of the directory (protocol §3)."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from vtrain.errors import StorageError

# What marks a temporary name: ``<final name>.tmp-<pid>-<random>``. Readers ignore such names, resuming removes them.
TEMPORARY = ".tmp-"


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn an ``OSError`` of the body into a :class:`StorageError` that names `path`.

    Raises:
        StorageError: the disk is full, read-only or failing, or access is denied.
    """
    try:
        yield
    except OSError as error:
        raise StorageError(f"{path}: {error.strerror or error}; what was acknowledged before stays valid") from error


def temporary(path: Path) -> Path:
    """A fresh temporary name beside `path`, so that a rename stays within one file system."""
    return path.with_name(f"{path.name}{TEMPORARY}{os.getpid()}-{secrets.token_hex(4)}")


def fsync_dir(path: Path) -> None:
    """Make the names in directory `path` durable.

    Raises:
        StorageError: the disk refuses.
    """
    with storage_errors(path):
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def fsync_tree(path: Path) -> None:
    """Make every file and every name under directory `path` durable, leaves first.

    Raises:
        StorageError: the disk refuses.
    """
    for directory, _, names in os.walk(path, topdown=False):
        for name in names:
            file = Path(directory, name)
            with storage_errors(file), open(file, "rb") as handle:
                os.fsync(handle.fileno())
        fsync_dir(Path(directory))


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary file that becomes `path`, durably, when the body ends without an exception.

    Whoever reads `path` sees the old content or the new one, never a part.

    Raises:
        StorageError: the disk is full, read-only or failing; `path` is then as it was.
    """
    scratch = temporary(path)
    try:
        with storage_errors(path):
            with open(scratch, "xb") as handle:
                yield handle
                handle.flush()
                os.fsync(handle.fileno())
            os.replace(scratch, path)
    except BaseException:
        with suppress(OSError):
            scratch.unlink(missing_ok=True)
        raise
    fsync_dir(path.parent)


def write_bytes(path: Path, data: bytes | bytearray | memoryview) -> None:
    """Replace `path` by `data` (bytes), atomically and durably.

    Raises:
        StorageError: the disk is full, read-only or failing; `path` is then as it was.
    """
    with replacing(path) as handle:
        handle.write(data)


def commit_dir(scratch: Path, path: Path) -> None:
    """Make directory `scratch` durable and rename it to `path`, in place of a directory that may be there.

    A kill between the two renames of a replacement leaves neither name; both contents are then under temporary names.

    Raises:
        StorageError: the disk is full, read-only or failing.
    """
    fsync_tree(scratch)
    old = temporary(path)
    with storage_errors(path):
        replaced = path.exists()
        if replaced:
            os.rename(path, old)
        os.rename(scratch, path)
    fsync_dir(path.parent)
    if replaced:
        remove_tree(old)


def remove_tree(path: Path) -> None:
    """Remove directory or file `path` so that a kill on the way never leaves a part under its own name.

    Raises:
        StorageError: the disk is read-only or failing.
    """
    with storage_errors(path):
        if TEMPORARY not in path.name:
            scratch = temporary(path)
            os.rename(path, scratch)
            path = scratch
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    fsync_dir(path.parent)


def remove_temporaries(directory: Path) -> None:
    """Remove what killed writers left in `directory`; only for the one writer of a run, before it writes.

    Raises:
        StorageError: the disk is read-only or failing.
    """
    with storage_errors(directory):
        leftovers = [entry for entry in directory.iterdir() if TEMPORARY in entry.name]
    for entry in leftovers:
        remove_tree(entry)

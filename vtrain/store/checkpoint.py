"""Checkpoints: safetensors files and one canonical JSON file a directory; written atomically, read as hostile input."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vtrain.commit.digest import TensorBytes
from vtrain.errors import CheckpointError, PathError, UsageError, VersionError
from vtrain.store import canonical
from vtrain.store.atomic import TEMPORARY, commit_dir, remove_tree, storage_errors, temporary, write_bytes
from vtrain.store.layout import Layout, parse_step, safe_open
from vtrain.store.tensorfile import (
    MAX_FILE_BYTES,
    MAX_HEADER_BYTES,
    Scanned,
    read_below,
    read_safetensors,
    scan_below,
    write_safetensors,
)

__all__ = [
    "MAX_FILE_BYTES", "MAX_HEADER_BYTES", "list_checkpoints", "read_checkpoint", "read_safetensors", "scan_checkpoint",
    "write_checkpoint", "write_safetensors",
]  # fmt: skip

FORMAT = "vtrain-checkpoint"
RESUME = "resume"  # the file of what the trainer alone needs to go on, which is no part of the state
VERSION = 1
MAX_META_BYTES = 4 * 1024 * 1024
_MAX_FILES = 64
_MAX_CHECKPOINTS = 1_000_000
_FILE_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}", re.ASCII)
_SUFFIX = ".safetensors"


def write_checkpoint(
    layout: Layout, step: int, files: Mapping[str, Mapping[str, TensorBytes]], meta: dict[str, Any]
) -> None:
    """Write the checkpoint after `step` steps, whole or not at all; one that is there already is replaced.

    Args:
        layout: the run.
        step: steps done; 0 is the initialisation.
        files: tensors by name, by file name without ``.safetensors`` (``model``, ``optimizer``, ...).
        meta: what else it takes to go on; canonical JSON, floats as strings.

    Raises:
        UsageError: a file name, a tensor's name or `meta` can't be stored.
        StorageError: the disk is full, read-only or failing; there is then no new checkpoint.
    """
    for name in files:
        if not _FILE_NAME.fullmatch(name):
            raise UsageError(f"checkpoint file {name!r}: expected lower-case letters, digits and underscores")
    if step < 0 or len(files) > _MAX_FILES:
        raise UsageError(f"checkpoint {step} of {len(files)} files: expected a step from 0, at most {_MAX_FILES} files")
    text = canonical.dumps({"format": FORMAT, "version": VERSION, "step": step, "files": sorted(files), "meta": meta})
    if len(text) > MAX_META_BYTES:
        raise UsageError(f"checkpoint {step}: meta takes {len(text)} bytes; expected at most {MAX_META_BYTES}")
    path = layout.checkpoint(step)
    scratch = temporary(path)
    with storage_errors(path):
        path.parent.mkdir(exist_ok=True)
        scratch.mkdir()
    try:
        for name, tensors in files.items():
            write_safetensors(scratch / f"{name}{_SUFFIX}", tensors)
        write_bytes(scratch / "meta.json", text)
        commit_dir(scratch, path)
    finally:
        if scratch.exists():
            remove_tree(scratch)


def read_checkpoint(
    layout: Layout, step: int, *, max_bytes: int = MAX_FILE_BYTES
) -> tuple[dict[str, dict[str, TensorBytes]], dict[str, Any]]:
    """Read the checkpoint after `step` steps into memory; hostile input. Not checked: its digest.

    Args:
        layout: the run.
        step: steps done.
        max_bytes: bound on each file, in bytes; what the job implies.

    Returns:
        What :func:`write_checkpoint` was given: files and meta.

    Raises:
        CheckpointError: missing, truncated, corrupt, or with missing or unexpected files.
        VersionError: a format version that this release does not read.
        PathError: a link, special or oversized file in it.
        StorageError: the disk fails.
    """
    paths, meta = _open(layout, step)
    return {name: read_below(layout.root, path, max_bytes) for name, path in paths.items()}, meta


def scan_checkpoint(
    layout: Layout, step: int, *, max_bytes: int = MAX_FILE_BYTES, whole: bool = False
) -> dict[str, Scanned]:
    """Check a checkpoint as :func:`read_checkpoint` does and hash it, by file, in a few MiB of memory.

    Args:
        layout, step, max_bytes: as there.
        whole: whether the files' own SHA-256 is wanted too.

    Raises:
        CheckpointError, VersionError, PathError, StorageError: as :func:`read_checkpoint`.
    """
    return {
        name: scan_below(layout.root, path, max_bytes, whole=whole) for name, path in _open(layout, step)[0].items()
    }


def _open(layout: Layout, step: int) -> tuple[dict[str, str], dict[str, Any]]:
    """The paths of a checkpoint's files below the run, by name, and its meta."""
    path = layout.checkpoint(step)
    below = f"checkpoints/{path.name}"
    found = _names(path, _MAX_FILES + 1)
    if "meta.json" not in found:
        raise CheckpointError(f"{path}: has no meta.json; expected a complete checkpoint")
    with safe_open(layout.root, f"{below}/meta.json", max_bytes=MAX_META_BYTES) as handle:
        text = handle.read(MAX_META_BYTES + 1)
    content = canonical.loads(text, where=f"{path / 'meta.json'}", error=CheckpointError)
    names = _check_meta(content, step, f"{path / 'meta.json'}")
    wanted = {"meta.json", *(f"{name}{_SUFFIX}" for name in names)}
    if set(found) != wanted:
        raise CheckpointError(f"{path}: found {sorted(found)}; expected {sorted(wanted)}")
    return {name: f"{below}/{name}{_SUFFIX}" for name in names}, content["meta"]


def _check_meta(content: dict[str, Any], step: int, where: str) -> list[str]:
    """The names of the checkpoint's files."""
    if content.get("format") != FORMAT:
        raise CheckpointError(f"{where}: format {str(content.get('format'))[:64]!r}; expected {FORMAT!r}")
    if type(content.get("version")) is not int or content["version"] != VERSION:
        raise VersionError(f"{where}: version {str(content.get('version'))[:64]}; this release reads {VERSION}")
    if content.keys() != {"format", "version", "step", "files", "meta"} or not isinstance(content["meta"], dict):
        raise CheckpointError(f"{where}: expected files, format, meta, step and version, found {sorted(content)[:10]}")
    if type(content["step"]) is not int or content["step"] != step:
        raise CheckpointError(f"{where}: is of step {str(content['step'])[:32]!r}; expected {step}")
    names = content["files"]
    if not isinstance(names, list) or not all(isinstance(name, str) and _FILE_NAME.fullmatch(name) for name in names):
        raise CheckpointError(f"{where}: files are not names of files")
    if names != sorted(set(names)):
        raise CheckpointError(f"{where}: files are repeated or out of order")
    return names


def list_checkpoints(layout: Layout) -> list[int]:
    """The steps of the checkpoints that are there, ascending. A checkpoint's name is given to it when it is complete.

    Raises:
        CheckpointError: an unexpected name among them.
        PathError: one is a link or a file.
        StorageError: the disk fails.
    """
    steps = []
    for name in _names(layout.checkpoints, _MAX_CHECKPOINTS):
        step = parse_step(name)
        if TEMPORARY in name:
            continue
        if step is None:
            raise CheckpointError(f"{layout.checkpoints}: unexpected name {name!r}; expected steps")
        if (layout.checkpoints / name / "meta.json").is_file():
            steps.append(step)
    return sorted(steps)


def _names(directory: Path, limit: int) -> list[str]:
    """The names in a directory of the run that is no link."""
    with storage_errors(directory):
        if directory.is_symlink():
            raise PathError(f"{directory}: a symbolic link; expected a directory")
        if not directory.is_dir():
            raise CheckpointError(f"{directory}: missing; expected a directory")
        names = []
        for entry in directory.iterdir():
            names.append(entry.name)
            if len(names) > limit:
                raise CheckpointError(f"{directory}: more than {limit} names")
    return names

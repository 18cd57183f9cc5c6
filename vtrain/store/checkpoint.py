"""Checkpoints: safetensors files and one canonical JSON file a directory; written atomically, read as hostile input.

The format is that of https://huggingface.co/docs/safetensors: header length (uint64, little-endian), JSON header, data.
Reading is ours, so that every rule is checked before a byte of data is used, and without torch.
"""

from __future__ import annotations

import json
import mmap
import re
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vtrain.commit.digest import DTYPES, TensorBytes
from vtrain.errors import CheckpointError, PathError, StateError, UsageError, VersionError
from vtrain.store import canonical
from vtrain.store.atomic import TEMPORARY, commit_dir, remove_tree, replacing, storage_errors, temporary, write_bytes
from vtrain.store.layout import Layout, parse_step, safe_open

FORMAT = "vtrain-checkpoint"
VERSION = 1
MAX_HEADER_BYTES = 16 * 1024 * 1024
MAX_META_BYTES = 16 * 1024 * 1024
# Only a guard against nonsense where the caller knows no better bound; files are mapped, not read.
MAX_FILE_BYTES = 2**44
_MAX_FILES = 64
_MAX_CHECKPOINTS = 1_000_000
_FILE_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}", re.ASCII)
_SUFFIX = ".safetensors"
_METADATA_KEY = "__metadata__"
_LENGTH = struct.Struct("<Q")


def write_safetensors(path: Path, tensors: Mapping[str, TensorBytes]) -> None:
    """Write `path` atomically; equal tensors give equal bytes. The widest dtypes come first, so that all are aligned.

    Raises:
        UsageError: a name that safetensors can't carry.
        StorageError: the disk is full, read-only or failing; `path` is then as it was.
    """
    order = sorted(tensors, key=lambda name: (-DTYPES[tensors[name].dtype].width, name))
    header: dict[str, Any] = {}
    end = 0
    for name in order:
        tensor, start = tensors[name], end
        end += tensor.view.nbytes
        header[name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [start, end]}
    try:
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise UsageError(f"{path}: a tensor's name is not Unicode: {error}") from error
    text += b" " * (-len(text) % 8)
    if _METADATA_KEY in tensors or len(text) > MAX_HEADER_BYTES:
        raise UsageError(f"{path}: a tensor is called {_METADATA_KEY}, or the header exceeds {MAX_HEADER_BYTES} bytes")
    with replacing(path) as handle:
        handle.write(_LENGTH.pack(len(text)) + text)
        for name in order:
            handle.write(tensors[name].view)


def read_safetensors(path: Path, max_bytes: int = MAX_FILE_BYTES) -> dict[str, TensorBytes]:
    """Map a safetensors file and check it entirely, but for the values of its elements (BOOL bytes are 0 or 1).

    Metadata of the standard format (strings by string) is accepted and ignored.

    Args:
        path: the file; it must not change while the result lives.
        max_bytes: bound on its size.

    Returns:
        Tensors by name, in the order of the file; their data are read-only views of the mapped file.

    Raises:
        CheckpointError: the file is truncated or breaks a rule of the format: repeated keys, unknown fields or dtypes,
            sizes that do not fit, overlaps, holes.
        PathError: it is missing, a link, a special file, or larger than `max_bytes`.
        StorageError: the disk fails.
    """
    with safe_open(path.parent, path.name, max_bytes=max_bytes) as handle, storage_errors(path):
        prefix = handle.read(_LENGTH.size)
        size = handle.seek(0, 2)
        if len(prefix) < _LENGTH.size:
            raise CheckpointError(f"{path}: {size} bytes; expected a header's length in the first {_LENGTH.size}")
        (length,) = _LENGTH.unpack(prefix)
        if length > min(MAX_HEADER_BYTES, size - _LENGTH.size):
            raise CheckpointError(f"{path}: a header of {length} bytes; expected at most {MAX_HEADER_BYTES} of {size}")
        mapped = memoryview(mmap.mmap(handle.fileno(), size, access=mmap.ACCESS_READ))
    start = _LENGTH.size + length
    header = _parse_header(bytes(mapped[_LENGTH.size : start]), f"{path}")
    _check_ranges(header, size - start, f"{path}")
    return {name: _tensor(entry, mapped[start:], f"{path}: tensor {name!r}") for name, entry in header.items()}


def _parse_header(text: bytes, where: str) -> dict[str, dict[str, Any]]:
    """The header's tensors, each with exactly the three fields of the right types."""
    try:
        header = json.loads(text.decode("utf-8"), object_pairs_hook=canonical.unique_keys)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{where}: header: {error}") from error
    if not text.startswith(b"{") or not isinstance(header, dict):
        raise CheckpointError(f"{where}: header: expected a JSON object")
    metadata = header.pop(_METADATA_KEY, {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise CheckpointError(f"{where}: header: {_METADATA_KEY} is not strings by string")
    for name, entry in header.items():
        if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
            raise CheckpointError(f"{where}: tensor {name!r}: expected dtype, shape and data_offsets")
        if not isinstance(entry["dtype"], str) or entry["dtype"] not in DTYPES:
            found = str(entry["dtype"])[:32]
            raise CheckpointError(f"{where}: tensor {name!r}: dtype {found}; expected one of {list(DTYPES)}")
        if not _sizes(entry["shape"]) or not _sizes(entry["data_offsets"]) or len(entry["data_offsets"]) != 2:
            raise CheckpointError(f"{where}: tensor {name!r}: shape or data_offsets are not sizes")
    return header


def _sizes(value: object) -> bool:
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 2**63 for item in value)


def _check_ranges(header: dict[str, dict[str, Any]], size: int, where: str) -> None:
    """The tensors' ranges follow each other without overlap or hole, and fill the data."""
    end = 0
    for start, stop, name in sorted((*entry["data_offsets"], name) for name, entry in header.items()):
        if start != end or stop < start:
            raise CheckpointError(f"{where}: tensor {name!r} is at [{start}, {stop}]; expected it to begin at {end}")
        end = stop
    if end != size:
        raise CheckpointError(f"{where}: {size} bytes of data; the header says {end}")


def _tensor(entry: dict[str, Any], data: memoryview, where: str) -> TensorBytes:
    start, stop = entry["data_offsets"]
    try:
        tensor = TensorBytes(entry["dtype"], tuple(entry["shape"]), data[start:stop])
    except StateError as error:
        raise CheckpointError(f"{where}: {error}") from error
    # Any other byte means something else on each machine.
    if tensor.dtype == "BOOL" and stop > start and np.frombuffer(tensor.view, np.uint8).max() > 1:
        raise CheckpointError(f"{where}: a BOOL byte is neither 0 nor 1")
    return tensor


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
    """Read the checkpoint after `step` steps; hostile input. Not checked: its digest.

    Args:
        layout: the run.
        step: steps done.
        max_bytes: bound on each file, in bytes; what the job implies.

    Returns:
        What :func:`write_checkpoint` was given: files and meta. The tensors are views of mapped files.

    Raises:
        CheckpointError: missing, truncated, corrupt, or with missing or unexpected files.
        VersionError: a format version that this release does not read.
        PathError: a link, special or oversized file in it.
        StorageError: the disk fails.
    """
    path = layout.checkpoint(step)
    found = _names(path, _MAX_FILES + 1)
    if "meta.json" not in found:
        raise CheckpointError(f"{path}: has no meta.json; expected a complete checkpoint")
    with safe_open(layout.root, f"checkpoints/{path.name}/meta.json", max_bytes=MAX_META_BYTES) as handle:
        text = handle.read(MAX_META_BYTES + 1)
    content = canonical.loads(text, where=f"{path / 'meta.json'}", error=CheckpointError)
    names = _check_meta(content, step, f"{path / 'meta.json'}")
    wanted = {"meta.json", *(f"{name}{_SUFFIX}" for name in names)}
    if set(found) != wanted:
        raise CheckpointError(f"{path}: found {sorted(found)}; expected {sorted(wanted)}")
    return {name: read_safetensors(path / f"{name}{_SUFFIX}", max_bytes) for name in names}, content["meta"]


def _check_meta(content: dict[str, Any], step: int, where: str) -> list[str]:
    """The names of the checkpoint's files."""
    if content.get("format") != FORMAT:
        raise CheckpointError(f"{where}: format {str(content.get('format'))[:64]!r}; expected {FORMAT!r}")
    if type(content.get("version")) is not int or content["version"] != VERSION:
        raise VersionError(f"{where}: version {str(content.get('version'))[:64]}; this release reads {VERSION}")
    if content.keys() != {"format", "version", "step", "files", "meta"} or not isinstance(content["meta"], dict):
        raise CheckpointError(f"{where}: expected files, format, meta, step and version, found {sorted(content)[:10]}")
    if type(content["step"]) is not int or content["step"] != step:
        raise CheckpointError(f"{where}: is of step {content['step']}; expected {step}")
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
